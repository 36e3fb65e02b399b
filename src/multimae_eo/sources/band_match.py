"""Matches the bands of files to those of a modality: by name or declaration, never by position."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from multimae_eo.catalog import SENSORS
from multimae_eo.errors import BandError, FormatError
from multimae_eo.modality import Modality, canonical
from multimae_eo.sources.raster.header import RasterHeader
from multimae_eo.sources.raster.reading import IMAGE_SUFFIXES

# Generic names that software writes for the only band of a file; they do not identify it.
_GENERIC_NAMES = frozenset(
    {
        "band", "bands", "band1", "channel", "channel1", "layer", "layer1", "gray", "grey",
        "banddata", "data", "value", "values", "array", "variable", "raster", "image", "index",
        "palette", "xarraydataarrayvariable",
    }
)  # fmt: skip
_CLASS_WORDS = frozenset(
    {"class", "classes", "classification", "label", "labels", "map", "mask", "cover", "id"}
)
# Layers of products that are no measured band.
_LAYERS = frozenset(
    {
        "aot", "wvp", "scl", "tci", "cld", "cldprb", "cldprob", "snw", "snwprb", "qa", "qa60",
        "fmask", "qapixel", "qaradsat", "cloudprobability", "cloudmask", "datamask",
    }
)  # fmt: skip
ANOTHER = -1
"""Result of ``lone_band`` for a file whose only band is not one of the modality."""


@dataclass(frozen=True, kw_only=True)
class BandRule:
    """How the bands of a modality are identified in a file.

    ``band_names``: the names to look for, one per band of the modality. ``file_bands``: the names
    of all of the file's bands in their order, as the user declares them. ``channels``: 1-based file
    bands, one per band of the modality. With neither, the file's own band names are used.
    """

    band_names: tuple[str, ...]
    file_bands: tuple[str, ...] = ()
    channels: tuple[int, ...] = ()


def locate_bands(header: RasterHeader, modality: Modality, rule: BandRule) -> tuple[int, ...]:
    """0-based indices of the modality's bands in the file, in the modality's order.

    Raises BandError when a band is missing or matches two names, or when neither the file nor the
    dataset file names the bands; FormatError for an array (H, W, C).
    """
    _require_measurements(header, modality, rule)
    if rule.channels:
        if max(rule.channels) > header.count:
            raise BandError(
                f"{header.path}: {modality.name}: channels {list(rule.channels)} of a file with "
                f"{header.count} band(s); channels count from 1"
            )
        return tuple(c - 1 for c in rule.channels)
    declared = rule.file_bands
    if declared and header.alpha == header.count - 1 == len(declared):
        declared = (*declared, "alpha")
    if declared and len(declared) != header.count:
        raise BandError(
            f"{header.path}: {modality.name}: file_bands names {len(rule.file_bands)} bands, the "
            f"file has {header.count} (an array file is (C, H, W)); name each one, in file order"
        )
    names = declared or _usable(header.names)
    if header.count == modality.channels == 1 and not declared:
        return (_only_band(header, modality, rule),)
    indices = tuple(
        _find(names, name, band_index, header, modality)
        for band_index, name in enumerate(rule.band_names)
    )
    if len(set(indices)) != len(indices):
        raise BandError(
            f"{header.path}: {modality.name}: two of {', '.join(rule.band_names)} are the same "
            "file band; declare file_bands"
        )
    return indices


def lone_band(header: RasterHeader, modality: Modality, band_names: Sequence[str]) -> int | None:
    """Index in the modality of the only band of a file, by the name of the band or of the file.

    ``ANOTHER`` where the name is that of another band; None where neither name identifies a band.
    """
    name = header.names[0]
    if name and canonical(name) not in _GENERIC_NAMES:
        indices = [i for i, w in enumerate(band_names) if canonical(w) == canonical(name)]
        indices += [i for i, band in enumerate(modality.bands) if band.matches(name)]
        return indices[0] if indices else ANOTHER
    words = [w for w in re.split(r"[^0-9A-Za-z]+", Path(str(header.path)).stem) if w]
    names = [*(f"{a}_{b}" for a, b in itertools.pairwise(words)), *words]
    for index, band in enumerate(modality.bands):
        if any(band.matches(n) or canonical(n) == canonical(band_names[index]) for n in names):
            return index
    sensor = SENSORS.get(modality.sensor)
    others = sensor.bands if sensor else ()
    if any(b.matches(n) for b in others for n in names):
        return ANOTHER
    if not modality.categorical and any(canonical(n) in _LAYERS for n in names):
        return ANOTHER
    # A folder for each band: nir/17.tif.
    folder = Path(str(header.path)).parent.name
    for index, band in enumerate(modality.bands):
        if band.matches(folder):
            return index
    return ANOTHER if any(b.matches(folder) for b in others) else None


def _only_band(header: RasterHeader, modality: Modality, rule: BandRule) -> int:
    """0 where the only band may be the requested one; BandError where it has another's name."""
    if lone_band(header, modality, rule.band_names) != ANOTHER:
        return 0
    name = header.names[0]
    if modality.categorical and name and _names_classes(name, modality):
        return 0
    path = Path(str(header.path))
    named = name or f"another band, by the file's name ({path.parent.name}/{path.stem})"
    raise BandError(
        f"{header.path}: {modality.name}: no band {rule.band_names[0]!r}; the file has: {named}; "
        "take the right file, or declare `channels: [1]` if this is the band"
    )


