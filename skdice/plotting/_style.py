"""The look of the displays, and their axes. Nothing outside of the given axes is changed."""

from collections.abc import Iterator
from itertools import cycle
from typing import Any, Self

from skdice._compat.extras import import_extra

import_extra("matplotlib", "plot")
matplotlib_axes = import_extra("matplotlib.axes", "plot")
matplotlib_figure = import_extra("matplotlib.figure", "plot")
font_manager = import_extra("matplotlib.font_manager", "plot")

# The colours of Okabe & Ito are distinct to colour-blind eyes, and the line styles are distinct in
# grey. Their numbers have no common divisor, so a pair of both repeats only after 42 lines.
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


def line_styles() -> Iterator[dict[str, Any]]:
    """Yield the colour and line style of each set in turn; the first line is solid."""
    for colour, style in zip(cycle(COLOURS), cycle(STYLES), strict=False):
        yield {"color": colour, "linestyle": style}


def plain(name: str) -> str:
    """Return a name in the form that makes matplotlib show it unchanged.

    Matplotlib takes text between two dollar signs for a formula, and leaves names with a
    leading underscore out of the legend.
    """
    shown = str(name).replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown


def obtain_axes(ax: Any, figsize: tuple[float, float] | None = None) -> tuple[Any, Any]:
    """Return the given axes or those of a new pyplot figure, and their figure."""
    if ax is None:
        # A figure of pyplot, as in scikit-learn, is shown by a notebook without further code.
        pyplot = import_extra("matplotlib.pyplot", "plot")
        figure, ax = pyplot.subplots(figsize=figsize, layout="constrained")
        return ax, figure
    if not isinstance(ax, matplotlib_axes.Axes):
        raise TypeError(
            f"ax is an instance of {type(ax).__name__}, expected one matplotlib Axes or None"
        )
    return ax, ax.figure


class DisplayMixin:
    """What the displays share: axes that are given or made, and drawing on them.

    A subclass draws on `ax_` by `_draw`.
    """

    # Size of a new figure in inches; None takes that of matplotlib.
    _figsize: tuple[float, float] | None = None

    def plot(self, ax: Any = None) -> Self:
        """Draw the display.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            The axes to draw on; None makes a figure.

        Returns
        -------
        display
            The display itself.
        """
        self.ax_, self.figure_ = obtain_axes(ax, self._figsize)
        hide_open_spines(self.ax_)
        self._draw()
        return self

    def _draw(self) -> None:
        raise NotImplementedError


def bare_figure(width: float, height: float) -> Any:
    """Return a figure of a size in inches, without pyplot, so that no window is opened."""
    return matplotlib_figure.Figure(figsize=(width, height), layout="constrained")


def hide_open_spines(ax: Any) -> None:
    """Hide the upper and the right spine, which bear no scale."""
    ax.spines[["top", "right"]].set_visible(False)


def draw_legend(ax: Any, title: str | None, **options: Any) -> None:
    """Draw the legend inside the axes; the options are those of ``Axes.legend``."""
    ax.legend(
        title=title,
        fontsize=LEGEND_SIZE,
        title_fontsize=LEGEND_SIZE,
        alignment="left",
        edgecolor="none",
        **options,
    )


def legend_above(ax: Any, peak: float, title: str) -> float:
    """Draw the legend above the data, whose highest value is the peak, in axes made taller for it.

    Return the share of the height of the axes that lies below the legend.
    """
    size = font_manager.FontProperties(size=LEGEND_SIZE).get_size_in_points()
    extent, points_per_pixel = ax.get_window_extent(), 72 / ax.figure.dpi
    handles, labels = ax.get_legend_handles_labels()
    # A letter is about 0.55 of the font size wide; a key and the gaps are about four sizes.
    width = max(map(len, labels)) * 0.55 * size + 4 * size
    n_columns = max(1, min(len(labels), 3, int(extent.width * points_per_pixel / width)))
    n_lines = -(-len(labels) // n_columns) + 1  # the title has a line of its own
    room = (1.45 * n_lines + 1.2) * size / (extent.height * points_per_pixel)
    share = float(1 - min(room, 0.75))
    ax.set_ylim(0, 1.05 * peak / share)
    draw_legend(
        ax,
        title,
        handles=handles,
        labels=labels,
        loc="upper left",
        ncols=n_columns,
        frameon=False,
        borderaxespad=0.2,
    )
    return share
