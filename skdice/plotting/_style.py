"""What the displays look like, and where they draw. Sets nothing outside of the given axes."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle
from typing import Any

from skdice._compat.extras import import_extra

import_extra("matplotlib", "plot")
matplotlib_axes = import_extra("matplotlib.axes", "plot")
matplotlib_figure = import_extra("matplotlib.figure", "plot")
font_manager = import_extra("matplotlib.font_manager", "plot")

# Okabe & Ito: distinct to colour-blind eyes. The line styles tell them apart in grey; as there
# are more of those, a pair of both repeats only after 42.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
STYLES: tuple[Any, ...] = (
    "-",
    "--",
    ":",
    "-.",
    (0, (8, 2)),
    (0, (3, 1, 1, 1, 1, 1)),
    (0, (1, 4)),
)
LEGEND_SIZE = "small"
# Over the legends of displays that compare sets.
RATES = "FPR95 / AUROC, %"


def line_styles() -> Iterator[dict[str, Any]]:
    """Yield colour and line style of one set after the other; the first is the most solid."""
    for colour, style in zip(cycle(COLOURS), cycle(STYLES), strict=False):
        yield {"color": colour, "linestyle": style}


def plain(name: str) -> str:
    """Return a name such that matplotlib shows it as it is.

    Two dollar signs would enclose a formula; a leading underscore would keep a name out of
    the legend.
    """
    shown = str(name).replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown


def rates_label(name: str, fpr: float, auroc: float) -> str:
    """Return the entry of a set in a legend entitled `RATES`."""
    return f"{plain(name)}: {100 * fpr:.1f} / {100 * auroc:.1f}"


def obtain_axes(ax: Any, figsize: tuple[float, float] | None = None) -> tuple[Any, Any]:
    """Return the axes given, or those of a new pyplot figure, and their figure.

    Raises
    ------
    TypeError
        `ax` is neither axes of matplotlib nor None.
    """
    if ax is None:
        # As in scikit-learn: a notebook shows it.
        pyplot = import_extra("matplotlib.pyplot", "plot")
        figure, ax = pyplot.subplots(figsize=figsize, layout="constrained")
        return ax, figure
    if not isinstance(ax, matplotlib_axes.Axes):
        raise TypeError(
            f"ax is an instance of {type(ax).__name__}, expected one matplotlib Axes or None"
        )
    return ax, ax.figure


def bare_figure(width: float, height: float) -> Any:
    """Return a figure of so many inches that pyplot does not know of."""
    return matplotlib_figure.Figure(figsize=(width, height), layout="constrained")


def open_frame(ax: Any) -> None:
    """Hide the spines that bear no scale."""
    ax.spines[["top", "right"]].set_visible(False)


def legend_above(ax: Any, peak: float, title: str | None) -> float:
    """Draw the legend in room made for it above the data, and return the share below it.

    Parameters
    ----------
    ax : matplotlib Axes
        With labelled artists, from zero upwards.
    peak : float
        The highest of the data.
    title : str or None
        Of the legend.
    """
    size = font_manager.FontProperties(size=LEGEND_SIZE).get_size_in_points()
    extent, points_per_pixel = ax.get_window_extent(), 72 / ax.figure.dpi
    handles, labels = ax.get_legend_handles_labels()
    # The width of a letter is about 0.55 of the size, that of a key and the gaps four sizes.
    width = max(map(len, labels)) * 0.55 * size + 4 * size
    n_columns = max(1, min(len(labels), 3, int(extent.width * points_per_pixel / width)))
    n_lines = -(-len(labels) // n_columns) + (title is not None)
    room = (1.45 * n_lines + 1.2) * size / (extent.height * points_per_pixel)
    share = float(1 - min(room, 0.75))
    ax.set_ylim(0, 1.05 * peak / share)
    ax.legend(
        handles,
        labels,
        loc="upper left",
        ncols=n_columns,
        fontsize=LEGEND_SIZE,
        title=title,
        title_fontsize=LEGEND_SIZE,
        alignment="left",
        frameon=False,
        borderaxespad=0.2,
    )
    return share
