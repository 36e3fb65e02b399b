"""Writes folders in GEO-Bench's layout, with its types, names and traps, from made-up chips: for
tests and measurements where the real benchmark is not at hand.

What is stored under which name is written down here once more, channel by channel as the files
have it, so that the reader's tables can be tested against it.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from multimae_eo.errors import ConfigError, OutputError
from multimae_eo.sources.geobench.bands import DATASETS, HYPERSPECTRAL_BANDS, GeoBenchData

Image = npt.NDArray[Any]
FRACTIONS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)

# Mean reflectance of m-eurosat's bands (true names), in thousandths.
_MEAN = {"B1": 136, "B2": 113, "B3": 106, "B4": 96, "B5": 122, "B6": 205, "B7": 243, "B8": 236,
         "B8A": 267, "B9": 75, "B10": 1.2, "B11": 185, "B12": 113}  # fmt: skip
_NAMES = ("01 - Coastal aerosol", "02 - Blue", "03 - Green", "04 - Red", "05 - Vegetation Red Edge",
          "06 - Vegetation Red Edge", "07 - Vegetation Red Edge", "08 - NIR",
          "08A - Vegetation Red Edge", "09 - Water vapour", "10 - SWIR - Cirrus", "11 - SWIR",
          "12 - SWIR")  # fmt: skip
_S2 = ("B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B9", "B10", "B11", "B12")
_EUROSAT = ("B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B9", "B10", "B11", "B12", "B8A")
_KILN = ("B1", "B2", "B3", "B4", "B5", "B7", "B8A", "B8", "B11", "B12", "TCI4", "TCI3", "TCI2")
_SAR = ("01 - VH.Real", "02 - VH.Imaginary", "03 - VV.Real", "04 - VV.Imaginary",
        "05 - VH.LEE Filtered", "06 - VV.LEE Filtered", "07 - VH.LEE Filtered.Real",
        "08 - VV.LEE Filtered.Imaginary")  # fmt: skip
_LANDSAT = (("04 - Red", "B4"), ("03 - Green", "B3"), ("02 - Blue", "B2"), ("05 - NIR", "B8A"),
            ("06 - SWIR1", "B11"), ("07 - SWIR2", "B12"))  # fmt: skip
_RGB = (("Red", "B4"), ("Green", "B3"), ("Blue", "B2"))
_CLOUD = "Cloud Probability"
_UTM = (
    'PROJCS["WGS 84 / UTM zone 34N",GEOGCS["WGS 84",DATUM["WGS_1984",'
    'SPHEROID["WGS 84",6378137,298.257223563]],PRIMEM["Greenwich",0],'
    'UNIT["degree",0.0174532925199433]],PROJECTION["Transverse_Mercator"],'
    'PARAMETER["latitude_of_origin",0],PARAMETER["central_meridian",21],'
    'PARAMETER["scale_factor",0.9996],PARAMETER["false_easting",500000],'
    'PARAMETER["false_northing",0],UNIT["metre",1],AUTHORITY["EPSG","32634"]]'
)
"""As rasterio pickles a CRS, which other readers of these files let it restore."""


@dataclass(frozen=True)
class _Named:
    """An object of a class that need not exist here: what a pickle says of it."""

    module: str
    name: str
    state: Any = field(default_factory=dict)
    arguments: tuple[Any, ...] = ()


def pickled(value: Any) -> bytes:
    """A pickle (protocol 4) of containers, numbers, dates, arrays and ``_Named`` objects."""
    return b"\x80\x04" + _code(value) + b"."


def _code(value: Any) -> bytes:
    if value is None or isinstance(value, bool):
        return {None: b"N", True: b"\x88", False: b"\x89"}[value]
    if type(value) is int:
        return b"J" + struct.pack("<i", value)
    if type(value) is float:
        return b"G" + struct.pack(">d", value)
    if isinstance(value, str | bytes):
        data = value.encode() if isinstance(value, str) else value
        return (b"X" if isinstance(value, str) else b"B") + struct.pack("<I", len(data)) + data
    if isinstance(value, list | tuple | dict):
        flat = value if not isinstance(value, dict) else [x for kv in value.items() for x in kv]
        start, end = {list: (b"](", b"e"), tuple: (b"(", b"t"), dict: (b"}(", b"u")}[type(value)]
        return start + b"".join(_code(v) for v in flat) + end
    if isinstance(value, _Named):
        made = _global(value.module, value.name) + _code(value.arguments) + b"\x81"
        return made + _code(value.state) + b"b"
    if isinstance(value, type) or callable(value):
        return _global(value.__module__, value.__name__)
    function, arguments, *state = value.__reduce__()
    made = _code(function) + _code(arguments) + b"R"
    return made + (_code(state[0]) + b"b" if state else b"")


def _global(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def write_geobench(
    root: Path,
    name: str,
    *,
    chips: tuple[int, int, int] = (8, 4, 4),
    size: int | None = None,
    seed: int = 0,
    dates: int = 1,
) -> Path:
    """Write a data set of ``chips`` (train, valid, test) in ``root`` / its benchmark / ``name``.

    ``size``: pixels of a side, by default as published; m-NeonTree's is a multiple of 10.
    ``dates``: of each band, where the data set has any, in one file; 1 as published.

    Returns the data set's folder. Raises ConfigError for an unknown name, OutputError where it
    cannot be written.
    """
    if name not in DATASETS or min(chips) < 1:
        raise ConfigError(f"geobench: need a chip per split of one of {', '.join(DATASETS)}")
    data = DATASETS[name]
    rng = np.random.default_rng([seed, len(name), data.size])
    folder = Path(root) / data.benchmark / name
    ids = [_chip_id(data, i) for i in range(sum(chips))]
    look = rng.uniform(0.5, 1.5, (len(data.classes), len(_MEAN)))
    look /= look.mean(axis=0)
    labels: dict[str, Any] = {}
    written = []
    for i, key in enumerate(ids):
        chip = _chip(data, i, size or data.size, look, rng)
        labels[key] = chip.label
        written.append(chip)
        _write(folder / f"{key}.hdf5", partial(_write_chip, data=data, chip=chip, dates=dates))
    train, valid = chips[0], chips[0] + chips[1]
    splits = {"train": ids[:train], "valid": ids[train:valid], "test": ids[valid:]}
    records: dict[str, Any] = {"default_partition.json": splits}
    for fraction in FRACTIONS:
        part = rng.choice(ids[:train], int(train * fraction), replace=False).tolist()
        records[f"{fraction:.2f}x_train_partition.json"] = {**splits, "train": part}
    records["band_stats.json"] = _band_stats(written)
    if data.label == "class":
        records["label_map.json"] = {
            str(c): [k for k in ids if labels[k] == c] for c in range(len(data.classes))
        }
    for file, record in records.items():
        _write_json(folder / file, record)
    _write_json(folder.parent / "normalizer.json", {
        n: [0.3, 0.9] for n, d in DATASETS.items() if d.benchmark == data.benchmark
    })  # fmt: skip
    _write(folder / "task_specs.pkl", lambda path: path.write_bytes(pickled(_task(data))))
    return folder


@dataclass(frozen=True)
class _Chip:
    index: int
    label: Any
    bands: Mapping[str, Image]


def _chip_id(data: GeoBenchData, i: int) -> str:
    """Names with dots, commas and brackets, as several data sets have them."""
    return {
        "m-brick-kiln": f"examples_{i // 10}_{i % 10}",
        "m-forestnet": f"-1.25{i:02d}_102.5_2014_07_07",
        "m-pv4ger": f"51.25{i:02d},6.75",
        "m-pv4ger-seg": f"51.25{i:02d},6.75",
        "m-nz-cattle": f"{i}_Kapiti_Coast_[2014-2015]_175.1,-40.{i:02d}",
        "m-NeonTree": f"2018_SJER_3_252000_4107000_image_{i}_00_01",
    }.get(data.name, f"id_{i:04d}")


def _chip(
    data: GeoBenchData, i: int, size: int, look: npt.NDArray[np.float64], rng: np.random.Generator
) -> _Chip:
    """Pixels whose spectrum tells their class; (``_MEAN`` bands) of true reflectance first."""
    classes = len(data.classes)
    label: Any = i % classes
    kinds = np.full((size, size), label)
    if data.label == "classes":
        label = np.zeros(classes, np.int64)
        label[[i % classes, (3 * i + 1) % classes]] = 1
        kinds = np.where(np.arange(size) % 2 == 0, *np.flatnonzero(label)[[0, -1]]) + 0 * kinds
    elif data.label == "map":
        coarse = rng.integers(classes, size=(4, 4))
        label = kinds = coarse[np.ix_(*[np.arange(size) * 4 // size] * 2)].astype(np.int16)
    truth = {
        band: mean / 1000 * look[kinds, j] * rng.normal(1, 0.05, (size, size)).clip(0.5)
        for j, (band, mean) in enumerate(_MEAN.items())
    }
    return _Chip(i, label, _STORED[data.name](truth, rng))


def _digital(bands: Iterable[tuple[str, str]]) -> Callable[..., dict[str, Image]]:
    """Sentinel-2 as int16 digital numbers; 0 where there is nothing, in one corner."""

    def store(truth: Mapping[str, Image], _: Any) -> dict[str, Image]:
        found = {n: np.rint(truth[b] * 1e4).astype(np.int16) for n, b in bands}
        for values in found.values():
            values[0, 0] = 0
        return found

    return store


def _cloudy(truth: Mapping[str, Image], rng: Any) -> dict[str, Image]:
    found = _digital(_TWELVE)(truth, rng)
    return {**found, _CLOUD: rng.integers(0, 100, truth["B2"].shape).astype(np.int16)}


def _crops(truth: Mapping[str, Image], _: Any) -> dict[str, Image]:
    found = {n: np.rint(truth[b] * 255).clip(0, 255).astype(np.int16) for n, b in _TWELVE}
    return {**found, _CLOUD: np.zeros(truth["B2"].shape, np.int16)}


def _kiln(truth: Mapping[str, Image], _: Any) -> dict[str, Image]:
    """Medians of digital numbers, halves included, as float64; true colour is a tenth of them."""
    found = {}
    for stored, band in zip(_NAMES, _KILN, strict=True):
        picture = band.startswith("TCI")
        values = np.rint(truth["B" + band[3:] if picture else band] * 2e4) / 2
        found[stored] = np.rint(values / 5).clip(0, 510) / 2 if picture else values
    return found


def _so2sat(truth: Mapping[str, Image], rng: Any) -> dict[str, Image]:
    """Reflectance, and radar as complex numbers, intensities and their covariance; float32."""
    vh, vv = 0.1 * truth["B11"], 0.6 * truth["B11"]
    turn = rng.uniform(-np.pi, np.pi, (2, *vh.shape))
    radar = [np.sqrt(vh) * np.cos(turn[0]), np.sqrt(vh) * np.sin(turn[0]),
             np.sqrt(vv) * np.cos(turn[1]), np.sqrt(vv) * np.sin(turn[1]), vh, vv,
             np.sqrt(vh * vv) * np.cos(turn[0] - turn[1]),
             np.sqrt(vh * vv) * np.sin(turn[0] - turn[1])]  # fmt: skip
    radar[4][0, 0] = 0.0
    found = dict(zip(_SAR, radar, strict=True))
    found |= {n: truth[b] for n, b in _TWELVE if b not in ("B1", "B9")}
    return {n: v.astype(np.float32) for n, v in found.items()}


def _forestnet(truth: Mapping[str, Image], _: Any) -> dict[str, Image]:
    """8-bit pictures, faded to white outside the lost forest (here the left half)."""
    found = {n: np.rint(truth[b] * 300).clip(0, 255) for n, b in _LANDSAT}
    for values in found.values():
        right = values[:, values.shape[1] // 2 :]
        right[:] = np.floor(0.75 * right + 0.25 * 255)
    return {n: v.astype(np.uint8) for n, v in found.items()}


def _aerial(truth: Mapping[str, Image], _: Any) -> dict[str, Image]:
    return {n: np.rint(truth[b] * 700).clip(0, 255).astype(np.int16) for n, b in _RGB}


def _chesapeake(truth: Mapping[str, Image], rng: Any) -> dict[str, Image]:
    nir = np.rint(truth["B8"] * 500).clip(0, 255).astype(np.int16)
    return {**_aerial(truth, rng), "NearInfrared": nir}


def _neon(truth: Mapping[str, Image], rng: Any) -> dict[str, Image]:
    """A tenth of the pixels for height and spectrum, with the channel last; nodata became 0."""
    height = np.rint(truth["B8"][::10, ::10, None] * 60).astype(np.int16)
    share = np.linspace(0, 1, HYPERSPECTRAL_BANDS)
    spectrum = (1 - share) * truth["B4"][::10, ::10, None] + share * truth["B11"][::10, ::10, None]
    spectrum = np.rint(spectrum * 1e4).astype(np.int16)
    spectrum[0, 0] = 0
    return {**_aerial(truth, rng), "Canopy Height Model": height, "Neon": spectrum}


_TWELVE = tuple((n, b) for n, b in zip(_NAMES, _S2, strict=True) if b != "B10")
_STORED: Mapping[str, Callable[[Mapping[str, Image], Any], dict[str, Image]]] = {
    "m-bigearthnet": _digital(_TWELVE),
    "m-so2sat": _so2sat,
    "m-brick-kiln": _kiln,
    "m-forestnet": _forestnet,
    "m-eurosat": _digital(tuple(zip(_NAMES, _EUROSAT, strict=True))),
    "m-pv4ger": _aerial,
    "m-pv4ger-seg": _aerial,
    "m-chesapeake": _chesapeake,
    "m-cashew-plant": _cloudy,
    "m-SA-crop-type": _crops,
    "m-nz-cattle": _aerial,
    "m-NeonTree": _neon,
}
_FIRST_DATE = {
    "m-forestnet": date(2014, 7, 7),
    "m-cashew-plant": date(2019, 11, 5),
    "m-nz-cattle": date(2015, 1, 1),
}


def _write_chip(path: Path, data: GeoBenchData, chip: _Chip, dates: int) -> None:
    first = _FIRST_DATE.get(data.name)
    days = [None] if first is None else [first.replace(year=first.year + n) for n in range(dates)]
    bands = dict(chip.bands)
    about: dict[str, Any] = {}
    if data.label == "map":
        bands["label"] = chip.label
    else:
        about["label"] = chip.label
    order = []
    with h5py.File(path, "w") as file:
        for number, day in enumerate(days):
            for name, values in bands.items():
                # m-nz-cattle's label has the date of its bands, m-cashew-plant's has none.
                dated = day is not None and (name != "label" or data.name == "m-nz-cattle")
                if name == "label" and number and not dated:
                    continue
                stored = f"{name}_{day.isoformat()}" if day is not None and dated else name
                later = 0 if name == "label" else number
                file.create_dataset(stored, data=(values + later).astype(values.dtype))
                about[stored] = _about(data, chip, name, day if dated else None)
                order.append(stored)
        file.attrs["pickle"] = str(pickled({**about, "bands_order": order}))


def _about(data: GeoBenchData, chip: _Chip, name: str, day: date | None) -> dict[str, Any]:
    info = "SegmentationClasses" if name == "label" else "SpectralBand"
    transform, crs = _position(data, chip)
    extra: Any = None
    if data.name == "m-forestnet":
        composite = chip.index % 4 == 3  # of all years, under the first of January
        region = "POLYGON ((0 0, 166 0, 166 332, 0 332, 0 0))"
        extra = {"n_cloud_pixels": None if composite else 12, "is_composite": composite,
                 "forest_loss_region": region}  # fmt: skip
    return {
        "date": day,
        "date_id": day,
        # The resolution of the labels' source, whatever the image's is.
        "spatial_resolution": 0.5 if data.name == "m-cashew-plant" else data.layers[0].gsd_m,
        "band_info": _Named("geobench.dataset", info, {"name": name, "alt_names": ()}),
        "meta_info": extra,
        "transform": transform,
        "crs": crs,
    }


def _position(data: GeoBenchData, chip: _Chip) -> tuple[Any, Any]:
    """Where the chip is said to be: true, wrong in one of three ways, or untold."""
    i, pixel = chip.index, 1e-4
    utm = _Named("rasterio.crs", "CRS", _UTM)
    places: Mapping[str, tuple[tuple[float, ...], Any]] = {
        "m-bigearthnet": ((10.0, 0.0, 3e5 + 1200 * i, 0.0, -10.0, 5e6), utm),
        "m-eurosat": ((10.0, 0.0, 3e5 + 640 * i, 0.0, -10.0, 5e6), utm),
        "m-brick-kiln": ((pixel, 0.0, 90.0 + i, 0.0, -pixel, 24.0), "EPSG:4326"),
        "m-forestnet": ((pixel, 0.0, 102.5, 0.0, -pixel, -1.25 - i), "EPSG:4326"),
        "m-pv4ger": ((pixel, 0.0, 6.75, 0.0, -pixel, 51.0 + i), "EPSG:4326"),
        "m-pv4ger-seg": ((pixel, 0.0, 6.75, 0.0, -pixel, 51.0 + i), "EPSG:4326"),
        # One place for all chips; a tile's corner for its slices; tenths of a degree for metres.
        "m-SA-crop-type": ((10.0, 0.0, 331040.0, 0.0, -10.0, -3714560.0), utm),
        "m-NeonTree": ((0.1, 0.0, 252000.0, 0.0, -0.1, 4107000.0), utm),
        "m-nz-cattle": ((0.1, 0.0, 175.1, 0.0, -0.1, -40.9), "EPSG:4326"),
    }
    if data.name not in places:
        return None, None
    six, crs = places[data.name]
    state = dict(zip("abcdefghi", (*six, 0.0, 0.0, 1.0), strict=True))
    return _Named("affine", "Affine", state, six), crs


def _band_stats(chips: Sequence[_Chip]) -> dict[str, dict[str, float]]:
    found = {}
    for name in chips[0].bands:
        values = np.concatenate([c.bands[name].ravel() for c in chips]).astype(np.float64)
        found[name] = {k: float(getattr(values, k)()) for k in ("mean", "std", "min", "max")}
    return found


def _task(data: GeoBenchData) -> _Named:
    kind = {"class": "Classification", "classes": "MultiLabelClassification"}.get(data.label)
    names = list(data.classes)
    about = {"n_classes": len(names), "_class_names": names}
    if kind is None:
        label = _Named("geobench.dataset", "SegmentationClasses", about)
    else:
        label = _Named("geobench.label", kind, about)
    state = {"dataset_name": data.name, "patch_size": (data.size, data.size), "n_time_steps": 1,
             "label_type": label}  # fmt: skip
    return _Named("geobench.task", "TaskSpecifications", state)


def _write_json(path: Path, record: object) -> None:
    _write(path, lambda part: part.write_text(json.dumps(record), encoding="utf-8"))


def _write(path: Path, write: Callable[[Path], object]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error}; free space") from error
