"""The picture of ``skdice demo``: score histogram and sparsity curve."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skdice._extras import import_extra

FloatArray = NDArray[np.floating[Any]]

# Okabe & Ito: distinct to colour-blind eyes; the line styles carry it in grey.
COLOURS = ("#0072B2", "#D55E00", "#E69F00", "#009E73")
STYLES = ("-", "--", "-.", ":")

figure = import_extra("matplotlib.figure", "plot")


def draw_demo(
    path: Path,
    *,
    title: str,
    id_scores: FloatArray,
    ood_scores: dict[str, FloatArray],
    threshold: float,
    auroc: dict[str, dict[float, float]],
) -> None:
    """Draw the picture into a PNG file.

    Parameters
    ----------
    path : Path
        The file.
    title : str
        Name of the chosen detector.
    id_scores : ndarray of shape (n,)
        Its scores of in-distribution rows.
    ood_scores : dict of str to ndarray
        Its scores of each OOD set.
    threshold : float
        Its threshold on the scores.
    auroc : dict of str to dict of float to float
        For each method, the mean AUROC in percent by sparsity.
    """
    fig = figure.Figure(figsize=(10, 4), layout="constrained")
    histogram, curve = fig.subplots(1, 2)

    everything = np.concatenate([id_scores, *ood_scores.values()])
    bins = np.linspace(everything.min(), everything.max(), 36)
    named = {"Fashion-MNIST (in-distribution)": id_scores, **ood_scores}
    for (name, scores), colour, style in zip(named.items(), COLOURS, STYLES, strict=True):
        is_id = scores is id_scores
        histogram.hist(
            scores,
            bins,
            density=True,
            histtype="stepfilled" if is_id else "step",
            alpha=0.35 if is_id else 1,
            color=colour,
            linestyle=style,
            linewidth=1.8,
            label=name,
        )
    histogram.axvline(
        threshold, color="black", linewidth=1, label="threshold: 5 % of unseen ID rows below"
    )
    histogram.margins(y=0.4)
    histogram.set(title=title, xlabel="score of unseen rows", ylabel="density")
    histogram.legend(fontsize=8, ncols=2, loc="upper left", framealpha=1, edgecolor="none")

    for (name, points), colour, style in zip(auroc.items(), COLOURS, STYLES, strict=False):
        curve.plot(list(points), list(points.values()), style, color=colour, marker="o", label=name)
    curve.set(
        title="How much pruning?",
        xlabel="sparsity (0 prunes nothing)",
        ylabel="mean AUROC, %",
        ylim=(max(0.0, min(min(p.values()) for p in auroc.values()) - 3), 100),
    )
    curve.legend(frameon=False)
    curve.grid(alpha=0.3)
    for axes in (histogram, curve):
        axes.spines[["top", "right"]].set_visible(False)
    fig.savefig(path, dpi=120)
