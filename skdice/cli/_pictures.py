"""Pictures that the command writes. Imported where one is asked for: needs matplotlib."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skdice.plotting import ScoreHistogramDisplay, SparsityCurveDisplay
from skdice.plotting._style import bare_figure, plain

FloatArray = NDArray[np.floating[Any]]


def draw_evaluation(path: Path, *, title: str, **scores: Any) -> None:
    """Draw the histogram of an evaluation into a PNG file.

    Parameters
    ----------
    path : Path
        The file.
    title : str
        Over the axes.
    **scores
        The parameters of `ScoreHistogramDisplay`.
    """
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
    """Draw the picture of ``skdice demo`` into a PNG file.

    Parameters
    ----------
    path : Path
        The file.
    title : str
        Over the histogram.
    sparsities : list of float
        Those at which the AUROC was measured.
    auroc : mapping of str to list of float
        For each method, the mean AUROC in percent at each sparsity.
    **scores
        The parameters of `ScoreHistogramDisplay`.
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
