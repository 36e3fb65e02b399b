"""A scene: rasters of one area, each in its own CRS, grid and tiles, read window by window.

The scene's grid is that of the first modality's first raster, extended over all of that modality's
rasters. Everything else is warped onto it as it is read, never as a whole: bilinear for
measurements, nearest for classes. See docs/scenes.md.
"""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from multimae_eo.errors import ClassMapError, ConfigError, did_you_mean
from multimae_eo.geo import Window
from multimae_eo.modality import Modality, ModalitySet
from multimae_eo.sample import Calibration, Dates, Pixels, Sample, Validity, stack_dates
from multimae_eo.sources.acquisition_dates import days_since_1970
from multimae_eo.sources.data_root import expanded_root, root_remedy
from multimae_eo.sources.dataset.schema import ModalitySpec
from multimae_eo.sources.products.product import QualityMask
from multimae_eo.sources.raster.arrays import (
    ArrayHolder,
    cube_name,
    cube_time,
    dated_cubes,
)
from multimae_eo.sources.raster.calibration import Linear
from multimae_eo.sources.raster.grid import Grid
from multimae_eo.sources.raster.reading import read_header
from multimae_eo.sources.raster.remote import folder_of
from multimae_eo.sources.raster.warped import Mosaic, describe, reading, stamp
from multimae_eo.sources.scene.chip_rule import ChipRule, CloudRule, chip_rule
from multimae_eo.sources.scene.layer_files import (
    Acquisition,
    LayerFiles,
    layer_files,
    named_files,
)
from multimae_eo.sources.scene.single_raster import RasterRule, raster_specs
from multimae_eo.sources.scene.stacking import (
    BandFile,
    BandStack,
    group_files,
    mosaic_on,
    stacks_of,
)
from multimae_eo.sources.vector.vector_labels import VectorSpec, vector_spec
from multimae_eo.sources.yaml_section import Section, load_yaml, parse_yaml

__all__ = ["Grid", "Scene", "require_scene_modalities"]

SCENE_KEYS = ("name", "root", "time", "file_bands", "chips", "labels", "modalities")


@dataclass(frozen=True, kw_only=True)
class _PlacedModality:
    """A modality and its rasters on its grid, which is ``ratio`` times coarser than the scene's.

    ``images``: of each date, or of the only one; ``decibel`` and ``dates``: as of ``LayerFiles``.
    """

    spec: ModalitySpec
    ratio: int
    images: tuple[_Image, ...]
    dates: tuple[float, ...] = ()
    decibel: float = 0.0

    @property
    def calibration(self) -> Linear:
        """Of the pixels of all dates."""
        return self.images[0].stack.calibration

    def read(self, window: Window) -> tuple[Pixels, Validity, Dates | None] | None:
        """A window of its grid: pixels (C, H, W) and where they are valid (1 or C, H, W); of a
        series (T, …), and the dates. None where nothing is observed; so are dates left out."""
        read = [image.read(window, self.decibel) for image in self.images]
        if not any(ok.any() for _, ok in read):
            return None
        return stack_dates(read, self.dates) if self.dates else (*read[0], None)


@dataclass(frozen=True, kw_only=True)
class _Image:
    """The rasters of one date. ``mask`` marks pixels that are not usable, by ``quality``."""

    stack: BandStack
    mask: Mosaic | None = None
    quality: QualityMask | None = None

    def read(self, window: Window, decibel: float) -> tuple[Pixels, Validity]:
        """Pixels (C, H, W) and where they are valid (1 or C, H, W)."""
        values, ok = self.stack.read(window)
        if decibel:
            ok = ok & (values > 0)
            values = (decibel * np.log10(np.where(ok, values, 1))).astype(np.float32)
            ok = ok[:1] if (ok == ok[:1]).all() else ok
        if self.mask is not None and self.quality is not None:
            marks, seen = self.mask.read(window)
            ok = ok & self.quality.usable(marks) & seen.all(axis=0, keepdims=True)
            values = np.where(ok, values, values.dtype.type(0))
        return values, ok


