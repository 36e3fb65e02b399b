"""Draws the figures of docs/method.md with the package's own masking: ``make reference``."""

from __future__ import annotations

from html import escape
from pathlib import Path

import torch

from multimae_eo.network.masking import sample_states
from multimae_eo.network.tokens import TokenLayout, TokenState

HERE = Path(__file__).resolve().parent
COLOURS = {
    TokenState.ABSENT: "#ffffff",
    TokenState.VISIBLE: "#0072B2",
    TokenState.MASKED: "#d5dae1",
}
HUES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
INK, PALE = "#24292f", "#8c959f"
CHIPS, VISIBLE, SIDE = 5, 28, 6


def draw_states() -> torch.Tensor:
    """States of one batch under each alpha: int8 (3, B, L). The third chip lacks the second
    modality."""
    layout = TokenLayout(dict.fromkeys(("optical", "radar", "relief", "classes"), (SIDE, SIDE)))
    observed = torch.ones(CHIPS, layout.count, dtype=torch.bool)
    observed[2, layout.slices["radar"]] = False
    drawn = [
        sample_states(
            layout,
            observed,
            batch_size=CHIPS,
            num_visible_tokens=VISIBLE,
            alpha=alpha,
            generator=torch.Generator().manual_seed(4),
        )
        for alpha in (0.1, 1.0, 10.0)
    ]
    return torch.stack(drawn)


def states_figure(states: torch.Tensor) -> str:
    """An SVG: a column per alpha, a row per chip, a grid of tokens per modality."""
    cell, gap, left, top = 7, 8, 46, 58
    grid = SIDE * cell
    panel = 4 * (grid + gap) + 26
    parts = []
    for p, alpha in enumerate(("0.1", "1", "10")):
        x0 = left + p * panel
        parts.append(
            _text(x0 + 2 * (grid + gap) - gap / 2, 20, f"α = {alpha}", size=14, weight=600)
        )
        for m, name in enumerate(("optical", "radar", "relief", "classes")):
            x = x0 + m * (grid + gap)
            parts.append(_text(x + grid / 2, 44, name, size=10, colour=PALE))
            for b in range(CHIPS):
                y = top + b * (grid + gap)
                part = states[p, b, m * SIDE * SIDE : (m + 1) * SIDE * SIDE].tolist()
                for i, state in enumerate(part):
                    parts.append(
                        _box(
                            x + i % SIDE * cell, y + i // SIDE * cell, cell - 1, cell - 1,
                            COLOURS[TokenState(state)], PALE if state == 0 else None,
                        )
                    )  # fmt: skip
    for b, y in enumerate(range(top, top + CHIPS * (grid + gap), grid + gap)):
        parts += [_text(20, y + grid / 2 + 4, f"chip {b + 1}", size=10)]
    y = top + CHIPS * (grid + gap) + 12
    for i, state in enumerate(COLOURS):
        x = left + i * 100
        outline = PALE if state == TokenState.ABSENT else None
        parts += [_box(x, y - 9, 10, 10, COLOURS[state], outline)]
        parts += [_text(x + 16, y, state.name.lower(), size=11, anchor="start")]
    return _svg(left + 3 * panel, y + 14, parts)


def gather_figure() -> str:
    """An SVG: visible tokens of three chips, embedded by modality, packed as one sequence."""
    seen = ("0110 1000 0011", "1010 0111 ....", "0001 1010 1001")
    cell, parts = 15, []
    queues: list[list[tuple[int, int]]] = [[], [], []]
    packed: list[list[tuple[int, int]]] = [[], [], []]
    for b, row in enumerate(seen):
        parts.append(_text(28, 70 + b * 54, f"chip {b + 1}", size=11))
        for m, group in enumerate(row.split()):
            for i, mark in enumerate(group):
                x, y = 58 + m * (4 * cell + 10) + i * cell, 58 + b * 54
                fill = HUES[m] if mark == "1" else "#ffffff" if mark == "." else "#d5dae1"
                parts.append(_box(x, y, cell - 2, 17, fill, PALE if mark == "." else None))
                if mark == "1":
                    queues[m].append((b, i))
                    packed[b].append((m, i))
    for m, queue in enumerate(queues):
        y = 52 + m * 54
        for k, (b, _) in enumerate(queue):
            parts.append(_box(330 + k * cell, y, cell - 2, 17, HUES[m]))
            parts.append(_text(336.5 + k * cell, y + 13, str(b + 1), size=10, colour="#ffffff"))
        parts.append(_text(330, y + 32, f"× W of {'ABC'[m]}, + positions", anchor="start", size=10))
    for b, tokens in enumerate(packed):
        y = 58 + b * 54
        for k, (m, _) in enumerate(tokens):
            parts.append(_box(520 + k * (cell + 2), y, cell, 17, HUES[m]))
        parts.append(_box(520 + len(tokens) * (cell + 2), y, cell, 17, INK))
    parts.append(_text(155, 28, "tokens: three modalities A, B, C", size=12, weight=600))
    parts.append(_text(390, 28, "visible patches, by modality", size=12, weight=600))
    parts.append(_text(570, 28, "K + 1 per chip", size=12, weight=600))
    arrow = f'122h18m-6 -5l6 5l-6 5" stroke="{INK}" fill="none"/>'
    parts += [f'<path d="M{x} {arrow}' for x in (292, 482)]
    told = "grey: masked, not computed · outlined: absent · black: the global token · K = 5"
    parts.append(_text(20, 222, told, anchor="start", size=10, colour="#57606a"))
    return _svg(650, 236, parts)


def _box(
    x: float, y: float, width: float, height: float, fill: str, outline: str | None = None
) -> str:
    line = f' stroke="{outline}" stroke-width="0.5"' if outline else ""
    return f'<rect x="{x:g}" y="{y:g}" width="{width}" height="{height}" fill="{fill}"{line}/>'


def _text(
    x: float, y: float, text: str, *, size: int = 11, anchor: str = "middle", weight: int = 400,
    colour: str = INK,
) -> str:  # fmt: skip
    return (
        f'<text x="{x:g}" y="{y:g}" font-size="{size}" text-anchor="{anchor}" '
        f'font-weight="{weight}" fill="{colour}">{escape(text)}</text>'
    )


def _svg(width: float, height: float, parts: list[str]) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" '
        f'width="{width:g}" height="{height:g}" font-family="system-ui, sans-serif">'
    )
    back = f'<rect width="{width:g}" height="{height:g}" fill="#ffffff"/>'
    return "\n".join([head, back, *parts, "</svg>\n"])


def figures() -> dict[str, str]:
    """Each file's name and SVG."""
    return {"states.svg": states_figure(draw_states()), "gather.svg": gather_figure()}


if __name__ == "__main__":
    for name, text in figures().items():
        (HERE / name).write_text(text, encoding="utf-8")
