"""Synthetic data in the shape of the examples' real ones: names, bands, types, grids and pitfalls.

Written where the real data are not beside the project, so that every test of theirs runs in any
clone. Pixels are of a synthetic landscape; nothing here was measured. What tests count (chips of a
split, pairs of one location, …) is in ``COUNTS`` and ``SPLITS``.
"""

from __future__ import annotations

import csv
import io
import json
import shutil
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import rasterio
from rasterio.transform import Affine, from_origin
from rasterio.warp import Resampling, reproject

from multimae_eo.sources.landscape import OPTICAL_BANDS, Landscape, make_landscape
from tests.support.geobench_files import _KILN, write_geobench

Image = np.ndarray[Any, Any]
EUROSAT = (
    "B01",
    "B02",
    "B03",
    "B04",
    "B05",
    "B06",
    "B07",
    "B08",
    "B09",
    "B10",
    "B11",
    "B12",
    "B8A",
)
S2_L1C = ("B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B9", "B10", "B11", "B12")
S2_L2A = tuple(b for b in S2_L1C if b != "B10")
CLASSES = ("AnnualCrop", "Forest", "HerbaceousVegetation", "Highway", "Industrial", "Pasture",
           "PermanentCrop", "Residential", "River", "SeaLake")  # fmt: skip
COUNTS = {
    "eurosat_ms": 240,
    "s2_l2a_unlabelled": 60,
    "s2_l2a_unlabelled_more": 60,
    "hls_water": 120,
    "terramind_examples": 5,
    "sen1floods11": 5,
}
SPLITS = {"eurosat_ms": {"train": 150, "test": 60, "val": 30},
          "hls_water": {"train": 84, "test": 21, "val": 15}}  # fmt: skip
SAME_LOCATION = {"test ~ train": 10, "train ~ val": 8, "test ~ val": 1}
"""Pairs of HLS chips that show one location on two dates, by their splits."""
CONSTANT = ("74", "215", "226")
"""HLS chips in open water: constant elevation and land cover."""
LIFTED_L1C = ("282D_485L_3_3", "433D_629L_3_1", "609U_541L_3_0")
"""TerraMind's chips whose L1C carries the offset of 1000; of L2A only the second does."""
LOCATIONS = ("282D_485L_3_3", "38D_378R_2_3", "433D_629L_3_1", "609U_541L_3_0", "637U_59R_1_3")
_HAZE = {"B1": 900, "B2": 620, "B3": 380, "B4": 220, "B5": 180, "B6": 150, "B7": 120, "B8": 100,
         "B8A": 80, "B9": 30, "B10": 0, "B11": 20, "B12": 10}  # fmt: skip
_UTM = "EPSG:32632"


def write_example_data(folder: Path) -> None:
    """Write every data set of ``examples/`` below ``folder``."""
    _write_eurosat(folder / "eurosat_ms")
    _write_unlabelled(folder / "s2_l2a_unlabelled/chips", S2_L2A, seed=12)
    fewer = tuple(b for b in S2_L2A if b not in ("B1", "B9"))
    _write_unlabelled(folder / "s2_l2a_unlabelled_more/chips", fewer, seed=14)
    _write_hls(folder / "hls_water")
    _write_terramind(folder / "terramind_examples")
    _write_sen1floods11(folder / "sen1floods11")
    _write_aberystwyth(folder / "scene_aberystwyth")
    _write_bigearthnet(folder / "bigearthnet_examples")
    _write_kilns(folder / "geobench_samples/brick_kiln_v1.0")


# Pixels ---------------------------------------------------------------------------------------


@cache
def _landscape(size: int, seed: int) -> Landscape:
    return make_landscape(size, seed)


def _bands(
    land: Landscape, rng: np.random.Generator, *, one_grid: bool = False
) -> dict[str, Image]:
    """Surface reflectance × 10000 of all thirteen bands, float64 (H, W).

    ``one_grid``: all bands are as sharp, as those of HLS are; else those of 20 m and 60 m are
    smooth.
    """
    bands = {
        name: plane.astype(np.float64)
        for name, plane in zip(OPTICAL_BANDS, land.sentinel2, strict=True)
    }

    def noise(strength: float) -> Image:
        return rng.normal(0, strength, land.landcover.shape[1:])

    if not one_grid:
        for name in ("B5", "B6", "B7", "B8A", "B11", "B12"):
            bands[name] = _coarse(bands[name], 4)
    bands["B1"] = _coarse(0.82 * bands["B2"] + 20, 6) + noise(6)
    bands["B9"] = _coarse(0.93 * bands["B8A"] + 60, 6) + noise(25)
    bands["B10"] = 10 + 0.008 * _coarse(bands["B12"], 2) + noise(0.6)
    return bands


