"""Self-contained HTML reports: one file, no network, readable on a telephone and in the dark."""

from __future__ import annotations

import base64
import html
import io
import numbers
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from multimae_eo.errors import FormatError
from multimae_eo.files import require_regular, write_file
from multimae_eo.reports.tables import format_column, format_value

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TYPES = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".svg": "svg+xml", ".webp": "webp"}

_CSS = """
:root{color-scheme:light dark;--page:#f6f7f8;--card:#fff;--ink:#1c1f24;--soft:#5c636e;
--line:#dfe2e6;--accent:#0b62a3;--code:#f0f2f4}
@media (prefers-color-scheme:dark){:root{--page:#15181c;--card:#1d2126;--ink:#e6e8eb;
--soft:#a0a7b1;--line:#343a42;--accent:#79b8ee;--code:#262b31}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:16px/1.55 system-ui,-apple-system,
"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;-webkit-text-size-adjust:100%}
main{max-width:1560px;margin:0 auto;padding:clamp(16px,3vw,48px)}
h1{font-size:clamp(1.5rem,1.2rem + 1.4vw,2.2rem);line-height:1.2;margin:0;letter-spacing:-.01em;
overflow-wrap:anywhere}
.lead{color:var(--soft);margin:.4rem 0 0;overflow-wrap:anywhere}
h2{font-size:1.25rem;line-height:1.3;margin:2.4rem 0 .8rem}
p{max-width:72ch;margin:.6rem 0;overflow-wrap:anywhere}
.facts{display:grid;grid-template-columns:repeat(auto-fit,minmax(130px,1fr));gap:12px;
margin:1.6rem 0 0;padding:0}
.facts div{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:12px 14px}
.facts dt{color:var(--soft);font-size:.84rem}
.facts dd{margin:2px 0 0;font-size:1.3rem;font-weight:600;font-variant-numeric:tabular-nums;
overflow-wrap:anywhere}
figure{margin:1rem 0;background:var(--card);border:1px solid var(--line);border-radius:10px;
padding:14px;min-width:0}
figure.bare{background:none;border:0;padding:0}
figcaption{color:var(--soft);font-size:.9rem;margin-top:8px;overflow-wrap:anywhere}
.scroll{overflow-x:auto;-webkit-overflow-scrolling:touch}
.scroll:focus-visible{outline:2px solid var(--accent);outline-offset:2px}
img{display:block;max-width:100%;height:auto;background:#fff;border-radius:4px}
.gallery{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,380px),1fr));gap:14px}
.gallery figure{margin:0;max-width:680px}
.gallery img{width:100%;min-width:0!important}
table{border-collapse:collapse;width:100%;background:var(--card);font-size:.95rem;
font-variant-numeric:tabular-nums}
.frame{border:1px solid var(--line);border-radius:10px}
th,td{padding:8px 14px;text-align:left;border-bottom:1px solid var(--line);white-space:nowrap}
td.wide{white-space:normal;min-width:18ch}
tr:last-child td{border-bottom:0}
th{color:var(--soft);font-weight:600;font-size:.86rem}
.number{text-align:right}
details{margin:1rem 0;background:var(--card);border:1px solid var(--line);border-radius:10px;
padding:10px 16px}
summary{cursor:pointer;font-weight:600}
pre{background:var(--code);border-radius:6px;padding:12px 14px;overflow-x:auto;font-size:.86rem;
line-height:1.45}
footer{color:var(--soft);font-size:.84rem;margin-top:3rem}
@media print{body{background:#fff}figure,table{break-inside:avoid}}
"""