class Scene:
    """A scene file (YAML), opened. ``read`` gives a window of it as a Sample.

    ``grid``: of the scene. ``ratios``: per modality, how many of the grid's pixels make one of
    its own; all 1 unless ``native``, which applies the modalities' ``ratio:``. ``dates``: of each
    series, in days since 1970. ``chip_rule``: how
    chips are cut, None where the file has no ``chips:``. ``labels``: the vector labels of its
    chips, None where it has none. ``text``: the YAML, instead of the file's; ``path`` is then for
    messages.

    Raises ConfigError for an invalid file, FormatError for rasters that cannot be used (no CRS,
    rotated, damaged), DataError for a raster that lies wholly elsewhere.
    """

    time: str | None = None
    chip_rule: ChipRule | None = None
    labels: VectorSpec | None = None
    _cloud: Mosaic | None = None
    _arrays: ArrayHolder | None = None

    def __init__(self, path: Path, *, native: bool = False, text: str | None = None) -> None:
        content = load_yaml(path) if text is None else parse_yaml(text, str(path))
        top = Section.of(str(path), content, SCENE_KEYS)
        records = top.get("modalities", {})
        if not isinstance(records, Mapping) or not records:
            raise top.error("modalities", "name at least one modality")
        root = folder_of(path.parent, expanded_root(top.text("root", "."), str(path)))
        if (remedy := root_remedy(top.text("root", "."))) and not root.is_dir():
            raise top.error("root", f"{root} is not a folder{remedy}")
        parsed = {str(name): layer_files(top, str(name), r, root) for name, r in records.items()}
        given = path.read_bytes() if text is None else text.encode()
        self._lay_out(path, given, parsed, native=native)
        self.name = top.text("name", path.stem)
        self.time = _time(top)
        self.chip_rule = chip_rule(top, self.modalities)
        if self.chip_rule is not None and self.chip_rule.label in self.dates:
            raise top.error("chips", f"label: {self.chip_rule.label} has dates; labels are one map")
        if "labels" in top:
            self.labels = vector_spec(f"{path}: labels", top.get("labels"), root)
        cloud = self.chip_rule.cloud if self.chip_rule else None
        if cloud is not None and cloud.paths:
            files = [
                BandFile(path=p, header=read_header(p), at=(0,))
                for p in named_files(top, root, cloud.paths)
            ]
            self._cloud = mosaic_on(files, self.grid, None, None)

    @classmethod
    def of_raster(
        cls,
        path: Path,
        modalities: ModalitySet,
        rule: RasterRule | None = None,
        *,
        ratios: Mapping[str, int] | None = None,
        chips: Mapping[str, object] | None = None,
    ) -> Scene:
        """A raster that holds the bands of all ``modalities``; see ``scene_raster``. A cube of
        several dates is a series.

        ``ratios``: as the attribute. ``chips``: the section of a scene file, None for none.
        Raises BandError for bands that are not in it, ConfigError for
        an unknown level or scale, and the errors of a scene file for a raster that cannot be used.
        """
        rule = rule or RasterRule()
        cube = cube_name(path) is not None
        dated = dated_cubes(path) if cube else []
        specs: dict[str, ModalitySpec] = {}
        acquisitions: dict[str, list[Acquisition]] = {}
        for date, one in dated or [("", path)]:
            days = days_since_1970(date) if date else None
            for name, (raster, spec) in raster_specs(one, modalities, rule).items():
                groups = tuple(group_files(spec, [raster], pattern=False))
                specs[name] = spec
                acquisitions.setdefault(name, []).append(Acquisition(groups=groups, days=days))
        parsed = {
            name: LayerFiles(
                spec=spec,
                acquisitions=tuple(acquisitions[name]),
                ratio=(ratios or {}).get(name, 1),
            )
            for name, spec in specs.items()
        }
        scene = cls.of_layers(path, f"{modalities.fingerprint} {rule}".encode(), parsed)
        if cube and not dated:
            scene.time = cube_time(path)
        if chips is not None:
            top = Section.of(str(path), {"chips": dict(chips)}, SCENE_KEYS)
            scene.chip_rule = chip_rule(top, scene.modalities)
        return scene

    @classmethod
    def of_layers(cls, path: Path, identity: bytes, layers: Mapping[str, LayerFiles]) -> Scene:
        """The rasters of each modality, the first of which gives the grid; each at its ratio.

        ``path``: for messages. ``identity``: bytes that identify the scene. Raises as a scene file.
        """
        scene = cls.__new__(cls)
        scene._lay_out(path, identity, layers, native=True)
        return scene

    @classmethod
    def of_arrays(
        cls,
        data: Any,
        modalities: ModalitySet,
        rule: RasterRule | None = None,
        *,
        ratios: Mapping[str, int] | None = None,
        chips: Mapping[str, object] | None = None,
    ) -> Scene:
        """An ``xarray.DataArray`` or ``Dataset`` that holds the bands of all ``modalities``.

        Windows are read lazily; what xarray has decoded is physical. ``chips``: the section of a
        scene file. Raises as ``of_raster``.
        """
        arrays, rule = ArrayHolder(data), rule or RasterRule()
        if arrays.decoded and rule.scale is None:
            rule = replace(rule, scale=1.0, offset=0.0)
        scene = cls.of_raster(arrays.path, modalities, rule, ratios=ratios, chips=chips)
        scene._arrays = arrays
        scene.name = str(getattr(data, "name", None) or "array")
        return scene

    def _lay_out(
        self, path: Path, identity: bytes, parsed: Mapping[str, LayerFiles], *, native: bool
    ) -> None:
        """Put the rasters on the grid. ``identity``: bytes that identify the scene."""
        self.path, self._identity = path, identity
        self.name = path.stem
        self.grid = _grid_of([f.path for f in next(iter(parsed.values())).files])
        self._layers = {
            name: _layer(p, self.grid, path, native=native) for name, p in parsed.items()
        }
        self.modalities = ModalitySet(layer.spec.modality for layer in self._layers.values())
        self.ratios: Mapping[str, int] = {n: layer.ratio for n, layer in self._layers.items()}
        self.dates: Mapping[str, tuple[float, ...]] = {
            n: layer.dates for n, layer in self._layers.items() if layer.dates
        }

    def read(self, window: Window, names: Sequence[str] | None = None) -> Sample:
        """The modalities with any valid pixel in ``window``, which may reach over the edges.

        Pixels outside the grid are invalid. A modality has the window's size divided by its ratio;
        ConfigError where that is not whole. A series has the dates with a valid pixel.
        """
        pixels: dict[str, Pixels] = {}
        valid: dict[str, Validity] = {}
        calibration: dict[str, Calibration] = {}
        dates: dict[str, Dates] = {}
        for name, layer in self._layers.items():
            if names is not None and name not in names:
                continue
            read = layer.read(coarser_window(window, layer.ratio, name))
            if read is None:
                continue
            values, ok, days = read
            if days is not None:
                dates[name] = days
            modality = layer.spec.modality
            check_classes(modality, values, ok, layer.images[0].stack.paths[0])
            pixels[name] = values
            if not ok.all():
                valid[name] = ok
            calibration[name] = Calibration(
                scale=layer.calibration.scale,
                offset=layer.calibration.offset,
                level=str(layer.spec.level.default or ""),
            )
        return Sample(
            key=f"{self.name}@{window.row},{window.col}",
            pixels=pixels,
            valid=valid,
            calibration=calibration,
            geometry=self.grid.footprint(window),
            time=self.time,
            dates=dates,
        )

    def stamp(self) -> str:
        """16 hex digits that change with the scene's file, or when a raster is replaced."""
        digest = hashlib.sha256(self._identity)
        if self._arrays is not None:
            return hashlib.sha256(self._identity + self._arrays.stamp().encode()).hexdigest()[:16]
        for image in (i for layer in self._layers.values() for i in layer.images):
            for path in image.stack.paths:
                digest.update(f"\n{path} {stamp(path)}".encode())
            if image.quality is not None:
                digest.update(f"\n{image.quality} {stamp(str(image.quality.path))}".encode())
        return digest.hexdigest()[:16]

    def contains_chip(self, window: Window) -> bool:
        """Whether a chip may lie here: anywhere on the grid."""
        return window.row < self.grid.height and window.col < self.grid.width

    def cloud_ids(self, window: Window, rule: CloudRule) -> npt.NDArray[np.generic]:
        """The valid class ids of the cloud layer in a window, flat."""
        if self._cloud is None:
            return class_ids(self.read(window, [rule.modality]), rule.modality)
        values, ok = self._cloud.read(window)
        return values[ok]


