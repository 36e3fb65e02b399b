"""Labelled tables of pictures: chips against modalities, with colour bars, class keys and units."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from multimae_eo.errors import ConfigError
from multimae_eo.files import write_file
from multimae_eo.modality import Modality
from multimae_eo.reports.panels import (
    PANELS,
    Panel,
    PanelKind,
    Ranges,
    panel,
    panel_kinds,
    panel_title,
    ranges_of,
)
from multimae_eo.reports.pictures import describe
from multimae_eo.reports.views import ChipView

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 120
_INPUT_BLUE, _INK, _SOFT = "#0072B2", "#1c1f24", "#5c636e"
# Everything below is in inches: a figure is laid out like a page, then drawn once.
_PANEL, _GAP, _GROUP_GAP, _MARGIN = 1.6, 0.1, 0.3, 0.2
_ROW_LABEL, _TITLES, _GROUP_HEAD, _KEY_ROW = 0.24, 0.22, 0.46, 0.22
_CAPTION, _CAPTION_LINE = 0.1, 0.155
_TEXT = 8.0


@dataclass(frozen=True, kw_only=True)
class _ColumnGroup:
    """Adjoining columns under one heading."""

    head: str
    description: str
    titles: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _PanelTable:
    """What to draw: ``cells[row][column]``; a row's ``labels`` may have a second, softer part."""

    title: str
    groups: tuple[_ColumnGroup, ...]
    labels: tuple[tuple[str, str], ...]
    cells: tuple[tuple[Panel | None, ...], ...]
    class_keys: tuple[tuple[Modality, tuple[int, ...]], ...]


def reconstruction_figure(
    views: Sequence[ChipView], *, title: str = "", panels: Sequence[PanelKind] = PANELS
) -> Figure:
    """A row per chip; a group of columns per modality: the inputs, then what was predicted.

    panels: which of ``PANELS`` to show.
    """
    names = _shown(views, panels)
    kinds = {
        n: [k for k in panels if any(k in panel_kinds(v, n, panels) for v in views)] for n in names
    }
    ranges = {n: ranges_of(views, views[0].modalities[n]) for n in names}
    modalities = views[0].modalities
    table = _PanelTable(
        title=title,
        groups=tuple(
            _ColumnGroup(
                head=n,
                description=describe(modalities[n]),
                titles=tuple(panel_title(modalities[n], k) for k in kinds[n]),
            )
            for n in names
        ),
        labels=tuple((v.key, "") for v in views),
        cells=tuple(
            tuple(panel(v, n, k, ranges[n]) for n in names for k in kinds[n]) for v in views
        ),
        class_keys=_class_keys(views, names),
    )
    return _draw(table)


def chip_figure(view: ChipView, *, title: str = "", panels: Sequence[PanelKind] = PANELS) -> Figure:
    """One chip: a row per predicted modality, a column per kind of panel; below, what was given."""
    names = _shown([view], panels)
    ranges = {n: ranges_of([view], view.modalities[n]) for n in names}
    description = {n: describe(view.modalities[n]) for n in names}
    predicted = [n for n in names if n in view.mean]
    have = {n: panel_kinds(view, n, panels) for n in predicted}
    for name in predicted:
        if view.given_in_full(name):  # shown, framed, in the column of truths
            have[name] = ["truth" if k == "input" else k for k in have[name]]
        if name in view.truth and view.given_in_full(name):
            description[name] = ", ".join(filter(None, (description[name], "given to the model")))
    columns = [k for k in panels if any(k in have[n] for n in predicted)]
    titles = []
    for kind in columns:
        kind_titles = {panel_title(view.modalities[n], kind) for n in predicted if kind in have[n]}
        titles.append(kind_titles.pop() if len(kind_titles) == 1 else _general(kind))
    rows = [
        tuple(_cell(view, n, k, ranges[n]) if k in have[n] else None for k in columns)
        for n in predicted
    ]
    labels = [(n, description[n]) for n in predicted]
    given = [n for n in names if n not in predicted]
    across = len(columns) or len(given)
    for start in range(0, len(given), across):
        shown = [
            replace(_cell(view, n, "input", ranges[n]), note=_fitting(f"{n}: {description[n]}", n))
            for n in given[start : start + across]
        ]
        rows.append((*shown, *[None] * (across - len(shown))))
        labels.append(("given to the model" if start == 0 else "", ""))
    return _draw(
        _PanelTable(
            title=title or view.key,
            groups=(_ColumnGroup(head="", description="", titles=tuple(titles or [""] * across)),),
            labels=tuple(labels),
            cells=tuple(rows),
            class_keys=_class_keys([view], names),
        )
    )


