"""Scale and offset of STAC items, and a check that they are right.

Since processing baseline 04.00 (January 2022) Sentinel-2's digital numbers are 1000 higher. Some
catalogues record this in the raster extension, some do not, and some have subtracted the offset
and still record it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from multimae_eo.errors import ConfigError
from multimae_eo.sources.raster.calibration import Linear
from multimae_eo.sources.raster.warped import open_header
from multimae_eo.sources.stac.items import StacItem, asset_of
from multimae_eo.sources.stac.stac_file import StacModality

_BASELINE_KEYS = ("s2:processing_baseline", "sentinel:processing_baseline", "processing:version")
_APPLIED_KEYS = ("earthsearch:boa_offset_applied", "sentinel:boa_offset_applied")
_BASELINE_WITH_OFFSET = 4.0
_OFFSET_DN = -1000.0


@dataclass(frozen=True, kw_only=True)
class Common:
    """One calibration for chips of many items. ``shift[item id]``: added to its raw values.

    ``by_item[item id]`` where items differ otherwise: each band is made physical before it is
    stored. ``bands[item id]``: the calibration of each band of the item.
    """

    stored: Linear
    shift: Mapping[str, int]
    by_item: Mapping[str, tuple[Linear, ...]] | None = None
    bands: Mapping[str, tuple[Linear, ...]] = field(default_factory=dict)


def common_calibration(
    items: Sequence[StacItem],
    assets: Mapping[str, Sequence[str]],
    requested: StacModality,
    where: str,
) -> Common:
    """The calibration that the items share, or are brought to.

    Integers stay integers where items differ by whole numbers (the lowest offset is kept, so that
    no value falls below 0). ConfigError where declared, extension and baseline disagree.
    """
    if requested.spec.modality.categorical:
        return Common(stored=Linear(scale=1.0, offset=0.0), shift=dict.fromkeys(assets, 0))
    calibrations = {
        item.id: tuple(band_calibration(item, key, requested, where) for key in assets[item.id])
        for item in items
    }
    every = [linear for bands in calibrations.values() for linear in bands]
    low = min(every, key=lambda c: c.offset)
    shifts = {c: (c.offset - low.offset) / low.scale for c in every}
    alike = all(
        math.isclose(c.scale, low.scale) and abs(s - round(s)) < 1e-6 for c, s in shifts.items()
    )
    if alike and all(len(set(bands)) == 1 for bands in calibrations.values()):
        shift = {i: round(shifts[b[0]]) for i, b in calibrations.items()}
        return Common(stored=low, shift=shift, bands=calibrations)
    stored = Linear(scale=1.0, offset=0.0)
    return Common(
        stored=stored,
        shift=dict.fromkeys(calibrations, 0),
        by_item=calibrations,
        bands=calibrations,
    )


def band_calibration(item: StacItem, key: str, requested: StacModality, where: str) -> Linear:
    """Scale and offset of one band of an item: declared, of the item's metadata or its baseline,
    else of the file's own tags."""
    item_scale, item_offset = _extension(item, key)
    declared_scale, declared_offset = requested.spec.scale.default, requested.spec.offset.default
    if item_scale is None and declared_scale is None:
        item_scale, tag = _tags(item, key)
        item_offset = tag if item_offset is None else item_offset
    scale = _agreed(declared_scale, item_scale, "scale", item, requested, where)
    expected = _baseline_offset(item, requested, 1e-4 if scale is None else scale)
    if scale is None:
        _require_scale(item, key, requested, where)
        scale = 1.0
    if not requested.check or expected is None:
        offset = _agreed(declared_offset, item_offset, "offset", item, requested, where)
        return Linear(scale=scale, offset=offset or 0.0)
    given = item_offset if declared_offset is None else declared_offset
    if given is not None and not math.isclose(given, expected, abs_tol=1e-9):
        source = "metadata" if declared_offset is None else "declared"
        raise ConfigError(
            f"{where}: item {item.id}: {source} offset {given:g}, but its baseline "
            f"{_baseline(item)}{_flags(item)} means {expected:g}; examine dark pixels, then write "
            f"`offset: {expected:g}`, or the other one with `check_calibration: false`"
        )
    return Linear(scale=scale, offset=expected)


def _agreed(
    declared: Any,
    recorded: float | None,
    what: str,
    item: StacItem,
    requested: StacModality,
    where: str,
) -> float | None:
    if declared is None:
        return recorded
    if (
        requested.check
        and recorded is not None
        and not math.isclose(declared, recorded, abs_tol=1e-12)
    ):
        raise ConfigError(
            f"{where}: item {item.id}: declared {what} {declared:g}, its metadata have "
            f"{recorded:g}; mend it, or add `check_calibration: false`"
        )
    return float(declared)


def _extension(item: StacItem, key: str) -> tuple[float | None, float | None]:
    """Scale and offset of the raster extension, in its old and its new form."""
    name, number = asset_of(item, key)
    record = raster_record(item.assets[name], number)
    scale, offset = record.get("scale"), record.get("offset")
    if scale is None and offset is None:
        return None, None
    return float(1.0 if scale is None else scale), float(offset or 0.0)


def _tags(item: StacItem, key: str) -> tuple[float | None, float | None]:
    """Scale and offset tags of the file of a band whose metadata have none."""
    name, number = asset_of(item, key)
    header = open_header(str(item.assets[name]["href"]))
    if not 0 < number <= header.count:
        return None, None
    return header.bands[number - 1].scale, header.bands[number - 1].offset


def raster_record(asset: Mapping[str, object], number: int) -> dict[str, Any]:
    """STAC's metadata of a band's raster: nodata, scale, offset, … without prefix."""
    merged: dict[str, object] = {}
    for part in (asset, _nth(asset.get("bands"), number)):
        for name in ("nodata", "data_type", "scale", "offset"):
            for key in (name, f"raster:{name}"):
                if part.get(key) is not None:
                    merged[name] = part[key]
    old = {k: v for k, v in _nth(asset.get("raster:bands"), number).items() if v is not None}
    return merged | old


def _nth(bands: object, number: int) -> Mapping[str, object]:
    listed = bands if isinstance(bands, list) else []
    band = listed[number - 1] if len(listed) >= number else {}
    return band if isinstance(band, Mapping) else {}


def _baseline(item: StacItem) -> str:
    return next((str(item.properties[k]) for k in _BASELINE_KEYS if k in item.properties), "")


def _applied(item: StacItem) -> bool | None:
    return next((bool(item.properties[k]) for k in _APPLIED_KEYS if k in item.properties), None)


def _flags(item: StacItem) -> str:
    text_of = {True: " (offset already applied)", False: " (offset not applied)", None: ""}
    return text_of[_applied(item)]


def _baseline_offset(item: StacItem, requested: StacModality, scale: float) -> float | None:
    """The offset that a Sentinel-2 item's baseline means; None where that is not known."""
    if requested.spec.modality.sensor != "sentinel2":
        return None
    try:
        baseline = float(_baseline(item))
    except ValueError:
        return None
    shifted = baseline >= _BASELINE_WITH_OFFSET and not _applied(item)
    return _OFFSET_DN * scale if shifted else 0.0


def _require_scale(item: StacItem, key: str, requested: StacModality, where: str) -> None:
    """Reflectance in integers without any scale would be thousands of times too large."""
    name, number = asset_of(item, key)
    kind = str(raster_record(item.assets[name], number).get("data_type", "int"))
    if requested.spec.modality.unit == "reflectance" and "int" in kind:
        raise ConfigError(
            f"{where}: item {item.id}: its metadata have no scale; write `scale:` (1.0e-4 for "
            "most reflectance products)"
        )
