"""Pictures of scores: histograms with the threshold, and the sparsity curve of the demo."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skdice._extras import import_extra

FloatArray = NDArray[np.floating[Any]]

# Okabe & Ito: distinct to colour-blind eyes; the line styles carry it in grey.
COLOURS = ("#0072B2", "#D55E00", "#E69F00", "#009E73", "#CC79A7", "#56B4E9")
STYLES = ("-", "--", "-.", ":")

figure = import_extra("matplotlib.figure", "plot")


def draw_histogram(
    axes: Any,
    *,
    title: str,
    id_scores: FloatArray,
    ood_scores: dict[str, FloatArray],
    threshold: float | None,
    id_name: str = "in-distribution",
) -> None:
    """Draw the scores of in-distribution rows and of OOD sets, and the threshold.

    Parameters
    ----------
    axes : matplotlib Axes
        Where to draw.
    title : str
        Over the axes.
    id_scores : ndarray of shape (n,)
        Scores of in-distribution rows.
    ood_scores : dict of str to ndarray
        Scores of each OOD set.
    threshold : float or None
        The detector's threshold on the scores.
    id_name : str
        In the legend.
    """
    everything = np.concatenate([id_scores, *ood_scores.values()])
    bins = np.linspace(everything.min(), everything.max(), 36)
    named = {id_name: id_scores, **ood_scores}
    for (name, scores), colour, style in zip(
        named.items(), cycle(COLOURS), cycle(STYLES), strict=False
    ):
        is_id = scores is id_scores
        axes.hist(
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
    if threshold is not None:
        axes.axvline(threshold, color="black", linewidth=1, label="threshold")
    axes.margins(y=0.4)
    axes.set(title=title, xlabel="score", ylabel="density")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, ncols=2, loc="upper left", framealpha=1, edgecolor="none")


def draw_evaluation(path: Path, **histogram: Any) -> None:
    """Draw the histogram alone into a PNG file; see `draw_histogram`."""
    fig = figure.Figure(figsize=(7, 4), layout="constrained")
    draw_histogram(fig.subplots(), **histogram)
    fig.savefig(path, dpi=120, format="png")


def draw_demo(path: Path, *, auroc: dict[str, dict[float, float]], **histogram: Any) -> None:
    """Draw the picture of ``skdice demo`` into a PNG file.

    Parameters
    ----------
    path : Path
        The file.
    auroc : dict of str to dict of float to float
        For each method, the mean AUROC in percent by sparsity.
    **histogram
        See `draw_histogram`.
    """
    fig = figure.Figure(figsize=(10, 4), layout="constrained")
    left, curve = fig.subplots(1, 2)
    draw_histogram(left, **histogram)
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
    curve.spines[["top", "right"]].set_visible(False)
    fig.savefig(path, dpi=120)
