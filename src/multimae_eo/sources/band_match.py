"""Which band of a file is which: by name, or as declared; never silently by position."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from multimae_eo.catalog import SENSORS
from multimae_eo.errors import BandError
from multimae_eo.modality import Modality, canonical
from multimae_eo.sources.raster.reading import Header


@dataclass(frozen=True, kw_only=True)
class BandRule:
    """How a modality's bands are found in a file.

    ``wanted``: the names to look for, one per band of the modality. ``file_bands``: the names of
    all of the file's bands in their order, as the user declares them. ``channels``: 1-based file
    bands, one per band of the modality. With neither, the file's own band names are used.
    """

    wanted: tuple[str, ...]
    file_bands: tuple[str, ...] = ()
    channels: tuple[int, ...] = ()


def locate_bands(header: Header, modality: Modality, rule: BandRule) -> tuple[int, ...]:
    """0-based indices of the modality's bands in the file, in the modality's order.

    Raises BandError when a band is missing, answers to two names, or when the file does not name
    its bands and the dataset file does not either.
    """
    if rule.channels:
        if max(rule.channels) > header.count:
            raise BandError(
                f"{header.path}: {modality.name}: channels {list(rule.channels)} of a file with "
                f"{header.count} band(s); channels count from 1"
            )
        return tuple(c - 1 for c in rule.channels)
    if rule.file_bands and len(rule.file_bands) != header.count:
        raise BandError(
            f"{header.path}: {modality.name}: file_bands names {len(rule.file_bands)} bands, the "
            f"file has {header.count} (an array file is (C, H, W)); name each one, in file order"
        )
    names = rule.file_bands or _usable(header.bands)
    found = tuple(
        _find(names, wanted, band_index, header, modality)
        for band_index, wanted in enumerate(rule.wanted)
    )
    if len(set(found)) != len(found):
        raise BandError(
            f"{header.path}: {modality.name}: two of {', '.join(rule.wanted)} are the same file "
            "band; declare file_bands"
        )
    return found


def require_calibration(
    header: Header, modality: Modality, at: Sequence[int], *, declared: bool
) -> None:
    """BandError where a scale that only the file declares would be dropped silently.

    ``at``: 0-based file bands. ``declared``: the user wrote a scale or an offset.
    """
    own = {header.calibration[i] for i in at} - {(1.0, 0.0)}
    if own and not declared and not modality.categorical:
        scale, offset = min(own)
        raise BandError(
            f"{header.path}: {modality.name}: the file declares scale {scale:g} and offset "
            f"{offset:g}; write `scale: {scale!r}, offset: {offset!r}` (or `scale: 1` to ignore it)"
        )


def _usable(names: Sequence[str]) -> tuple[str, ...]:
    """Names that tell bands apart; some writers call every band the same."""
    times = Counter(names)
    return tuple(n if times[n] == 1 else "" for n in names)


def _find(
    names: Sequence[str], wanted: str, band_index: int, header: Header, modality: Modality
) -> int:
    band = modality.bands[band_index]
    exact = [i for i, n in enumerate(names) if n and canonical(n) == canonical(wanted)]
    hits = exact or [i for i, n in enumerate(names) if n and band.answers_to(n)]
    if len(hits) == 1:
        return hits[0]
    where = f"{header.path}: {modality.name}"
    if hits:
        listed = ", ".join(names[i] for i in hits)
        raise BandError(f"{where}: band {wanted!r} may be any of {listed}; write the one you mean")
    if len(names) == 1 and modality.channels == 1 and not _is_another(names[0], modality):
        return 0
    if not any(names):
        raise BandError(
            f"{where}: the file does not name its {header.count} bands; declare "
            "`file_bands: [names in file order]` or `channels: [1-based numbers]`"
        )
    raise BandError(
        f"{where}: no band {wanted!r}; the file has: "
        f"{', '.join(n or '(unnamed)' for n in names)}; take one, or declare `file_bands`"
    )


def _is_another(name: str, modality: Modality) -> bool:
    """Whether a lone band carries the name of another band of the catalogue."""
    if not name or modality.sensor not in SENSORS:
        return False
    return any(b.answers_to(name) for s in SENSORS.values() for b in s.bands)
