"""Write an evidence file into the site, so that a reader can open one."""

from pathlib import Path

from skdice import make_ensemble
from skdice.datasets import load_fashion_mnist_ood
from skdice.report import OODReport


def write_sample(app, exception):
    """Write the report on the ensemble for the data of the package, if pages were built."""
    if exception is not None or app.builder.format != "html":
        return
    data = load_fashion_mnist_ood()
    detector = make_ensemble(data.head).fit(data.id_train)
    detector.calibrate(data.id_test[:1500], method="conformal", confidence=0.95)
    report = OODReport.from_detector(detector, data.id_test[1500:], data.ood)
    report.to_html(Path(app.outdir) / "evidence_example.html")


def setup(app):
    app.connect("build-finished", write_sample)
    return {"parallel_read_safe": True}
