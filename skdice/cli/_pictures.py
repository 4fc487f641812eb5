"""The plots that the command writes. This module needs matplotlib, so it is imported on demand."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from skdice.plotting import ScoreHistogramDisplay, SparsityCurveDisplay
from skdice.plotting._style import bare_figure, plain


def draw_evaluation(path: Path, *, title: str, **scores: Any) -> None:
    """Write the histogram of the scores of an evaluation to a PNG file."""
    figure = bare_figure(7, 4)
    axes = figure.subplots()
    ScoreHistogramDisplay(**scores).plot(axes)
    axes.set_title(plain(title))
    figure.savefig(path, dpi=120, format="png")


def draw_demo(
    path: Path,
    *,
    title: str,
    sparsities: list[float],
    auroc: Mapping[str, list[float]],
    **scores: Any,
) -> None:
    """Write the plots of ``skdice demo`` to a PNG file.

    `auroc` has the mean AUROC in percent at each sparsity, by the name of the method.
    """
    figure = bare_figure(10, 4)
    left, right = figure.subplots(1, 2)
    ScoreHistogramDisplay(**scores).plot(left)
    left.set_title(plain(title))
    curves = SparsityCurveDisplay(sparsities=sparsities, scores=auroc, score_name="mean AUROC, %")
    curves.plot(right)
    right.set_title("How much pruning?")
    right.set_ylim(top=100)
    figure.savefig(path, dpi=120, format="png")
