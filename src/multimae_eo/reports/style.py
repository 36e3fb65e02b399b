"""How all charts look: small, without a display, in Okabe and Ito's colour-blind safe hues."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypedDict

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, VERMILION, GREY = "#0072B2", "#D55E00", "#5c636e"
DASHES = (0, (4, 3))


class Marked(TypedDict):
    """Colour, marker and line style of a line: distinct in greyscale, too."""

    color: str
    marker: str
    linestyle: str


LINES: tuple[Marked, ...] = (
    {"color": BLUE, "marker": "o", "linestyle": "-"},
    {"color": VERMILION, "marker": "s", "linestyle": "--"},
    {"color": GREY, "marker": "^", "linestyle": ":"},
    {"color": "#009E73", "marker": "D", "linestyle": "-."},
    {"color": "#CC79A7", "marker": "v", "linestyle": "-"},
    {"color": "#E69F00", "marker": "P", "linestyle": "--"},
    {"color": "#56B4E9", "marker": "X", "linestyle": ":"},
    {"color": "#1d2026", "marker": "<", "linestyle": "-."},
)


def new_figure(width: float, height: float, *, pad: float = 0.08, dpi: int = 120) -> Figure:
    """An empty white figure of ``width`` × ``height`` inches that lays itself out."""
    from matplotlib.figure import Figure as NewFigure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=pad, h_pad=pad)
    return NewFigure(figsize=(width, height), dpi=dpi, layout=layout, facecolor="white")


def finish_axes(axes: Axes, title: str, *, grid: Literal["both", "x", "y"] | None) -> None:
    """Title, tick labels, grid and spines of a chart."""
    axes.set_title(title, loc="left", fontsize=10, fontweight="bold", parse_math=False)
    axes.tick_params(labelsize=8.5, colors="#3a404a")
    if grid:
        axes.grid(axis=grid, color="#e3e6ea", linewidth=0.7)
        axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#b9bec6")


def hide_ticks(axes: Axes) -> None:
    """Leave nothing of an image's axes but its labels."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
