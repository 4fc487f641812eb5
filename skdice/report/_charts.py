"""The charts of a report as coordinates, which the template draws as SVG.

The charts are drawn by the template and not by matplotlib because their colours follow the theme
of the reader, and because each point shows its values.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil, floor, log10

import numpy as np

from skdice.report._measures import Histogram, OutlierSet
from skdice.report._numbers import percent, score
from skdice.report._path import SparsityPath

WIDTH, HEIGHT = 360.0, 230.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 14.0, 14.0, 42.0
# So many points of a curve show their values. More would lie too near to one another to be hit.
N_MARKS = 30


@dataclass(frozen=True)
class Tick:
    """A place on an axis, in units of the picture, and its label."""

    at: float
    label: str


@dataclass(frozen=True)
class Line:
    """A curve: the attribute ``d`` of its path, and the class of its style."""

    path: str
    style: str


@dataclass(frozen=True)
class Mark:
    """A point or a bar that shows its values; a point has no width."""

    x: float
    y: float
    tip: str
    style: str = "point"
    width: float = 0.0


@dataclass(frozen=True)
class Chart:
    """One chart: its axes, and the curves and areas from back to front."""

    title: str
    # What the chart shows, for readers who cannot see it.
    description: str
    x_title: str
    y_title: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    lines: tuple[Line, ...]
    marks: tuple[Mark, ...]
    # A vertical line with a label.
    level: Tick | None = None


class _Scale:
    """The map from values to places in the picture along one axis."""

    def __init__(self, low: float, high: float, start: float, stop: float) -> None:
        self.low, self.high, self.start, self.stop = low, high, start, stop

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.stop - self.start), 1)

    def ticks(self, n: int, *, factor: float = 1.0) -> tuple[Tick, ...]:
        """Return about n ticks at round numbers; labels are the numbers times a factor."""
        low, high = self.low * factor, self.high * factor
        rough = (high - low) / n
        power = 10.0 ** floor(log10(rough))
        step = power * min((1, 2, 5, 10), key=lambda each: abs(each * power - rough))
        first, last = ceil(low / step - 1e-9), floor(high / step + 1e-9)
        digits = max(0, -floor(log10(step) + 1e-9))
        return tuple(
            Tick(self(place * step / factor), f"{place * step + 0.0:.{digits}f}")
            for place in range(first, last + 1)
        )


def _x_scale(low: float, high: float) -> _Scale:
    return _Scale(low, high, LEFT, WIDTH - RIGHT)


def _y_scale(low: float, high: float) -> _Scale:
    return _Scale(low, high, HEIGHT - BOTTOM, TOP)


def histogram_chart(name: str, histogram: Histogram, threshold: float | None) -> Chart:
    """Return the histograms of the in-distribution rows and of one set."""
    edges = histogram.edges
    x = _x_scale(edges[0], edges[-1])
    y = _y_scale(0.0, 1.08 * max(*histogram.inside, *histogram.outside))
    marks = []
    for place, (inside, outside) in enumerate(
        zip(histogram.inside, histogram.outside, strict=True)
    ):
        low, high = edges[place], edges[place + 1]
        where = f"scores from {low:.4g} to {high:.4g}"
        if place == 0:
            where = f"scores below {high:.4g}"
        elif place == len(edges) - 2:
            where = f"scores from {low:.4g}"
        tip = f"{where}: {percent(inside)} of in-distribution, {percent(outside)} of {name}"
        marks.append(Mark(x(low), TOP, tip, "bar", round(x(high) - x(low), 1)))
    level = None
    if threshold is not None and edges[0] <= threshold <= edges[-1]:
        level = Tick(x(threshold), f"threshold {score(threshold)}")
    return Chart(
        title=f"Scores of {name}",
        description=(
            f"Histograms of the scores of the in-distribution rows and of {name}. A higher score "
            "means more in-distribution. The rows to the left of the threshold are flagged."
        ),
        x_title="score (higher = more in-distribution)",
        y_title="rows of the set, %",
        x_ticks=x.ticks(5),
        y_ticks=y.ticks(4, factor=100),
        lines=(
            Line(_steps(x, y, edges, histogram.inside), "area inside"),
            Line(_steps(x, y, edges, histogram.outside), "area outside"),
        ),
        marks=tuple(marks),
        level=level,
    )


def roc_chart(measured: OutlierSet) -> Chart:
    """Return the ROC curve of one set, with its FPR95."""
    x, y = _x_scale(0.0, 1.0), _y_scale(0.0, 1.0)
    places = np.unique(np.linspace(0, len(measured.roc) - 1, N_MARKS).round().astype(int))
    marks = [
        Mark(
            x(fpr),
            y(tpr),
            f"{percent(tpr)} of in-distribution kept, {percent(fpr)} of {measured.name} passes",
        )
        for fpr, tpr in (measured.roc[place] for place in places)
    ]
    fpr95 = measured.fpr95.value
    tip = f"FPR95 of {measured.name}: {percent(fpr95)}"
    marks.append(Mark(x(fpr95), y(0.95), tip, "point shown"))
    return Chart(
        title=f"ROC of {measured.name}",
        description=(
            f"The share of the in-distribution rows that is kept against the share of "
            f"{measured.name} that passes, at all thresholds. The AUROC is "
            f"{percent(measured.auroc.value)}, and the FPR95 is {percent(fpr95)}."
        ),
        x_title=f"share of {_shortened(measured.name)} that passes, %",
        y_title="in-distribution kept, %",
        x_ticks=x.ticks(5, factor=100),
        y_ticks=y.ticks(5, factor=100),
        lines=(
            Line(_polyline(x, y, [(0.0, 0.0), (1.0, 1.0)]), "line chance"),
            Line(_polyline(x, y, [(0.0, 0.95), (1.0, 0.95)]), "line chance"),
            Line(_polyline(x, y, measured.roc), "line outside"),
        ),
        marks=tuple(marks),
    )


def path_chart(path: SparsityPath) -> Chart:
    """Return the AUROC at each sparsity, of each set and on the mean."""
    low = min(min(values) for values in path.auroc.values())
    x, y = _x_scale(0.0, 1.0), _y_scale(max(0.0, low - 0.02), 1.0)
    lines, marks = [], []
    for name, values in {**path.auroc, "mean": path.mean_auroc}.items():
        line, point = ("line inside", "point mean") if name == "mean" else ("line thin", "point")
        curve = list(zip(path.sparsities, values, strict=True))
        lines.append(Line(_polyline(x, y, curve), line))
        for sparsity, value in curve:
            tip = f"{name} at sparsity {sparsity:g}: AUROC {percent(value)}"
            marks.append(Mark(x(sparsity), y(value), tip, point))
    return Chart(
        title="AUROC by sparsity",
        description=(
            "The AUROC of each set (thin lines) and its mean over the sets (thick line) at each "
            "sparsity. The tables have the same figures."
        ),
        x_title="sparsity (0 prunes nothing)",
        y_title="AUROC, %",
        x_ticks=x.ticks(5),
        y_ticks=y.ticks(4, factor=100),
        lines=tuple(lines),
        marks=tuple(marks),
        level=Tick(x(path.deployed), f"deployed: {path.deployed:g}"),
    )


def _polyline(x: _Scale, y: _Scale, values: Iterable[tuple[float, float]]) -> str:
    return "M" + " ".join(f"{x(first):g},{y(second):g}" for first, second in values)


def _steps(x: _Scale, y: _Scale, edges: Sequence[float], heights: Sequence[float]) -> str:
    """Return the closed outline of a histogram."""
    outline = [f"M{x(edges[0]):g},{y(0.0):g}"]
    outline += [f"V{y(height):g}H{x(edges[place + 1]):g}" for place, height in enumerate(heights)]
    return "".join([*outline, f"V{y(0.0):g}Z"])


def _shortened(name: str) -> str:
    return name if len(name) <= 24 else f"{name[:23]}…"
