"""Writes folders in MMEarth's layout, with its types, order, storage and traps, from a made-up
landscape: for tests and measurements where the real data set is not at hand.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from multimae_eo.errors import ConfigError, OutputError
from multimae_eo.sources.landscape import (
    GSD_M,
    LEAST_SIZE,
    OPTICAL_BANDS,
    Landscape,
    make_landscape,
)

BANDS = ("B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8A", "B8", "B9", "B10", "B11", "B12")
"""Sentinel-2 in the file's order: B8A comes before B8."""

_HAZE = np.array([900, 620, 380, 220, 180, 150, 120, 80, 100, 60, 0, 20, 10], np.float32)
_DYNAMIC_WORLD = {10: 2, 20: 6, 30: 3, 40: 5, 50: 7, 60: 8, 70: 9, 80: 1, 90: 4, 100: 3}
_CANOPY_M = {10: 18.0, 20: 2.0, 40: 1.0, 90: 1.5}
_SCENE_CLASS = {50: 5, 60: 5, 70: 11, 80: 6}
_DATES = 4 * 365

Arrays = dict[str, npt.NDArray[Any]]


def write_mmearth(
    folder: Path,
    *,
    chips: int,
    size: int,
    seed: int,
    stem: str = "data_100k_v001",
    merged: bool = False,
    splits: Mapping[str, Sequence[int]] | None = None,
) -> Path:
    """Write ``chips`` tiles of ``size`` pixels as the four files of an MMEarth folder.

    ``merged``: the variant without compression and without S2_type in ``metadata``; else every
    tile is a gzip chunk of its own. ``splits``: all tiles are ``train`` by default, as in the data
    set's own generator.

    The traps, by tile number i: the level is a coin flip and B10 is 0 in L2A; i % 4 == 1 has a
    hole (Sentinel-2 0, Sentinel-1 -inf, WorldCover 0, Dynamic World 0, canopy height -1) in its
    upper left quarter; i % 4 == 2 has WorldCover 255 in its upper right quarter; i % 4 == 3 has no
    descending Sentinel-1 pass and no canopy height; HH and HV are never there; era5 has inf and
    NaN. Returns ``folder``; raises OutputError where it cannot be written.
    """
    if chips < 1 or size < 2:
        raise ConfigError(f"mmearth: need 1 tile of 2 px or more, got {chips} of {size} px")
    rng = np.random.default_rng([seed, 3])
    levels = ["l1c" if coin else "l2a" for coin in rng.random(chips) < 0.5]
    arrays = _images(chips, size, seed, levels)
    _spoil(arrays, levels)
    arrays |= _pixel_level(chips, rng)
    # The ids are no row numbers, and their order in the JSON file is not the rows'.
    ids = [str(n) for n in rng.permutation(10 * chips)[:chips] + 4_000_000]
    folder = Path(folder)
    info = _tile_info(ids, levels, arrays, rng)
    shuffled = {ids[i]: info[ids[i]] for i in rng.permutation(chips)}
    everything = {"train": list(range(chips)), "val": [], "test": []}
    _write_hdf5(folder / f"{stem}.h5", arrays, _metadata(ids, None if merged else levels), merged)
    _write_json(
        folder / f"{stem}_splits.json", {k: list(v) for k, v in (splits or everything).items()}
    )
    _write_json(folder / f"{stem}_tile_info.json", shuffled)
    _write_json(folder / f"{stem}_band_stats.json", _band_stats(arrays, levels))
    return folder


