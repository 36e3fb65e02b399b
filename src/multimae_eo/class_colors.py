"""Colours of classes, from their names alone: for legends and maps that bring none."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

from multimae_eo.catalog import CLASS_MAPS

Color = tuple[int, int, int]

# Words at the start of a class name's words, and shades for classes of that kind; first match wins.
_NATURAL: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("no$|non$|not$|other|background|unknown|unlabel", ("9a9a9a", "c4c4c4", "6e6e6e")),
    ("wetland|flood|marsh|swamp|bog|mangrove|peat", ("3aa6a0", "7fcdbb", "1b6e6a")),
    ("crop|agri|arable|rice|maize|corn$|wheat|cereal|orchard|vineyard|plantation|field|farm",
     ("f0c24b", "d99a2b", "f7e08a", "b57a1e")),
    ("forest|tree|wood|conifer|broadlea|pine|oak", ("1b6b2f", "4f9a4a", "0b4020", "8bbf6a")),
    ("shrub|scrub|heath|bush|rangeland", ("b9a44c", "8f8a3a", "d8ca86")),
    ("bare|sand|soil|rock|desert|beach|dune|mine|quarry|land$", ("c9ae86", "a58763", "e3d3b5")),
    ("grass|pasture|meadow|herbaceous|lawn|vegetat|plants$", ("a6d854", "cbe88f", "7fae3c")),
    ("built|build|urban|resident|industr|town|city|settle|road|highway|street|impervious|artificial",
     ("d7301f", "f28f7d", "8c2d1c", "b04a8a")),
    ("snow|ice$|glacier", ("eef5fb", "cfdde9")),
    ("cloud|shadow|haze", ("d5d8dc", "7c8288")),
    ("water|river|lake|sea$|ocean|pond|reservoir|stream|lagoon", ("2b7bba", "7db8e0", "0f4a80")),
    ("burn|fire", ("5a1a1a", "9c4a2f")),
)  # fmt: skip
# Okabe and Ito's hues, then darker ones: distinct with colour vision deficiency, too.
_PLAIN = ("e69f00", "56b4e9", "009e73", "f0e442", "0072b2", "d55e00", "cc79a7", "787878",
          "804600", "00466e", "005a3c", "6e285a")  # fmt: skip


def class_colors(names: Sequence[str]) -> tuple[Color, ...]:
    """A colour (sRGB, 0 to 255) per class, from the names alone; different ones as far as they go.

    Those of a class map in the catalogue that has all of the names; else natural ones (water,
    forest, grass, crops, buildings, …), else hues distinct with colour vision deficiency.
    """
    asked = [n.casefold() for n in names]
    for record in CLASS_MAPS.values():
        colors = {c.name.casefold(): c.color for c in record.classes}
        if 1 < len(asked) == len(set(asked) & set(colors)):
            return tuple(colors[n] for n in asked)
    taken: list[str | None] = []
    for name in names:
        shades = _shades(name)
        taken.append(next((s for s in shades if s not in taken), None))
    spare = [s for s in _PLAIN if s not in taken] or list(_PLAIN)
    plain = itertools.cycle(spare)
    return tuple(_rgb(next(plain) if s is None else s) for s in taken)


def _shades(name: str) -> tuple[str, ...]:
    """Natural colours of a class by its name; empty where the name suggests none."""
    words = [w.casefold() for w in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name)]
    for stems, shades in _NATURAL:
        if any(re.match(f"({stems})", w) for w in words):
            return shades
    return ()


def _rgb(digits: str) -> Color:
    return int(digits[0:2], 16), int(digits[2:4], 16), int(digits[4:6], 16)