def _names_classes(name: str, modality: Modality) -> bool:
    """Whether a band's name may be that of a class map: not a measured band of the catalogue."""
    if any(b.matches(name) for s in SENSORS.values() for b in s.bands):
        return False
    words = {w.lower() for w in re.split(r"[^0-9A-Za-z]+", name)}
    modality_words = {
        w.lower() for w in re.split(r"[^0-9A-Za-z]+", f"{modality.name}_{modality.sensor}")
    }
    return any(
        w == c or w.endswith(c) for w in words for c in _CLASS_WORDS | modality_words if w and c
    )


def _require_measurements(header: RasterHeader, modality: Modality, rule: BandRule) -> None:
    """FormatError for an array whose bands lie last, BandError for palette indices."""
    if header.channels_last and not rule.file_bands:
        shape = (header.count, *header.shape)
        raise FormatError(
            f"{header.path}: {modality.name}: the array {shape} looks like (H, W, C), expected "
            "(C, H, W); declare `layout: hwc`, save it with numpy.moveaxis(array, -1, 0), or name "
            "all bands in file_bands"
        )
    palette = header.bands[0].palette
    picture = Path(str(header.path)).suffix.lower() in IMAGE_SUFFIXES
    colors = palette.items() if palette and picture and not modality.categorical else ()
    if any(c[:3] != (i, i, i) for i, c in colors):
        raise BandError(
            f"{header.path}: {modality.name}: the image holds indices of a palette, not "
            "measured values; save it as RGB or grey"
        )


def _usable(names: Sequence[str]) -> tuple[str, ...]:
    """The names, "" where several bands share one: some software names all bands alike."""
    times = Counter(names)
    return tuple(n if times[n] == 1 else "" for n in names)


def _find(
    names: Sequence[str], name: str, band_index: int, header: RasterHeader, modality: Modality
) -> int:
    band = modality.bands[band_index]
    exact = [i for i, n in enumerate(names) if n and canonical(n) == canonical(name)]
    hits = exact or [i for i, n in enumerate(names) if n and band.matches(n)]
    if len(hits) == 1:
        return hits[0]
    where = f"{header.path}: {modality.name}"
    if hits:
        listed = ", ".join(names[i] for i in hits)
        raise BandError(f"{where}: band {name!r} may be any of {listed}; write the one you mean")
    if not any(names):
        raise BandError(
            f"{where}: the file does not name its {header.count} bands; declare "
            "`file_bands: [names in file order]` or `channels: [1-based numbers]`"
        )
    raise BandError(
        f"{where}: no band {name!r}; the file has: "
        f"{', '.join(n or '(unnamed)' for n in names)}; take one, or declare `file_bands`"
    )
