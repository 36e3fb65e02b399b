"""Series of a synthetic farmland: crops that differ in season only, forest, and clearings.

Every crop has two of three growing seasons, fallow land none. At any one date half of the four
classes are green and half are bare, so that a single date cannot separate them; the series does.
Forest is green all year; where it is cleared it looks like land that was always bare from then on.
Nothing here is measured data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from multimae_eo import catalog
from multimae_eo.errors import ConfigError
from multimae_eo.files import write_file
from multimae_eo.geo import Geometry
from multimae_eo.modality import ModalitySet
from multimae_eo.sample import Calibration, Dates, Pixels, Sample, Validity
from multimae_eo.sources.acquisition_dates import date_text
from multimae_eo.sources.base import Source
from multimae_eo.sources.landscape import GSD_M
from multimae_eo.sources.synthetic import require_rasterio, write_geotiff

SeriesLabel = Literal["crop", "crop map", "change", "change map"]

CROPS = ("two early crops", "early and late crop", "two late crops", "fallow")
CHANGES = ("unchanged", "cleared")

# The seasons (spring, summer, autumn) in which each crop is green.
_SEASONS = np.array([(1, 1, 0), (1, 0, 1), (0, 1, 1), (0, 0, 0)], np.float64)
_PEAKS, _SEASON_DAYS = np.array([105.0, 190.0, 275.0]), 18.0
_MOST_WEEDS = 0.15
_FOREST, _CLEARED, _FALLOW = len(CROPS), len(CROPS) + 1, len(CROPS) - 1
_SHARES_OF_CHANGE = {_FOREST: 0.3, _CLEARED: 0.2, _FALLOW: 0.3, 0: 0.1, 1: 0.1}
"""Covers of parcels where changes are labelled: twice as much land is bare as was cleared."""

_BANDS = ("B2", "B3", "B4", "B8")
# Surface reflectance x 10000 of bare soil, of a crop and of trees, in the order of the bands.
_SOIL = np.array([820, 1150, 1480, 2550], np.float64)
_CROP = np.array([330, 760, 370, 5050], np.float64)
_TREES = np.array([260, 480, 300, 3100], np.float64)
_SCALE = 1e-4
_BARE_DB, _GREEN_DB = np.array([-13.0, -22.5]), np.array([-10.0, -16.0])
_PARCELS = 5
_BLOCK_DAYS, _BLOCKS = 10, 36
_SPLITS = {"train": 0.6, "val": 0.1, "test": 0.3}
_YEARS = {"train": 2019, "val": 2019, "test": 2021}


@dataclass(frozen=True, kw_only=True)
class SeriesOptions:
    """What a synthetic series holds.

    ``dates``: acquisitions of a year, at most 18. ``missing``: probability that one is missing.
    ``clouds``: probability that one is half under cloud. ``label``: what chips are labelled with.
    ``radar``: whether there is a second series, on other dates, without clouds.
    """

    dates: int = 12
    missing: float = 0.0
    clouds: float = 0.2
    label: SeriesLabel = "crop"
    radar: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.dates <= _BLOCKS // 2:
            raise ConfigError(
                f"synthetic series: dates: from 1 to {_BLOCKS // 2}, got {self.dates}"
            )
        for name in ("missing", "clouds"):
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise ConfigError(f"synthetic series: {name}: a probability below 1, got {value}")


class SyntheticSeries(Source):
    """Chips of a synthetic farmland, in memory; equal arguments give equal chips.

    Modalities: ``s2``, a series (T, 4, H, W) of Sentinel-2 (uint16, reflectance x 10000); with
    ``radar`` ``s1``, a series of VV and VH in dB (float32); ``elevation`` (int16, m), an image.
    Chips have different dates. Those of the split ``test`` lie in another year, and in ten-day
    blocks of the year in which no training chip has a date. Labels are the chip's crop, or whether
    forest was cleared between its first and its last date, or a map (H, W) of either.
    """

    def __init__(
        self, chips: int, size: int = 8, seed: int = 0, *, options: SeriesOptions | None = None
    ) -> None:
        if chips < len(_SPLITS) or size < 1:
            raise ConfigError(
                f"synthetic series: need 3 chips of 1 px or more, got {chips}, {size}"
            )
        self.name = "synthetic-series"
        self.options = options or SeriesOptions()
        self.class_names = CHANGES if self.options.label.startswith("change") else CROPS
        optical = catalog.make_modality("s2", sensor_name="sentinel2", bands=_BANDS)
        modalities = [replace(optical, scale=_SCALE), catalog.modality("elevation")]
        if self.options.radar:
            modalities.append(
                catalog.make_modality("s1", sensor_name="sentinel1", bands=("VV", "VH"))
            )
        self.modalities = ModalitySet(modalities)
        self._size, self._seed = size, seed
        self.keys = [f"farm-{i:05d}" for i in range(chips)]
        ends = np.cumsum([max(1, round(share * chips)) for share in _SPLITS.values()])
        ends = np.minimum(ends, chips - np.arange(len(_SPLITS))[::-1])
        names = list(_SPLITS)
        self.split_of = [names[int(np.searchsorted(ends[:-1], i, "right"))] for i in range(chips)]

    def read(self, index: int, names: Sequence[str] | None = None) -> Sample:
        """Make one chip."""
        chosen = self.modalities if names is None else self.modalities.select(names)
        farm = _Farm.of(np.random.default_rng([self._seed, 7, index]), self._size, self.options)
        split = self.split_of[index]
        dates = {
            "s2": self._dates(index, split, 0),
            "s1": self._dates(index, split, 1),
        }
        first, last = dates["s2"][0], dates["s2"][-1]
        cleared_on = first + (0.3 + 0.4 * farm.clearing) * (last - first)
        pixels: dict[str, Pixels] = {}
        valid: dict[str, Validity] = {}
        for name in chosen:
            if name == "elevation":
                pixels[name] = farm.elevation
            elif name == "s1":
                pixels[name] = _backscatter(farm, dates[name], cleared_on, self._random(index, 3))
            else:
                rng = self._random(index, 2)
                pixels[name] = _reflectance(farm, dates[name], cleared_on, rng)
                clear = _clear(len(dates[name]), self._size, self.options.clouds, rng)
                if not clear.all():
                    valid[name] = clear
                    pixels[name][~np.broadcast_to(clear, pixels[name].shape)] = 0
        sample = Sample(
            key=self.keys[index],
            pixels=pixels,
            valid=valid,
            calibration={"s2": Calibration(scale=_SCALE, level="l2a")} if "s2" in pixels else {},
            geometry=_geometry(index, self._size),
            label=self._label(farm),
            dates={n: dates[n] for n in pixels if n in dates},
        )
        return sample.at_dates(self._kept(index, sample.dates))

    def scene(self, across: int) -> tuple[Sample, npt.NDArray[np.int64]]:
        """Fields of farms that no chip has, ``across`` × ``across`` chips on the same dates, and
        the map of their crops (H, W)."""
        first, size = len(self.keys), self._size
        dates = self._dates(first, "test", 0)
        side = across * size
        pixels = np.zeros((len(dates), len(_BANDS), side, side), np.uint16)
        crops = np.zeros((side, side), np.int64)
        for number, (row, col) in enumerate(np.ndindex(across, across)):
            index = first + number
            farm = _Farm.of(np.random.default_rng([self._seed, 7, index]), size, self.options)
            at = np.s_[row * size : (row + 1) * size, col * size : (col + 1) * size]
            crops[at] = farm.cover
            pixels[(..., *at)] = _reflectance(farm, dates, dates[-1], self._random(index, 2))
        clear = _clear(len(dates), side, self.options.clouds, self._random(first, 4))
        pixels *= clear
        geometry = _geometry(first + 20, side)
        sample = Sample(
            key="scene",
            pixels={"s2": pixels},
            valid={"s2": clear},
            geometry=geometry,
            dates={"s2": dates},
        )
        return sample, crops

    def _random(self, index: int, part: int) -> np.random.Generator:
        return np.random.default_rng([self._seed, part, index])

    def _dates(self, index: int, split: str, part: int) -> Dates:
        """Days since 1970, one in each of some ten-day blocks of the split's year."""
        rng = self._random(index, 20 + part)
        blocks = rng.choice(_BLOCKS // 2, self.options.dates, replace=False) * 2
        blocks = np.sort(blocks) + (split == "test")
        start = (np.datetime64(f"{_YEARS[split]}-01-01") - np.datetime64("1970-01-01")).astype(int)
        days: Dates = start + _BLOCK_DAYS * (blocks + rng.uniform(0.05, 0.95, len(blocks)))
        return days

    def _kept(self, index: int, dates: Mapping[str, Dates]) -> dict[str, npt.NDArray[np.bool_]]:
        """Which dates are not missing: of each series at least one."""
        rng = self._random(index, 30)
        kept = {}
        for name in ("s2", "s1"):
            drawn = rng.random(self.options.dates)
            if name in dates:
                kept[name] = (drawn >= self.options.missing) | (drawn == drawn.max())
        return kept

    def _label(self, farm: _Farm) -> int | npt.NDArray[np.int64]:
        change = self.options.label.startswith("change")
        labels = (farm.cover == _CLEARED).astype(np.int64) if change else farm.cover
        if self.options.label.endswith("map"):
            return labels
        return int(labels.max() if change else labels[0, 0])


@dataclass(frozen=True, kw_only=True)
class _Farm:
    """The land of a chip: int64 (H, W) ``cover`` and ``parcel``; values of each parcel.

    ``delay`` in days, ``vigour`` and ``brightness`` around 1, ``clearing`` from 0 to 1.
    """

    cover: npt.NDArray[np.int64]
    parcel: npt.NDArray[np.int64]
    delay: npt.NDArray[np.float64]
    vigour: npt.NDArray[np.float64]
    brightness: npt.NDArray[np.float64]
    clearing: float
    elevation: npt.NDArray[np.int16]

    @classmethod
    def of(cls, rng: np.random.Generator, size: int, options: SeriesOptions) -> _Farm:
        rows, cols = np.mgrid[:size, :size]
        centres = rng.uniform(0, size, (_PARCELS, 2))
        apart = np.hypot(rows[..., None] - centres[:, 0], cols[..., None] - centres[:, 1])
        parcel = apart.argmin(axis=2)
        if options.label.startswith("change"):
            covers, shares = list(_SHARES_OF_CHANGE), list(_SHARES_OF_CHANGE.values())
            cover_of = rng.choice(covers, _PARCELS, p=shares)
        elif options.label == "crop":
            cover_of = np.full(_PARCELS, rng.integers(len(CROPS)))
        else:
            cover_of = rng.integers(len(CROPS), size=_PARCELS)
        return cls(
            cover=cover_of[parcel],
            parcel=parcel,
            delay=rng.normal(0, 5, _PARCELS),
            vigour=rng.uniform(0.55, 1.0, _PARCELS),
            brightness=rng.uniform(0.75, 1.25, _PARCELS),
            clearing=float(rng.random()),
            elevation=rng.integers(50, 400) + rng.integers(0, 9, (1, size, size), dtype=np.int16),
        )

    def green(
        self, dates: Dates, cleared_on: float, rng: np.random.Generator
    ) -> npt.NDArray[np.float64]:
        """The share of each pixel under leaves, of crops or weeds, from 0 to 1: (T, H, W)."""
        day = dates[:, None, None] - self.delay[self.parcel]
        day = (day % 365.2425)[..., None]
        season = np.exp(-0.5 * ((day - _PEAKS) / _SEASON_DAYS) ** 2)
        crops = (season * _SEASONS[np.minimum(self.cover, _FALLOW)]).sum(axis=-1)
        weeds = rng.uniform(0, _MOST_WEEDS, (len(dates), _PARCELS))[:, self.parcel]
        crops = np.maximum(crops * self.vigour[self.parcel], weeds)
        cleared = (self.cover == _CLEARED) & (dates[:, None, None] >= cleared_on)
        trees = (self.cover == _FOREST) | (self.cover == _CLEARED)
        green: npt.NDArray[np.float64] = np.where(cleared, weeds, np.where(trees, 0.9, crops))
        return green


def _reflectance(farm: _Farm, dates: Dates, cleared_on: float, rng: np.random.Generator) -> Pixels:
    """Reflectance x 10000: uint16 (T, 4, H, W), never 0."""
    green = farm.green(dates, cleared_on, rng)[:, None]
    soil = _SOIL[:, None, None] * farm.brightness[farm.parcel]
    trees = np.isin(farm.cover, (_FOREST, _CLEARED))
    leaves = np.where(trees, _TREES[:, None, None], _CROP[:, None, None])
    haze = 1 + 0.03 * rng.standard_normal((len(dates), 1, 1, 1))
    values = (soil + (leaves - soil) * green) * haze
    values = values * (1 + 0.04 * rng.standard_normal(values.shape))
    reflectance: Pixels = np.clip(np.rint(values), 1, 12_000).astype(np.uint16)
    return reflectance


def _backscatter(farm: _Farm, dates: Dates, cleared_on: float, rng: np.random.Generator) -> Pixels:
    """VV and VH in dB: float32 (T, 2, H, W)."""
    green = farm.green(dates, cleared_on, rng)[:, None]
    bare, leaves = _BARE_DB[:, None, None], _GREEN_DB[:, None, None]
    speckle = rng.standard_normal((len(dates), 2, *farm.cover.shape))
    decibels: Pixels = (bare + (leaves - bare) * green + speckle).astype(np.float32)
    return decibels


def _clear(dates: int, size: int, clouds: float, rng: np.random.Generator) -> Validity:
    """Pixels without cloud: bool (T, 1, H, W); a cloudy date is clear on one side of a line."""
    rows, cols = np.mgrid[:size, :size] - (size - 1) / 2
    clear = np.ones((dates, 1, size, size), dtype=bool)
    for date in range(dates):
        cloudy, angle, shift = rng.random(), rng.uniform(0, 2 * np.pi), rng.uniform(-0.5, 0.5)
        if cloudy < clouds:
            clear[date, 0] = np.cos(angle) * rows + np.sin(angle) * cols > shift * size
    return clear


def write_series_files(
    folder: Path,
    *,
    chips: int = 400,
    size: int = 16,
    seed: int = 0,
    dates: int = 12,
    scene_chips: int = 6,
) -> Path:
    """Write a farmland with maps of its crops as GeoTIFF; returns the dataset file.

    ``folder`` receives ``s2/CHIP/DATE.tif``, ``crops/CHIP.tif``, ``split.csv`` and, last,
    ``dataset.yaml``; and a scene of other fields in the test chips' year, ``scene_chips`` chips
    high and wide: ``scene/DATE.tif``, ``scene.yaml`` and its crops, ``scene_crops.tif``. ``size``:
    side of a chip in pixels. Raises OutputError where something cannot be written, ConfigError
    without rasterio.
    """
    require_rasterio()
    options = SeriesOptions(dates=dates, missing=0.15, label="crop map")
    source = SyntheticSeries(chips, size, seed, options=options)
    lines = ["id,split"]
    for index, (key, split) in enumerate(zip(source.keys, source.split_of, strict=True)):
        sample = source.read(index, ["s2"])
        assert sample.geometry is not None
        for days, pixels in zip(sample.dates["s2"], sample.pixels["s2"], strict=True):
            path = folder / "s2" / key / f"{date_text(days)}.tif"
            write_geotiff(path, pixels, sample.geometry, bands=_BANDS, nodata=0)
        crops = sample.label[None].astype(np.uint8)
        write_geotiff(folder / "crops" / f"{key}.tif", crops, sample.geometry, bands=("crop",))
        lines.append(f"{key},{split}")
    write_file(folder / "split.csv", ("\n".join(lines) + "\n").encode())
    _write_scene(folder, source, scene_chips)
    text = (
        "# A synthetic farmland; nothing was measured.\n"
        f"name: farmland\nsize: {size}\nmodalities:\n"
        f'  s2: {{path: "s2/{{id}}/{{date}}.tif", sensor: sentinel2, bands: [{", ".join(_BANDS)}], '
        f"scale: {_SCALE}, level: l2a}}\n"
        f'labels: {{mask: "crops/{{id}}.tif", classes: [{", ".join(CROPS)}]}}\n'
        "splits: split.csv\n"
    )
    write_file(folder / "dataset.yaml", text.encode())
    return folder / "dataset.yaml"


def _write_scene(folder: Path, source: SyntheticSeries, across: int) -> None:
    """Fields of as many farms as ``across`` × ``across``, all on the same dates."""
    sample, crops = source.scene(across)
    assert sample.geometry is not None
    for days, pixels in zip(sample.dates["s2"], sample.pixels["s2"], strict=True):
        path = folder / "scene" / f"{date_text(days)}.tif"
        write_geotiff(path, pixels, sample.geometry, bands=_BANDS, nodata=0)
    path, truth = folder / "scene_crops.tif", crops[None].astype(np.uint8)
    write_geotiff(path, truth, sample.geometry, bands=("crop",))
    text = (
        "# A synthetic farmland; nothing was measured.\nname: farmland-scene\nmodalities:\n"
        f'  s2: {{path: "scene/{{date}}.tif", sensor: sentinel2, bands: [{", ".join(_BANDS)}], '
        f"scale: {_SCALE}, level: l2a}}\n"
    )
    write_file(folder / "scene.yaml", text.encode())


def _geometry(index: int, size: int) -> Geometry:
    """Chips side by side, twenty a row, with a gap of one chip."""
    side = size * GSD_M
    left, top = 500_000.0 + 2 * side * (index % 20), 6_800_000.0 - 2 * side * (index // 20)
    return Geometry(crs="EPSG:32633", bounds=(left, top - side, left + side, top))