class Report:
    """An HTML page built from the top down; every text given is escaped.

    >>> Report("Elevation from radar").text("Three chips.").write(path)  # doctest: +SKIP
    """

    def __init__(self, title: str, lead: str = "") -> None:
        self.title = title
        self._lead = f'<p class="lead">{html.escape(lead)}</p>' if lead else ""
        self._parts: list[str] = []

    def heading(self, words: str) -> Report:
        """Start a section."""
        return self._add(f"<h2>{html.escape(words)}</h2>")

    def text(self, *paragraphs: str) -> Report:
        """Add paragraphs."""
        return self._add("".join(f"<p>{html.escape(p)}</p>" for p in paragraphs))

    def facts(self, facts: Mapping[str, object]) -> Report:
        """Add a row of single numbers or words, each under its name."""
        cells = "".join(
            f"<div><dt>{html.escape(k)}</dt><dd>{html.escape(format_value(v))}</dd></div>"
            for k, v in facts.items()
        )
        return self._add(f'<dl class="facts">{cells}</dl>')

    def table(self, rows: Iterable[Mapping[str, object]], caption: str = "") -> Report:
        """Add a table: a column per key, in order of first appearance. Numbers go to the right."""
        listed = list(rows)
        columns = list(dict.fromkeys(k for row in listed for k in row))
        values = {c: [row.get(c) for row in listed] for c in columns}
        style = {c: _column_class(v) for c, v in values.items()}
        head = "".join(f'<th scope="col"{style[c]}>{html.escape(c)}</th>' for c in columns)
        cells = {c: format_column(v) for c, v in values.items()}
        body = "".join(
            "<tr>"
            + "".join(f"<td{style[c]}>{html.escape(cells[c][i])}</td>" for c in columns)
            + "</tr>"
            for i in range(len(listed))
        )
        name = html.escape(caption or "table", quote=True)
        return self._add(
            f'<figure class="bare"><div class="scroll frame" tabindex="0" role="region" '
            f'aria-label="{name}"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody>'
            f"</table></div>{_caption(caption)}</figure>"
        )

    def picture(self, picture: Path | Figure, caption: str = "", alt: str = "") -> Report:
        """Add a picture at its own size, scrolling where the screen is narrower.

        Raises FormatError for a file that is missing or no picture.
        """
        name = html.escape(alt or caption or "picture", quote=True)
        return self._add(
            f'<figure><div class="scroll" tabindex="0" role="region" aria-label="{name}">'
            f"{_image(picture, alt or caption)}</div>{_caption(caption)}</figure>"
        )

    def gallery(self, pictures: Iterable[tuple[Path | Figure, str, str]]) -> Report:
        """Add small pictures side by side as the screen allows: (picture, caption, alt) each."""
        cells = "".join(
            f"<figure>{_image(picture, alt or caption)}{_caption(caption)}</figure>"
            for picture, caption, alt in pictures
        )
        return self._add(f'<div class="gallery">{cells}</div>') if cells else self

    def code(self, words: str, caption: str) -> Report:
        """Add preformatted text, folded under its caption."""
        return self._add(
            f"<details><summary>{html.escape(caption)}</summary>"
            f'<pre tabindex="0">{html.escape(words)}</pre></details>'
        )

    def html(self) -> str:
        """The page as a complete HTML document."""
        title = html.escape(self.title)
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f'<link rel="icon" href="data:,"><title>{title}</title><style>{_CSS}</style></head>'
            f"<body><main><header><h1>{title}</h1>{self._lead}</header>\n"
            + "\n".join(self._parts)
            + "\n<footer>Written by multimae-eo.</footer></main></body></html>\n"
        )

    def write(self, path: Path) -> Path:
        """Write the page atomically; raises OutputError."""
        return write_file(path, self.html().encode())

    def _add(self, part: str) -> Report:
        self._parts.append(part)
        return self


def _column_class(values: Sequence[object]) -> str:
    present = [v for v in values if v is not None]
    if present and all(isinstance(v, numbers.Real) and not isinstance(v, bool) for v in present):
        return ' class="number"'
    return ' class="wide"' if any(len(str(v)) > 40 for v in present) else ""


def _caption(caption: str) -> str:
    return f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""


def _image(picture: Path | Figure, alt: str) -> str:
    kind, data, size = _picture_bytes(picture)
    encoded = base64.b64encode(data).decode()
    return (
        f'<img src="data:image/{kind};base64,{encoded}" alt="{html.escape(alt, quote=True)}"{size}>'
    )


def _picture_bytes(picture: Path | Figure) -> tuple[str, bytes, str]:
    """MIME subtype, bytes, and width and height attributes."""
    if not isinstance(picture, Path):
        data = io.BytesIO()
        picture.savefig(data, format="svg", metadata={"Date": None})
        return "svg+xml", data.getvalue(), ""
    kind = _TYPES.get(picture.suffix.lower())
    if kind is None:
        raise FormatError(f"{picture}: not a picture; expected one of {', '.join(_TYPES)}")
    try:
        require_regular(picture, FormatError)
        content = picture.read_bytes()
        return kind, content, "" if kind == "svg+xml" else _size_of(content)
    except OSError as error:  # Pillow's "cannot identify" is one too
        raise FormatError(f"{picture}: cannot be read as a picture: {error}") from error


def _size_of(content: bytes) -> str:
    from PIL import Image

    with Image.open(io.BytesIO(content)) as image:
        width, height = image.size
    # A wide sheet shrinks to the screen by a third, still readable, before it has to scroll.
    return f' width="{width}" height="{height}" style="min-width:{2 * width // 3}px"'
