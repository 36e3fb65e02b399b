"""Chips of a synthetic landscape: a source in memory, and files for the quickstart.

Chips of the training, validation and test splits lie in separate regions of one landscape; the
scene is another landscape.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from multimae_eo import catalog
from multimae_eo.errors import ConfigError
from multimae_eo.files import write_file
from multimae_eo.geo import Geometry, Window
from multimae_eo.modality import Modality, ModalitySet, rename
from multimae_eo.sample import Calibration, Pixels, Sample, Validity
from multimae_eo.sources.base import Source
from multimae_eo.sources.landscape import (
    GSD_M,
    LEAST_SIZE,
    OPTICAL_BANDS,
    RADAR_BANDS,
    Landscape,
    make_landscape,
)

__all__ = [
    "Landscape",
    "SyntheticFiles",
    "SyntheticSource",
    "make_landscape",
    "write_synthetic_data",
]

SCALE = 1e-4
CRS = "EPSG:32633"
CHIPS_ORIGIN, SCENE_ORIGIN = (500_000.0, 6_900_000.0), (560_000.0, 6_900_000.0)
"""Upper left corners in metres of ``CRS``."""

SHARES = {"train": 0.7, "val": 0.1, "test": 0.2}
LABEL_WEIGHTS = {10: 1.0, 30: 2.4, 40: 1.9, 50: 8.0, 60: 1.2, 70: 2.5, 80: 1.5}
"""A chip is labelled with the land-cover class of the largest weighted share. The weights favour
classes that mark a landscape without filling it: a village is houses among fields.
"""

_LAYERS = {"rgb": "s2", "ired": "s2", "sired": "s2", "ebands": "s2", "radar": "radar",
           "elevation": "elevation", "landcover": "landcover"}  # fmt: skip
_HAZE = np.array([620, 380, 220, 180, 150, 120, 100, 80, 20, 10], np.float32)


def _modalities() -> ModalitySet:
    optical = (replace(catalog.modality(n), scale=SCALE) for n in _groups())
    others = (
        rename(catalog.modality("sentinel1"), "radar"),
        catalog.modality("elevation"),
        rename(catalog.modality("esa_worldcover"), "landcover"),
    )
    return ModalitySet([*optical, *others])


def _groups() -> list[str]:
    return [name for name, layer in _LAYERS.items() if layer == "s2"]


def _class_names() -> tuple[str, ...]:
    names = {c.id: c.name for c in catalog.class_map("esa_worldcover").classes}
    return tuple(names[i] for i in LABEL_WEIGHTS)


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """Windows of the chips, their splits, and the side of the landscape in pixels."""

    windows: tuple[Window, ...]
    splits: tuple[str, ...]
    side: int

    @classmethod
    def of(cls, chips: int, size: int) -> _Layout:
        """Rows of chips from north to south, an empty row between two splits."""
        if chips < len(SHARES) or size < 1:
            raise ConfigError(f"synthetic: need 3 chips of 1 px or more, got {chips} of {size} px")
        ends = [0, round(SHARES["train"] * chips), round((1 - SHARES["test"]) * chips), chips]
        ends[1] = min(max(ends[1], 1), chips - 2)
        ends[2] = min(max(ends[2], ends[1] + 1), chips - 1)
        counts = [b - a for a, b in pairwise(ends)]

        def rows(across: int) -> int:
            return sum(-(-n // across) for n in counts) + len(counts) - 1

        across = next(n for n in range(1, chips + len(SHARES) + 2) if rows(n) <= n)
        side = max(across * size, LEAST_SIZE)
        step = side // across
        corners: list[tuple[int, int]] = []
        row = 0
        for count in counts:
            corners += [(row + i // across, i % across) for i in range(count)]
            row += -(-count // across) + 1
        return cls(
            windows=tuple(
                Window(row=r * step, col=c * step, height=size, width=size) for r, c in corners
            ),
            splits=tuple(name for name, n in zip(SHARES, counts, strict=True) for _ in range(n)),
            side=side,
        )


def _layers(landscape: Landscape) -> dict[str, Pixels]:
    return {
        "s2": landscape.sentinel2,
        "radar": landscape.radar,
        "elevation": landscape.elevation,
        "landcover": landscape.landcover,
    }


def _label(landcover: Pixels) -> int:
    counts = np.bincount(landcover.ravel(), minlength=256)[list(LABEL_WEIGHTS)]
    return int((counts * list(LABEL_WEIGHTS.values())).argmax())


def _key(index: int) -> str:
    return f"chip-{index:05d}"


class SyntheticSource(Source):
    """Chips of a synthetic landscape, in memory; equal arguments give equal chips.

    Modalities: ``rgb``, ``ired``, ``sired``, ``ebands`` (Sentinel-2, uint16, reflectance x 10000),
    ``radar`` (VV, VH in dB, float32), ``elevation`` (int16, m), ``landcover`` (uint8). The label
    is the class that marks the chip's land cover (LABEL_WEIGHTS). ``missing``: probability that a
    chip lacks a modality (never all). ``nodata``: probability that a modality of a chip has a
    hole. ``mixed_levels``: half of the chips are L1C (hazier) instead of L2A.
    """

    def __init__(
        self,
        chips: int,
        size: int = 64,
        seed: int = 0,
        *,
        missing: float = 0.0,
        nodata: float = 0.0,
        mixed_levels: bool = False,
    ) -> None:
        for name, value in (("missing", missing), ("nodata", nodata)):
            if not 0 <= value <= 1:
                raise ConfigError(f"synthetic: {name}: a probability from 0 to 1, got {value}")
        self.name = "synthetic"
        self.modalities = _modalities()
        self.class_names = _class_names()
        self._seed, self._missing, self._nodata = seed, missing, nodata
        self._mixed_levels = mixed_levels
        self._layout = _Layout.of(chips, size)
        self._landscape = make_landscape(self._layout.side, seed)
        self.keys = [_key(i) for i in range(chips)]
        self.split_of = list(self._layout.splits)

    def read(self, index: int, names: Sequence[str] | None = None) -> Sample:
        """Cut one chip out of the landscape."""
        chosen = self.modalities if names is None else self.modalities.select(names)
        window = self._layout.windows[index]
        layers = {n: p[(..., *window.slices)] for n, p in _layers(self._landscape).items()}
        lacking, holes, level = self._fate(index)
        if level == "l1c":
            layers["s2"] = _top_of_atmosphere(layers["s2"])
        pixels: dict[str, Pixels] = {}
        valid: dict[str, Validity] = {}
        for name, modality in chosen.items():
            if name in lacking:
                continue
            layer = layers[_LAYERS[name]]
            taken = [OPTICAL_BANDS.index(b) for b in modality.band_names if modality.levels]
            pixels[name] = layer[taken] if taken else layer.copy()
            if name in holes:
                valid[name] = ~_hole(window.height, holes[name])
                pixels[name][~np.broadcast_to(valid[name], pixels[name].shape)] = 0
        return Sample(
            key=self.keys[index],
            pixels=pixels,
            valid=valid,
            calibration={
                n: Calibration(scale=SCALE, level=level) for n in pixels if chosen[n].levels
            },
            geometry=_geometry(window, CHIPS_ORIGIN),
            time="2019-07-15",
            label=_label(layers["landcover"]),
        )

    def _fate(self, index: int) -> tuple[set[str], dict[str, int], str]:
        """What chip ``index`` lacks, the seeds of its holes, and its product level."""
        rng = np.random.default_rng([self._seed, 2, index])
        names = self.modalities.names
        uniform = rng.random((2, len(names)))
        lacking = {n for n, d in zip(names, uniform[0], strict=True) if d < self._missing}
        lacking.discard(names[int(rng.integers(len(names)))])
        seeds = rng.integers(2**31, size=len(names))
        holes = {
            n: int(seed)
            for n, d, seed in zip(names, uniform[1], seeds, strict=True)
            if d < self._nodata
        }
        level = "l1c" if self._mixed_levels and rng.random() < 0.5 else "l2a"
        return lacking, holes, level


def _hole(size: int, seed: int) -> Validity:
    """True (1, size, size) in a rectangle of at most half the side: never everything."""
    rng = np.random.default_rng(seed)
    hole = np.zeros((1, size, size), dtype=bool)
    if size > 1:
        height, width = rng.integers(1, size // 2 + 1, size=2)
        top, left = rng.integers(0, size - height + 1), rng.integers(0, size - width + 1)
        hole[:, top : top + height, left : left + width] = True
    return hole


def _top_of_atmosphere(surface: Pixels) -> Pixels:
    """L1C from L2A: light scattered by the air is added, above all to short wavelengths."""
    return np.rint(0.93 * surface + _HAZE[:, None, None]).astype(np.uint16)


def _geometry(window: Window, origin: tuple[float, float]) -> Geometry:
    left, top = origin[0] + window.col * GSD_M, origin[1] - window.row * GSD_M
    bounds = (left, top - window.height * GSD_M, left + window.width * GSD_M, top)
    return Geometry(crs=CRS, bounds=bounds)


@dataclass(frozen=True, kw_only=True)
class SyntheticFiles:
    """The files that ``write_synthetic_data`` wrote: the dataset file and the scene file."""

    dataset: Path
    scene: Path


def write_synthetic_data(
    folder: Path, *, chips: int = 600, size: int = 64, scene: int = 512, seed: int = 0
) -> SyntheticFiles:
    """Write chips and a scene as GeoTIFF with the YAML files that describe them.

    ``folder`` receives ``dataset.yaml``, ``split.csv``, ``chips/``, ``scene.yaml`` and ``scene/``.
    ``size``, ``scene``: sides in pixels. The YAML files are written last. Raises OutputError where
    something cannot be written, ConfigError without rasterio.
    """
    folder = Path(folder)
    require_rasterio()
    layout = _Layout.of(chips, size)
    layers = _layers(make_landscape(layout.side, seed))
    rows = []
    for index, (window, split) in enumerate(zip(layout.windows, layout.splits, strict=True)):
        for layer, pixels in layers.items():
            part = pixels[(..., *window.slices)]
            path = folder / "chips" / layer / f"{_key(index)}.tif"
            _write_geotiff(path, layer, part, _geometry(window, CHIPS_ORIGIN))
        label = _class_names()[_label(layers["landcover"][(..., *window.slices)])]
        rows.append((_key(index), split, label))
    scene_window = Window(row=0, col=0, height=scene, width=scene)
    for layer, pixels in _layers(make_landscape(scene, seed + 1_000_003)).items():
        path = folder / "scene" / f"{layer}.tif"
        _write_geotiff(path, layer, pixels, _geometry(scene_window, SCENE_ORIGIN))
    table = io.StringIO(newline="")
    csv.writer(table).writerows([("id", "split", "label"), *rows])
    _write_text(folder / "split.csv", table.getvalue())
    files = SyntheticFiles(dataset=folder / "dataset.yaml", scene=folder / "scene.yaml")
    _write_text(files.scene, _scene_yaml())
    _write_text(files.dataset, _dataset_yaml(size))
    return files


def _dataset_yaml(size: int) -> str:
    classes = ", ".join(_class_names())
    return (
        "# A synthetic landscape; its modalities depend on one another, but nothing was measured.\n"
        f"name: synthetic\nsize: {size}\nmodalities:\n{_records('chips/{layer}/{{id}}.tif')}"
        f"labels: {{column: label, classes: [{classes}]}}\n"
        "splits: split.csv\n"
    )


def _scene_yaml() -> str:
    return f"name: synthetic\nmodalities:\n{_records('scene/{layer}.tif')}"


def _records(pattern: str) -> str:
    """A line of YAML per modality; ``pattern`` holds ``{layer}``."""
    lines = []
    for name, modality in _modalities().items():
        path = pattern.format(layer=_LAYERS[name])
        lines.append(f'  {name}: {{path: "{path}", {_record(modality)}}}\n')
    return "".join(lines)


def _record(modality: Modality) -> str:
    if modality.categorical:
        return f"legend: {modality.sensor}, gsd: {GSD_M:g}"
    text = f"sensor: {modality.sensor}, bands: [{', '.join(modality.band_names)}]"
    return text + (f", scale: {SCALE:.1e}, level: l2a" if modality.levels else "")


_BANDS: Mapping[str, tuple[str, ...]] = {
    "s2": OPTICAL_BANDS,
    "radar": RADAR_BANDS,
    "elevation": ("elevation",),
    "landcover": ("esa_worldcover",),
}
_NODATA = {"s2": 0.0, "landcover": 0.0}


def _write_geotiff(path: Path, layer: str, pixels: Pixels, geometry: Geometry) -> None:
    write_geotiff(path, pixels, geometry, bands=_BANDS[layer], nodata=_NODATA.get(layer))


def write_geotiff(
    path: Path,
    pixels: Pixels,
    geometry: Geometry,
    *,
    bands: Sequence[str],
    nodata: float | None = None,
) -> None:
    """Write synthetic pixels (C, H, W) of GSD_M with the names of their bands."""
    import rasterio
    from rasterio.io import MemoryFile

    count, height, width = pixels.shape
    left, _, _, top = geometry.bounds
    profile: dict[str, object] = {
        "driver": "GTiff",
        "dtype": pixels.dtype,
        "count": count,
        "height": height,
        "width": width,
        "crs": geometry.crs,
        "transform": rasterio.Affine(GSD_M, 0, left, 0, -GSD_M, top),
        "nodata": nodata,
    }
    # In memory first: GDAL keeps silent about what it cannot write when it closes a file.
    with MemoryFile() as memory:
        with memory.open(**profile) as out:
            out.write(pixels)
            out.descriptions = tuple(bands)
        # The data can be made again; syncing each file takes longer than making it.
        write_file(path, memory.getbuffer(), durable=False)


def _write_text(path: Path, text: str) -> None:
    write_file(path, text.encode())


def require_rasterio() -> None:
    """ConfigError where GeoTIFF files cannot be written."""
    try:
        import rasterio  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "writing a scene needs rasterio; install it with pip install 'multimae-eo[geo]'"
        ) from error