def _cell(view: ChipView, name: str, kind: PanelKind, ranges: Ranges) -> Panel:
    drawn = panel(view, name, kind, ranges)
    given = kind == "truth" and view.given_in_full(name) and name in view.truth
    return replace(drawn, framed=True) if given else drawn


def figure_png(figure: Figure) -> bytes:
    """A figure as PNG bytes."""
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=figure.dpi)
    return data.getvalue()


def save_figure(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG, whole or not at all; raises OutputError."""
    return write_file(path, figure_png(figure))


def _general(kind: PanelKind) -> str:
    return "uncertainty" if kind == "std" else str(kind)


def _shown(views: Sequence[ChipView], panels: Sequence[PanelKind]) -> list[str]:
    """Modalities with anything to show: inputs first, each in the set's order."""
    if not views:
        raise ConfigError("a figure needs at least one chip")
    names = [n for n in views[0].modalities if any(panel_kinds(v, n, panels) for v in views)]
    if not names:
        raise ConfigError(f"nothing to draw: no modality has any of the panels {', '.join(panels)}")
    return sorted(names, key=lambda n: n not in views[0].inputs)


def _class_keys(
    views: Sequence[ChipView], names: Sequence[str]
) -> tuple[tuple[Modality, tuple[int, ...]], ...]:
    """Each shown class map with the classes that occur in it or in its prediction."""
    keys = []
    for name in names:
        modality = views[0].modalities[name]
        if not modality.categorical:
            continue
        maps = [v.truth[name][v.valid[name]] for v in views if name in v.truth]
        maps += [v.predicted(name).ravel() for v in views if name in v.mean]
        occurring = np.unique(np.concatenate(maps)).tolist() if maps else []
        keys.append((modality, tuple(i for i in occurring if i >= 0)))
    return tuple(keys)


def _width(words: str, size: float = _TEXT, *, regular: bool = False) -> float:
    """Width of a line of text in inches, in bold unless ``regular``."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(size=size, weight="normal" if regular else "bold")
    return float(text_to_path.get_text_width_height_descent(words, font, ismath=False)[0]) / 72


def _fitting(words: str, shorter: str) -> str:
    """The longer text where it fits under a panel."""
    return words if _width(words, regular=True) <= _PANEL else shorter


@dataclass
class _Page:
    """Draws on a figure in inches from its upper left corner."""

    figure: Any
    width: float
    height: float

    def text(self, x: float, y: float, words: str, **style: Any) -> None:
        # Names and keys are the user's: a dollar sign in them is no formula.
        style = {"color": _INK, "fontsize": _TEXT, "parse_math": False, **style}
        self.figure.text(x / self.width, 1 - y / self.height, words, **style)

    def image(self, x: float, y: float, size: tuple[float, float], pixels: Any) -> Any:
        """Draw an image over the rectangle of ``size``; returns its frame.

        Without ``Axes``: their ticks and labels, of which a figure of panels needs none, take most
        of the time of drawing one.
        """
        from matplotlib.image import BboxImage
        from matplotlib.patches import Rectangle
        from matplotlib.transforms import Bbox, TransformedBbox

        across, down = size[0] / self.width, size[1] / self.height
        left, bottom = x / self.width, 1 - y / self.height - down
        box = TransformedBbox(
            Bbox.from_bounds(left, bottom, across, down), self.figure.transSubfigure
        )
        image = BboxImage(box, origin="upper")
        image.set_data(pixels)
        self.figure.add_artist(image)
        frame = Rectangle((left, bottom), across, down, fill=False, edgecolor="#b9bec6", lw=0.6)
        self.figure.add_artist(frame)
        return frame

    def rule(self, x: float, y: float, length: float) -> None:
        from matplotlib.lines import Line2D

        ends = [x / self.width, (x + length) / self.width], [1 - y / self.height] * 2
        self.figure.add_artist(Line2D(*ends, color="#b9bec6", linewidth=0.8))


def _draw(table: _PanelTable) -> Figure:
    from matplotlib.figure import Figure as NewFigure

    starts = _column_starts(table)
    width = max(starts[-1] + _PANEL + _MARGIN, 4.2)
    key_lines = _class_key_lines(table, width)
    grouped = any(g.head for g in table.groups)
    top = _MARGIN + (0.3 if table.title else 0) + (_GROUP_HEAD if grouped else 0) + _TITLES
    rows = [top, *(_row_height(cells) for cells in table.cells)]
    body = sum(rows)
    height = body + _KEY_ROW * len(key_lines) + 0.12
    figure = NewFigure(figsize=(width, height), dpi=DPI, facecolor="white")
    page = _Page(figure, width, height)
    if table.title:
        page.text(_MARGIN, _MARGIN + 0.1, table.title, fontsize=11, fontweight="bold")
    _draw_heads(page, table, starts, top)
    for row, (cells, (label, description)) in enumerate(
        zip(table.cells, table.labels, strict=True)
    ):
        y = sum(rows[: row + 1])
        framed = all(c is None or c.framed for c in cells)
        colour = _INPUT_BLUE if framed else _INK
        page.text(_MARGIN, y + 0.17, label, fontsize=8.5, fontweight="bold", color=colour)
        if description:
            page.text(_MARGIN + _width(label, 8.5) + 0.12, y + 0.17, description, color=_SOFT)
        for x, cell in zip(starts, cells, strict=True):
            if cell is not None:
                _draw_panel(page, x, y + _ROW_LABEL, cell)
    _draw_class_keys(page, key_lines, body)
    return figure


def _row_height(cells: Sequence[Panel | None]) -> float:
    lines = max((c.bar is not None) + bool(c.note) for c in cells if c is not None)
    return _ROW_LABEL + _PANEL + _CAPTION + lines * _CAPTION_LINE


def _column_starts(table: _PanelTable) -> list[float]:
    starts, x = [], _MARGIN
    for group in table.groups:
        # A heading wider than its columns pushes the next group away rather than overlapping.
        room = max(_width(group.description, regular=True), _width(group.head, 10)) + _GAP
        for _ in group.titles:
            starts.append(x)
            x += _PANEL + _GAP
        x += _GROUP_GAP - _GAP + max(0.0, room - len(group.titles) * (_PANEL + _GAP))
    return starts


def _draw_heads(page: _Page, table: _PanelTable, starts: Sequence[float], top: float) -> None:
    column = 0
    for group in table.groups:
        x, y = starts[column], top - _TITLES
        if group.head:
            length = starts[column + len(group.titles) - 1] + _PANEL - x
            page.text(x, y - 0.27, group.head, fontsize=10, fontweight="bold")
            page.text(x, y - 0.11, group.description, color=_SOFT)
            page.rule(x, y - 0.03, length)
        for title in group.titles:
            blue = {"color": _INPUT_BLUE, "fontweight": "bold"} if title == "input" else {}
            page.text(starts[column], y + 0.16, title, fontsize=8.5, **blue)
            column += 1


def _draw_panel(page: _Page, x: float, y: float, cell: Panel) -> None:
    frame = page.image(x, y, (_PANEL, _PANEL), cell.image)
    if cell.framed:
        frame.set(edgecolor=_INPUT_BLUE, linewidth=2.0)
    below = y + _PANEL + 0.155
    if cell.bar is not None:
        left, right = (_width(t, regular=True) + 0.05 for t in (cell.bar.low, cell.bar.high))
        page.text(x, below, cell.bar.low)
        page.text(x + _PANEL, below, cell.bar.high, ha="right")
        page.image(x + left, below - 0.085, (_PANEL - left - right, 0.085), cell.bar.colours[None])
        below += _CAPTION_LINE
    if cell.note:
        page.text(x, below, cell.note, color=_SOFT)


def _class_key_lines(table: _PanelTable, width: float) -> list[list[tuple[str, object]]]:
    """Lines of (text, colour) entries wrapped to the page; a colour of None makes a heading."""
    lines: list[list[tuple[str, object]]] = []
    for modality, classes in table.class_keys:
        entries = [
            (textwrap.shorten(c.name, 30, placeholder="…"), c.color) for c in modality.classes
        ]
        line: list[tuple[str, object]] = [(modality.name, None)]
        used = _MARGIN + _entry_width(line[0][0])
        for entry in (entries[i] for i in classes):
            if used + _entry_width(entry[0]) > width - _MARGIN:
                lines.append(line)
                line, used = [], _MARGIN
            line.append(entry)
            used += _entry_width(entry[0])
        lines.append(line)
    return lines


def _entry_width(words: str) -> float:
    return 0.37 + _width(words)


def _draw_class_keys(
    page: _Page, lines: Sequence[Sequence[tuple[str, object]]], top: float
) -> None:
    for number, line in enumerate(lines):
        x, y = _MARGIN, top + number * _KEY_ROW + 0.14
        for words, colour in line:
            if colour is None:
                page.text(x, y, words, fontweight="bold")
            else:
                page.image(x, y - 0.11, (0.14, 0.14), np.full((1, 1, 3), colour, np.uint8))
                page.text(x + 0.19, y, words)
            x += _entry_width(words)
