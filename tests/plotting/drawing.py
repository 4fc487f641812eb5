"""What the tests of the displays share."""


def legend_of(ax):
    legend = ax.get_legend()
    return legend.get_title().get_text(), [each.get_text() for each in legend.get_texts()]


def drawn(display, ax):
    """Draw everything, which fails on what cannot be laid out, and check where it went."""
    from matplotlib import pyplot as plt

    display.figure_.draw_without_rendering()
    assert display.ax_ is ax
    assert display.figure_ is ax.figure
    assert not plt.get_fignums()
    return display