def class_ids(sample: Sample, name: str) -> npt.NDArray[np.generic]:
    """The valid pixels of one modality of a sample, flat; none where it is absent."""
    if name not in sample.pixels:
        return np.zeros(0, dtype=np.int64)
    pixels = sample.pixels[name]
    return pixels[sample.valid[name]] if name in sample.valid else pixels.ravel()


def coarser_window(window: Window, ratio: int, name: str) -> Window:
    """The same ground in pixels ``ratio`` times coarser; ConfigError where that is not whole."""
    sides = (window.row, window.col, window.height, window.width)
    if any(side % ratio for side in sides):
        raise ConfigError(f"{name}: ratio {ratio} does not divide a window of {sides} (r, c, h, w)")
    row, col, height, width = (side // ratio for side in sides)
    return Window(row=row, col=col, height=height, width=width)


def _time(top: Section) -> str | None:
    value = top.get("time")
    return value.isoformat() if isinstance(value, datetime.date) else top.text("time") or None


def _grid_of(paths: Sequence[Path]) -> Grid:
    """The first raster's grid, extended over all of them."""
    read_header(paths[0])  # raises ConfigError without rasterio
    from rasterio.warp import transform_bounds

    first, bounds = describe(paths[0])
    extents = [bounds]
    for path in paths[1:]:
        read_header(path)
        grid, bounds = describe(path)
        with reading(path):
            extents.append(
                bounds if grid.crs == first.crs else transform_bounds(grid.crs, first.crs, *bounds)
            )
    return first.covering(extents)


def _layer(files: LayerFiles, grid: Grid, path: Path, *, native: bool) -> _PlacedModality:
    """The layer on its grid, its modality with the calibration of what is read."""
    ratio = (files.ratio or _native_ratio(files, grid)) if native else 1
    coarse = grid.coarser(ratio)
    stacks = stacks_of([a.groups for a in files.acquisitions], files.spec, coarse, str(path))
    modality = replace(
        files.spec.modality,
        scale=stacks[0].calibration.scale,
        offset=stacks[0].calibration.offset,
    )
    images = []
    for acquisition, stack in zip(files.acquisitions, stacks, strict=True):
        mask, quality = None, acquisition.mask
        if quality is not None:
            marks = BandFile(path=quality.path, header=read_header(quality.path), at=quality.bands)
            mask = mosaic_on([marks], coarse, None, None)
        images.append(_Image(stack=stack, mask=mask, quality=quality))
    return _PlacedModality(
        spec=replace(files.spec, modality=modality),
        ratio=ratio,
        images=tuple(images),
        dates=files.dates,
        decibel=files.decibel,
    )


def _native_ratio(files: LayerFiles, grid: Grid) -> int:
    """How many pixels of the grid make one of the finest band's; 1 where that is not whole."""
    sizes = [f.header.pixel_size for f in files.files if f.header.pixel_size]
    ratio = min(s[0] for s in sizes) / grid.transform.a if sizes else 1.0
    return round(ratio) if ratio > 1 and abs(ratio - round(ratio)) < 1e-6 else 1


def check_classes(
    modality: Modality, values: npt.NDArray[np.generic], ok: npt.NDArray[np.bool_], where: str
) -> None:
    """ClassMapError where a valid pixel is not in the class map; ``where`` starts the message."""
    if not modality.categorical:
        return
    foreign = sorted(set(np.unique(values[ok]).tolist()) - set(modality.class_ids))
    if foreign:
        raise ClassMapError(
            f"{where}: {modality.name}: class id {foreign[0]} is not in the class map "
            f"({', '.join(map(str, modality.class_ids))}); add it, or list it under nodata"
        )


def require_scene_modalities(scene: Scene, names: Sequence[str]) -> None:
    """ConfigError unless the scene has every named modality."""
    for name in names:
        if name not in scene.modalities:
            raise ConfigError(
                f"{scene.name}: no modality {name!r}; {did_you_mean(name, scene.modalities)}"
            )