def _coarse(plane: Image, cells: int) -> Image:
    """A band of larger pixels on the fine grid, smooth as resampling leaves it."""
    from scipy.ndimage import uniform_filter

    return np.asarray(uniform_filter(plane, cells, mode="nearest"))


def _top(bands: Mapping[str, Image]) -> dict[str, Image]:
    """L1C from L2A: the air's light is added, above all to short wavelengths; water vapour
    darkens B9."""
    top = {n: 0.93 * b + _HAZE[n] for n, b in bands.items()}
    return top | {"B9": 0.35 * bands["B9"] + _HAZE["B9"]}


def _stacked(bands: Mapping[str, Image], names: Sequence[str], kind: str, lift: int = 0) -> Image:
    planes = np.stack([bands[n.replace("B0", "B")] for n in names]) + lift
    return np.rint(planes).clip(1, 28_000).astype(kind)


def _windows(size: int, side: int, count: int) -> list[tuple[slice, slice]]:
    """Windows of ``side`` pixels, in the order of rows."""
    across = size // side
    return [
        (slice(r * side, r * side + side), slice(c * side, c * side + side))
        for r in range(across)
        for c in range(across)
    ][:count]


def _write(path: Path, pixels: Image, names: Sequence[str] = (), **profile: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = {"driver": "GTiff", "compress": "deflate", "zlevel": 1} | profile
    count, height, width = pixels.shape
    with rasterio.open(
        path, "w", count=count, height=height, width=width, dtype=pixels.dtype, **options
    ) as file:
        file.write(pixels)
        for index, name in enumerate(names, 1):
            file.set_band_description(index, name)


def _write_table(path: Path, head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([head, *rows])
    path.write_text(text.getvalue(), encoding="utf-8")


def _dealt(sizes: Mapping[str, int], seed: int) -> list[str]:
    splits = [s for s, n in sizes.items() for _ in range(n)]
    np.random.default_rng(seed).shuffle(splits)
    return splits


# Data sets ------------------------------------------------------------------------------------


def _write_eurosat(folder: Path) -> None:
    """Classes by what a chip shows: ten groups of equal size, ordered by vegetation."""
    count, rng = COUNTS["eurosat_ms"], np.random.default_rng(1)
    size = 64 * 16
    bands = _top(_bands(_landscape(size, 11), rng))
    windows = _windows(size, 64, count)
    greenness = [
        float((bands["B8"][w].mean() - bands["B4"][w].mean()) / bands["B8"][w].mean())
        for w in windows
    ]
    order = np.argsort(greenness)
    splits = _dealt(SPLITS["eurosat_ms"], 1)
    rows = []
    for rank, index in enumerate(order.tolist()):
        kind = CLASSES[rank // (count // len(CLASSES))]
        name = f"{kind}/{kind}_{index + 1}.tif"
        window = windows[index]
        pixels = _stacked({n: b[window] for n, b in bands.items()}, EUROSAT, "uint16")
        # Neighbouring chips do not touch, as EuroSAT's do not.
        left, top = 4e5 + 2000 * window[1].start / 64, 5.4e6 - 2000 * window[0].start / 64
        _write(folder / name, pixels, EUROSAT, crs=_UTM, transform=from_origin(left, top, 10, 10))
        rows.append((name, kind, splits[rank]))
    rows.sort()
    _write_table(folder / "split.csv", ("file", "label", "split"), rows)


def _write_unlabelled(folder: Path, bands_of_files: Sequence[str], *, seed: int) -> None:
    names = tuple(b.replace("B", "B0") if len(b) == 2 else b for b in bands_of_files)
    rng, size = np.random.default_rng([2, seed]), 64 * 8
    bands = _bands(_landscape(size, seed), rng)
    for index, window in enumerate(_windows(size, 64, COUNTS["s2_l2a_unlabelled"])):
        pixels = _stacked({n: b[window] for n, b in bands.items()}, bands_of_files, "uint16")
        _write(folder / f"{5 * index}.tif", pixels, names)


HLS = ("coastal", "blue", "green", "red", "nir", "swir1", "swir2", "hls_fmask", "cop_dem",
       "esa_worldcover", "jrc_water_occurrence")  # fmt: skip
_HLS_BANDS = ("B1", "B2", "B3", "B4", "B8A", "B11", "B12")


def hls_ids() -> list[str]:
    """Names of the HLS chips: those that tests name, and others."""
    named = ["65", "111", *CONSTANT]
    others = [str(i) for i in range(300) if str(i) not in named]
    return sorted([*named, *others[: COUNTS["hls_water"] - len(named)]], key=int)


def _hls_pairs(splits: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Chips of one location; the first pair is one in which water came."""
    free = {
        s: [i for i, of in splits.items() if of == s and i not in ("65", "111", *CONSTANT)]
        for s in SPLITS["hls_water"]
    }
    yield "111", "65"
    for kind, count in SAME_LOCATION.items():
        first, second = kind.split(" ~ ")
        done = int({splits["111"], splits["65"]} == {first, second})
        for _ in range(count - done):
            yield free[first].pop(), free[second].pop()


def _write_hls(folder: Path) -> None:
    rng, ids, size = np.random.default_rng(3), hls_ids(), 128 * 11
    land = _landscape(size, 13)
    bands = _bands(land, rng, one_grid=True)
    splits = dict(zip(ids, _dealt(SPLITS["hls_water"], 3), strict=True))
    splits |= _swapped(splits, {"111": "test", "65": "train"})
    layers = {
        i: _hls_layers(land, bands, w)
        for i, w in zip(ids, _windows(size, 128, len(ids)), strict=True)
    }
    for chip in CONSTANT:
        layers[chip] = _open_water(rng)
    for number, (first, second) in enumerate(_hls_pairs(splits)):
        layers[second] = _another_date(layers[first], rng, flooded=number == 0)
    for chip, planes in layers.items():
        pixels = np.rint(np.stack([planes[n] for n in HLS])).astype(np.int16)
        _write(folder / f"images/{chip}.tif", pixels, HLS)
        water = (planes["esa_worldcover"] == 80).astype(np.uint8)[None]
        _write(folder / f"labels/{chip}.png", water, driver="PNG", compress=None, zlevel=6)
    _write_table(folder / "split.csv", ("id", "split"), [(i, splits[i]) for i in ids])


def _swapped(splits: Mapping[str, str], named: Mapping[str, str]) -> dict[str, str]:
    """Changes by which the named chips have the given splits, and each split keeps its size."""
    now = dict(splits)
    for chip, split in named.items():
        if now[chip] != split:
            other = next(i for i, s in now.items() if s == split and i not in (*named, *CONSTANT))
            now[chip], now[other] = split, now[chip]
    return now


def _hls_layers(
    land: Landscape, bands: Mapping[str, Image], window: tuple[slice, slice]
) -> dict[str, Image]:
    planes = {n: bands[b][window] for n, b in zip(HLS, _HLS_BANDS, strict=False)}
    cover = land.landcover[0][window]
    water = (cover == 80).astype(np.float64)
    return {
        **planes, "hls_fmask": 64 + 32 * water, "cop_dem": land.elevation[0][window],
        "esa_worldcover": cover, "jrc_water_occurrence": 100 * water,
    }  # fmt: skip


def _open_water(rng: np.random.Generator) -> dict[str, Image]:
    shape = (128, 128)
    means = (520, 470, 420, 240, 120, 60, 40)
    planes = {n: m + rng.normal(0, 14, shape) for n, m in zip(HLS, means, strict=False)}
    ones = np.ones(shape)
    return {
        **planes, "hls_fmask": 96 * ones, "cop_dem": 0 * ones, "esa_worldcover": 80 * ones,
        "jrc_water_occurrence": 100 * ones,
    }  # fmt: skip


def _another_date(
    planes: Mapping[str, Image], rng: np.random.Generator, *, flooded: bool
) -> dict[str, Image]:
    """One location on another date: other light and season; where flooded, low ground is water."""
    later = dict(planes)
    light = rng.uniform(0.8, 1.2)
    dry = np.clip((planes["nir"] - planes["red"]) / 4000, 0, 1)
    for name in HLS[:7]:
        season = 1 - 0.25 * dry if name == "nir" else 1 + 0.3 * dry
        later[name] = planes[name] * light * season + rng.normal(0, 40, dry.shape)
    if flooded:
        dem, wet = planes["cop_dem"], planes["esa_worldcover"] == 80
        under = dem <= np.quantile(dem[~wet], 0.4)
        for name, mean in zip(HLS, (520, 470, 420, 240, 120, 60, 40), strict=False):
            later[name] = np.where(under, mean + rng.normal(0, 14, dem.shape), later[name])
        later["esa_worldcover"] = np.where(under, 80, planes["esa_worldcover"])
    return later


_ESRI = {80: 1, 10: 2, 40: 4, 50: 5, 60: 6, 70: 7, 20: 9, 30: 9, 90: 9, 100: 9}


def _write_terramind(folder: Path) -> None:
    for number, name in enumerate(LOCATIONS):
        rng, land = np.random.default_rng([4, number]), _landscape(224, 40 + number)
        surface = _bands(land, rng)
        cover = np.vectorize(_ESRI.get)(land.landcover).astype(np.uint8)
        if name == "609U_541L_3_0":
            cover[:] = 7
            surface = _snow(surface, rng)
        else:
            # A pond: the darkest pixels of a chip are water.
            cover[0, 90:110, 90:110] = 1
            for band, plane in surface.items():
                plane[90:110, 90:110] = rng.normal(
                    60 if band in ("B11", "B12") else 150, 8, (20, 20)
                )
        lift_l1c = 1000 if name in LIFTED_L1C else 0
        lift_l2a = 1000 if name == "433D_629L_3_1" else 0
        below = _stacked(surface, S2_L2A, "int16", lift_l2a)
        red, nir = (below[S2_L2A.index(b)].astype(np.float64) for b in ("B4", "B8"))
        layers = {
            "S2L1C": _stacked(_top(surface), S2_L1C, "int16", lift_l1c),
            "S2L2A": below,
            "S1RTC": land.radar.astype(np.float64),
            "DEM": land.elevation,
            "LULC": cover,
            "NDVI": ((nir - red) / (nir + red))[None],
            "S2RGB": (below[[3, 2, 1]] / 12).clip(0, 255).astype(np.uint8),
        }
        at = from_origin(4e5 + 5000 * number, 5.2e6, 10, 10)
        for layer, pixels in layers.items():
            _write(folder / layer / f"{name}.tif", pixels, crs=_UTM, transform=at)


def _snow(surface: Mapping[str, Image], rng: np.random.Generator) -> dict[str, Image]:
    bright = {"B10": 12, "B11": 1100, "B12": 850}
    shade = surface["B8"] / surface["B8"].mean()
    own = {n: 2000 * _coarse(rng.normal(0, 1, shade.shape), 5) for n in surface}
    return {
        n: bright.get(n, 8000) * (0.8 + 0.2 * shade + own[n] / 8000)
        + rng.normal(0, 20, shade.shape)
        for n in surface
    }


FLOODS = ("India_900498", "Nigeria_812045", "Pakistan_849790", "Spain_7370579", "USA_905409")
NIGERIA_INVALID = 579


def _write_sen1floods11(folder: Path) -> None:
    pixel = 8.983152841195215e-05
    for number, name in enumerate(FLOODS):
        rng, land = np.random.default_rng([5, number]), _landscape(512, 50 + number)
        at = Affine(pixel, 0, 5.0 * number, 0, -pixel, 30.0)
        where = {"crs": "EPSG:4326", "transform": at}
        radar = land.radar.copy()
        if name == "Nigeria_812045":
            radar[:, 100, : NIGERIA_INVALID - 200] = np.nan
            radar[:, 101, :200] = np.nan
        _write(folder / f"S1Hand/{name}_S1Hand.tif", radar, ("VV", "VH"), nodata=np.nan, **where)
        label = (land.landcover == 80).astype(np.int16)
        label[0, :40, :60] = -1
        _write(folder / f"LabelHand/{name}_LabelHand.tif", label, **where)
        if name in ("India_900498", "Spain_7370579"):
            pixels = _stacked(_top(_bands(land, rng)), S2_L1C, "int16")
            _write(folder / f"S2Hand/{name}_S2Hand.tif", pixels, S2_L1C, nodata=0, **where)


_TILE_ROWS = ((0, 250), (251, 502), (501, 752), (751, 947))
_TILE_COLUMNS = ((0, 251), (250, 501), (500, 751), (750, 930))
_ABERYSTWYTH = (257070.59483340546, 285728.7167059921)
_ABERYSTWYTH_CLASSES = {10: 1, 50: 3, 80: 4}


def _write_aberystwyth(folder: Path) -> None:
    """Sixteen tiles of 947 × 930 pixels without row 250; a class map; two elevation models."""
    land, margin = _landscape(1100, 61), 60
    left, top = _ABERYSTWYTH
    crs = "EPSG:27700"

    def at(row: int, col: int) -> dict[str, Any]:
        return {"crs": crs, "transform": from_origin(left + 10 * col, top - 10 * row, 10, 10)}

    optical = np.rint(land.sentinel2[:, margin:, margin:] / 10).clip(1, None).astype(np.uint16)
    tiles = [(r, c) for r in _TILE_ROWS for c in _TILE_COLUMNS]
    for number, ((r, r_end), (c, c_end)) in enumerate(tiles):
        _write(folder / f"sen2_20210527_aber_tile{number}.tif", optical[:, r:r_end, c:c_end],
               **at(r, c))  # fmt: skip
    one_west = (slice(margin, margin + 947), slice(margin - 1, margin + 930))
    cover = land.landcover[0][one_west]
    ids = np.vectorize(lambda i: _ABERYSTWYTH_CLASSES.get(i, 2))(cover).astype(np.uint16)
    _write(folder / "sen2_20210527_aber_cls.tif", ids[None], nodata=0, **at(0, -1))
    part = land.elevation[0][one_west].copy()
    part[:, : int(0.33 * part.shape[1])] = 0
    _write(folder / "SRTM_aber.tif", part[None], nodata=0, **at(0, -1))
    degrees = np.full((1645, 593), -32767, np.int16)
    grid = Affine(
        0.0005555555555555556, 0, -4.154722222222222, 0, -0.0002777777777777778, 52.599306
    )
    reproject(
        land.elevation[0], degrees, src_transform=at(-margin, -margin)["transform"], src_crs=crs,
        dst_transform=grid, dst_crs="EPSG:4326", dst_nodata=-32767, resampling=Resampling.bilinear,
    )  # fmt: skip
    _write(folder / "AberSRTM_4326.tif", degrees[None], nodata=-32767, crs="EPSG:4326",
           transform=grid)  # fmt: skip


def _write_bigearthnet(folder: Path) -> None:
    """A patch as distributed: a file per band, 120, 60 and 20 pixels wide, in an archive."""
    sizes = {"B01": 20, "B09": 20, **dict.fromkeys(("B05", "B06", "B07", "B8A", "B11", "B12"), 60)}
    names = (*(b for b in EUROSAT if b != "B10"),)
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(folder / "BigEarthNet-S2-Example.tar.bz2", "w:bz2") as archive:
        for number in range(2):
            rng, land = np.random.default_rng([6, number]), _landscape(224, 70 + number)
            bands = _bands(land, rng)
            patch = f"S2A_MSIL2A_2017061{number}T113321_36_85"
            for name in names:
                side = sizes.get(name, 120)
                step = 120 // side
                plane = _stacked(bands, [name], "uint16")[:, :120:step, :120:step]
                file = folder / f"{patch}_{name}.tif"
                _write(file, plane, crs=_UTM, transform=from_origin(5e5, 5e6, 10 * step, 10 * step))
                archive.add(file, f"BigEarthNet-S2-Example/{patch}/{file.name}")
                file.unlink()


def _write_kilns(folder: Path) -> None:
    """Five chips of m-brick-kiln under the names of an early release, all of them in each split."""
    made = write_geobench(folder.parent / "made", "m-brick-kiln", size=64)
    folder.mkdir(parents=True, exist_ok=True)
    keys = [f"examples_0_{i}" for i in (9, 12, 19, 37, 40)]
    land, rng = _landscape(64 * 4, 81), np.random.default_rng(7)
    bands = {name: plane + 150 for name, plane in _bands(land, rng).items()}
    # Dark enough for the pictures, which end at 255.
    windows = sorted(_windows(64 * 4, 64, 16), key=lambda w: float(bands["B4"][w].max()))
    for picture, band in (("TCI4", "B4"), ("TCI3", "B3"), ("TCI2", "B2")):
        bands[picture] = np.rint(bands[band] / 10).clip(1, 255)
    for number, key in enumerate(keys):
        file = sorted(Path(made).glob("*.hdf5"))[0].rename(folder / f"{key}.hdf5")
        with h5py.File(file, "r+") as chip:
            for name, band in zip(sorted(n for n in chip if n != "label"), _KILN, strict=True):
                chip[name][...] = np.rint(bands[band][windows[number]])
    for name in ("band_stats.json", "task_specs.pkl", "label_map.json"):
        if (Path(made) / name).is_file():
            (Path(made) / name).rename(folder / name)
    partition = json.dumps(dict.fromkeys(("train", "valid", "test"), keys))
    (folder / "default_partition.json").write_text(partition)
    shutil.rmtree(folder.parent / "made")
