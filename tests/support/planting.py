"""Sources with one fault planted: in memory, and in copies of real files."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from multimae_eo.loading.open_source import open_source
from multimae_eo.modality import ModalitySet
from multimae_eo.sample import Sample
from multimae_eo.sources.base import Source
from tests.support.paths import DATA, ROOT

EXAMPLES = ROOT / "examples"
EUROSAT = ("B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B9", "B10", "B11", "B12", "B8A")
STANDARD = ("B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B9", "B10", "B11", "B12")

Edit = Callable[[dict[str, Any], int], Any]


class Planted(Source):
    """A source whose samples are edited: ``edit(pixels, position)`` changes pixels in place, or
    returns a dictionary of changes to the whole Sample.
    """

    def __init__(
        self,
        base: Source,
        edit: Edit,
        *,
        modalities: ModalitySet | None = None,
        splits: Sequence[str] | None = None,
    ) -> None:
        self.name, self.keys = base.name, base.keys
        self.modalities = modalities or base.modalities
        self.split_of = list(splits or base.split_of)
        self.class_names = base.class_names
        self._base, self._edit = base, edit

    def read(self, index: int, names: Sequence[str] | None = None) -> Sample:
        sample = self._base.read(index)
        pixels = {n: p.copy() for n, p in sample.pixels.items()}
        changes = self._edit(pixels, index) or {}
        sample = replace(sample, **{"pixels": pixels, **changes})
        return sample if names is None else sample.select(list(names))


class Arrays(Source):
    """Arrays in memory as a source of one modality."""

    def __init__(self, modalities: ModalitySet, arrays: Sequence[Any], **extra: Any) -> None:
        self.name, self.modalities = "arrays", modalities
        self.keys = [f"chip-{i}" for i in range(len(arrays))]
        self.split_of = [""] * len(arrays)
        self._arrays, self._extra = arrays, extra

    def read(self, index: int, names: Sequence[str] | None = None) -> Sample:
        (name,) = self.modalities
        return Sample(key=self.keys[index], pixels={name: self._arrays[index]}, **self._extra)


def copy_rasters(
    source: Path,
    target: Path,
    files: Sequence[str],
    edit: Callable[[Any, int], Any] | None = None,
    profile: Callable[[dict[str, Any], int], None] | None = None,
) -> None:
    """Copy GeoTIFFs, pixels changed by ``edit(pixels, position)``, profile by ``profile``."""
    import rasterio

    for position, file in enumerate(files):
        with rasterio.open(source / file) as old:
            pixels, bands = old.read(), old.descriptions
            form = {**old.profile, "compress": None}
        form = {k: form[k] for k in ("driver", "width", "height", "crs", "transform", "nodata")}
        if edit is not None:
            changed = edit(pixels, position)
            pixels = pixels if changed is None else changed
        if profile is not None:
            profile(form, position)
        path = target / file
        path.parent.mkdir(parents=True, exist_ok=True)
        with rasterio.open(path, "w", count=len(pixels), dtype=pixels.dtype, **form) as new:
            new.write(pixels)
            for index, band in enumerate(bands, 1):
                if band:
                    new.set_band_description(index, band)


def eurosat(
    folder: Path,
    edit: Callable[[Any, int], Any] | None = None,
    *,
    chips: int = 30,
    profile: Callable[[dict[str, Any], int], None] | None = None,
    rows: Callable[[list[dict[str, str]]], None] | None = None,
    change: Callable[[dict[str, Any]], None] | None = None,
) -> Source:
    """Copies of some EuroSAT chips, all classes in turn, opened by the example's dataset file.

    ``edit`` gets the 13 bands in the file's order (EUROSAT). ``rows`` changes the split table,
    ``change`` the dataset file.
    """
    with (DATA / "eurosat_ms/split.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    table = table[:: len(table) // chips][:chips]
    copy_rasters(DATA / "eurosat_ms", folder, [r["file"] for r in table], edit, profile)
    if rows is not None:
        rows(table)
    with (folder / "split.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(table[0]))
        writer.writeheader()
        writer.writerows(table)
    return dataset("eurosat_ms", folder, change)


def hls(folder: Path, edit: Callable[[Any, int], Any] | None = None,
        change: Callable[[dict[str, Any]], None] | None = None) -> Source:  # fmt: skip
    """Copies of 30 HLS chips. ``edit`` gets the file's 11 bands (see HLS)."""
    files = sorted(f"images/{p.name}" for p in (DATA / "hls_water/images").glob("*.tif"))[:30]
    copy_rasters(DATA / "hls_water", folder, files, edit)
    keys = [Path(f).stem for f in files]
    (folder / "split.csv").write_text("id,split\n" + "".join(f"{k},train\n" for k in keys))

    def settle(record: dict[str, Any]) -> None:
        del record["labels"]
        if change is not None:
            change(record)

    return dataset("hls_water", folder, settle)


def terramind(folder: Path, layer: str, edit: Callable[[Any, int], Any]) -> Source:
    """The five TerraMind places with one layer changed."""
    for path in sorted((DATA / "terramind_examples").iterdir()):
        if path.is_dir():
            files = sorted(f"{path.name}/{p.name}" for p in path.glob("*.tif"))
            copy_rasters(path.parent, folder, files, edit if path.name == layer else None)
    return dataset("terramind_examples", folder)


def dataset(
    name: str, folder: Path, change: Callable[[dict[str, Any]], None] | None = None
) -> Source:
    """An example's dataset file, changed, for the files in ``folder``."""
    record = yaml.safe_load((EXAMPLES / f"{name}.yaml").read_text(encoding="utf-8"))
    record["root"] = str(folder)
    if change is not None:
        change(record)
    path = folder / "dataset.yaml"
    path.write_text(yaml.safe_dump(record, sort_keys=False), encoding="utf-8")
    return open_source(path)


def interpolated(ids: Any, legend: Sequence[int] | None = None) -> Any:
    """What bilinear resampling does to class ids (1, H, W), to the nearest of ``legend``."""
    mean = ids.astype(float)
    for axis in (1, 2):
        mean = (mean + np.roll(mean, 1, axis)) / 2
    if legend is None:
        return np.round(mean).astype(ids.dtype)
    known = np.array(sorted(legend))
    return known[np.abs(mean[..., None] - known).argmin(-1)].astype(ids.dtype)