def _images(chips: int, size: int, seed: int, levels: Sequence[str]) -> Arrays:
    across = int(np.ceil(np.sqrt(chips)))
    side = max(across * size, LEAST_SIZE)
    world, step = make_landscape(side, seed), side // across
    corners = [(i // across * step, i % across * step) for i in range(chips)]

    def tiles(layer: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.stack([layer[..., r : r + size, c : c + size] for r, c in corners])

    arrays: Arrays = {
        "sentinel2": _sentinel2(tiles(world.sentinel2), levels),
        "sentinel2_cloudmask": np.zeros((chips, 1, size, size), np.uint16),
        "sentinel2_cloudprod": np.full((chips, 1, size, size), 3, np.uint16),
        "sentinel1": np.full((chips, 8, size, size), -np.inf, np.float32),
        "aster": tiles(_terrain(world)),
        "esa_worldcover": tiles(world.landcover),
    }
    arrays["sentinel1"][:, [0, 1]] = tiles(world.radar)
    arrays["sentinel1"][:, [4, 5]] = tiles(world.radar) - 0.5
    cover = arrays["esa_worldcover"]
    arrays["sentinel2_scl"] = _recode(cover, _SCENE_CLASS, 4).astype(np.uint8)
    arrays["dynamic_world"] = _recode(cover, _DYNAMIC_WORLD, 3).astype(np.uint8)
    height = _recode(cover, _CANOPY_M, 0)
    arrays["canopy_height_eth"] = np.concatenate([height, height / 3], axis=1).astype(np.int8)
    return arrays


def _terrain(world: Landscape) -> npt.NDArray[np.int16]:
    """Elevation in metres and slope in degrees, int16 (2, H, W)."""
    rise = np.gradient(world.elevation[0].astype(np.float64), GSD_M)
    slope = np.degrees(np.arctan(np.hypot(*rise)))
    return np.concatenate([world.elevation, np.rint(slope)[None].astype(np.int16)])


def _sentinel2(surface: npt.NDArray[np.uint16], levels: Sequence[str]) -> npt.NDArray[np.uint16]:
    """All 13 bands (N, 13, H, W) from the ten of the landscape; L1C is hazier."""
    like = {"B1": "B2", "B9": "B8A", "B10": "B12"}
    bands = surface[:, [OPTICAL_BANDS.index(like.get(b, b)) for b in BANDS]].astype(np.float32)
    bands[:, BANDS.index("B9")] *= 0.4
    bands[:, BANDS.index("B10")] *= 0.01
    top = np.array([level == "l1c" for level in levels])
    bands[top] = 0.93 * bands[top] + _HAZE[:, None, None]
    bands = np.clip(np.rint(bands), 1, 65_535)
    bands[~top, BANDS.index("B10")] = 0
    return bands.astype(np.uint16)


def _recode(
    cover: npt.NDArray[Any], table: Mapping[int, float], default: float
) -> npt.NDArray[np.float64]:
    values = np.full(256, default, np.float64)
    values[list(table)] = list(table.values())
    recoded: npt.NDArray[np.float64] = values[cover]
    return recoded


def _spoil(arrays: Arrays, levels: Sequence[str]) -> None:
    half = arrays["sentinel2"].shape[-1] // 2
    hole = (slice(1, None, 4), slice(None), slice(half), slice(half))
    blank = {"sentinel2": 0, "sentinel1": -np.inf, "esa_worldcover": 0, "dynamic_world": 0,
             "canopy_height_eth": -1}  # fmt: skip
    for key, value in blank.items():
        arrays[key][hole] = value
    arrays["esa_worldcover"][2::4, :, :half, half:] = 255
    arrays["sentinel1"][3::4, 4:] = -np.inf
    arrays["canopy_height_eth"][3::4] = -1
    surface = np.array([level == "l2a" for level in levels])
    arrays["sentinel2_cloudmask"][surface] = 65_535
    arrays["sentinel2_scl"][~surface] = 255


def _pixel_level(chips: int, rng: np.random.Generator) -> Arrays:
    """One value or vector per tile: place, month, biome, region and weather."""
    biome, region = rng.integers(14, size=chips), rng.integers(846, size=chips)
    era5 = rng.normal(280, 5, (chips, 12)).astype(np.float32)
    era5[::3, 0], era5[1::3, 5] = np.inf, np.nan
    angles = {k: rng.uniform(-np.pi, np.pi, chips) for k in ("lat", "lon", "month")}
    angles["lat"] = np.arcsin(rng.uniform(-0.5, 0.9, chips))
    circles = {k: np.stack([np.sin(a), np.cos(a)], 1).astype(np.float32) for k, a in angles.items()}
    return {
        "era5": era5,
        "biome": np.eye(14, dtype=np.uint8)[biome],
        "eco_region": np.eye(846, dtype=np.uint16)[region],
        **circles,
    }


def _metadata(ids: Sequence[str], levels: Sequence[str] | None) -> npt.NDArray[np.void]:
    fields = [("tile_id", "S100"), *([("S2_type", "S10")] if levels else [])]
    records = np.zeros(len(ids), dtype=fields)
    records["tile_id"] = np.array(ids, "S100")
    if levels:
        records["S2_type"] = np.array(levels, "S10")
    return records


def _tile_info(
    ids: Sequence[str], levels: Sequence[str], arrays: Arrays, rng: np.random.Generator
) -> dict[str, Any]:
    first = np.datetime64("2017-01-01")
    found = {}
    for i, (key, level) in enumerate(zip(ids, levels, strict=True)):
        lat, lon = (np.degrees(np.arctan2(*arrays[k][i])) for k in ("lat", "lon"))
        zone = int((lon + 180) // 6) % 60 + 1
        found[key] = {
            "S2_DATE": str(first + int(rng.integers(_DATES))),
            "S2_type": level,
            "CRS": f"EPSG:{(32600 if lat >= 0 else 32700) + zone}",
            "lat": float(lat),
            "lon": float(lon),
            "BANDS": {"sentinel2": list(BANDS), "aster": ["elevation", "slope"]},
            "biome": int(arrays["biome"][i].argmax()),
            "eco_region": int(arrays["eco_region"][i].argmax()),
            "era5": [float(v) if np.isfinite(v) else None for v in arrays["era5"][i]],
        }
    return found


def _band_stats(arrays: Arrays, levels: Sequence[str]) -> dict[str, dict[str, list[float]]]:
    """Statistics of valid pixels as published: Sentinel-2 by level, none for class maps."""
    level = np.array(levels)
    nodata = {"sentinel2": 0, "canopy_height_eth": -1}
    groups = {f"sentinel2_{name}": ("sentinel2", level == name) for name in ("l1c", "l2a")}
    whole = np.ones(len(levels), dtype=bool)
    groups |= {k: (k, whole) for k in ("sentinel1", "aster", "canopy_height_eth", "era5")}
    found = {}
    for name, (key, tiles) in groups.items():
        values = np.moveaxis(arrays[key][tiles], 1, 0).astype(np.float64)
        values[~np.isfinite(values) | (values == nodata.get(key, np.inf))] = np.nan
        bands = [row[np.isfinite(row)] for row in values.reshape(len(values), -1)]
        # A band that is nowhere observed (B10 of L2A) is given as 0.
        bands = [b if len(b) else np.zeros(1) for b in bands]
        found[name] = {
            "mean": [float(b.mean()) for b in bands],
            "std": [float(b.std()) for b in bands],
            "min": [float(b.min()) for b in bands],
            "max": [float(b.max()) for b in bands],
        }
    return found


def _write_hdf5(path: Path, arrays: Arrays, metadata: npt.NDArray[np.void], merged: bool) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with h5py.File(temporary, "w") as file:
                for key, values in (arrays | {"metadata": metadata}).items():
                    tile = None if merged else (1, *values.shape[1:])
                    packed = None if merged else "gzip"
                    file.create_dataset(key, data=values, chunks=tile, compression=packed)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error}; free space") from error


def _write_json(path: Path, record: object) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        try:
            temporary.write_text(json.dumps(record), encoding="utf-8")
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error}; free space") from error
