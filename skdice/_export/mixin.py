"""The method `to_onnx`, which all detectors have."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted

from skdice._compat.extras import import_extra
from skdice._engines.layer import Layer
from skdice._export.description import (
    ClassThresholds,
    CombinedLayers,
    FittedDetector,
    exported_dtype,
)
from skdice._head import LinearHead


class OnnxMixin:
    """Mixin of the detectors that writes ONNX files."""

    # The fitted state, as `skdice._base.BaseDetector` describes it.
    _layer: Layer
    head_: LinearHead
    n_features_in_: int
    fallback_classes_: NDArray[np.intp]
    calibration_classes_: NDArray[np.intp]

    def to_onnx(self, path: str | Path, *, dtype: Any = "float32") -> None:
        """Write an ONNX file that scores features and decides as this detector does.

        The file is written with the package onnx alone, and needs nothing but a runtime for ONNX.
        Its input is ``features`` (n, n_features). Its outputs are ``score`` (n,), ``is_ood``
        (n,), bool, and ``pvalue`` (n,) after a conformal calibration. A detector without a
        threshold gets only ``score``.

        Parameters
        ----------
        path : str or Path
            The file, such as ``detector.onnx``. An interrupted call leaves the old file or none.
        dtype : {"float32", "float64"}, default="float32"
            Dtype of the features, the scores and the p-values.

        Raises
        ------
        ValueError
            `dtype` is another one, `score_func` is a function, `shaping` is not one of
            `skdice.shaping`, a member of an ensemble is of another library, or the arrays take
            more than 2 GiB.
        sklearn.exceptions.NotFittedError
            The detector is not fitted.
        ImportError
            The package onnx is not installed.

        Notes
        -----
        Scores are those of `score_samples` for features of the same dtype, up to rounding. A row
        with a feature or a score that is not finite, which `score_samples` refuses, has the score
        NaN, is out-of-distribution, and has the smallest p-value that is possible.

        Of more than 10,000 calibration scores the file holds 10,000. Between two of them it takes
        the larger p-value, so that no p-value of the file is smaller than that of `pvalues` but
        for the rounding of the score, and the guarantee holds. Decisions do not depend on that.
        After a calibration by predicted class the file has thresholds and p-values of each class.

        The metadata of the file have the names ``skdice.version``, ``detector``, ``n_classes``,
        ``threshold``, ``contamination``, ``method``, ``confidence``, ``by``, ``n_calibration``,
        ``calibrated``, ``calibration_sha256`` and ``sha256``, each with ``skdice.`` before it, as
        far as the detector has them. The last one is the digest of the graph.

        The operators are those of opset 17, which ONNX Runtime reads since version 1.12.

        Examples
        --------
        >>> import pathlib, tempfile
        >>> import onnxruntime
        >>> from skdice import DICEDetector
        >>> from skdice.datasets import load_fashion_mnist_ood
        >>> data = load_fashion_mnist_ood()
        >>> detector = DICEDetector(data.head).fit(data.id_train)
        >>> detector = detector.calibrate(data.id_test[:2000], method="conformal")
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "detector.onnx"
        >>> detector.to_onnx(path)
        >>> session = onnxruntime.InferenceSession(path)
        >>> digits = data.ood["mnist"].astype("float32")
        >>> score, is_ood, pvalue = session.run(None, {"features": digits})
        >>> f"{is_ood.mean():.0%}"
        '91%'
        """
        exported = self._exported()
        dtype = exported_dtype(dtype)
        import_extra("onnx", "onnx")
        from skdice._export.model import write_model

        write_model(exported, path, dtype)

    def _exported(self) -> FittedDetector:
        """Return the fitted detector as an export describes it."""
        check_is_fitted(self)
        by_class = None
        if hasattr(self, "class_offsets_"):
            by_class = ClassThresholds(
                self.head_, self.class_offsets_, self.fallback_classes_, self.calibration_classes_
            )
        return FittedDetector(
            kind=type(self).__name__,
            layer=self._exported_layer(),
            n_features=self.n_features_in_,
            n_classes=None if self.head_ is None else self.head_.n_classes,
            threshold=getattr(self, "offset_", None),
            contamination=getattr(self, "contamination_", None),
            calibration=getattr(self, "calibration_", None),
            calibration_scores=getattr(self, "calibration_scores_", None),
            by_class=by_class,
        )

    def _exported_layer(self) -> Layer | CombinedLayers:
        """Return what computes the scores."""
        return self._layer
