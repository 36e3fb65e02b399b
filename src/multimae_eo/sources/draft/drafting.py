"""``draft_of``: what some files are, as a draft of a dataset or scene file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from multimae_eo.errors import ConfigError, DataError
from multimae_eo.modality import ModalitySet
from multimae_eo.sources.draft.area_layouts import area_draft
from multimae_eo.sources.draft.chip_layouts import chip_draft
from multimae_eo.sources.draft.file_groups import FolderFiles
from multimae_eo.sources.draft.yaml_draft import Draft, Entry
from multimae_eo.sources.products.open_product import product_at
from multimae_eo.sources.products.product import Product
from multimae_eo.sources.scene.layer_files import product_modalities

_MOST_AREA_FILES = 200
_WRITTEN = ("dataset.yaml", "dataset.yml", "scene.yaml", "scene.yml")
"""A file of these names describes the folder that it lies in."""


def draft_of(paths: Sequence[Path]) -> Draft:
    """Recognise what is in a folder, or in several files or folders.

    ConfigError where nothing is there, DataError where it is nothing that is recognised,
    FormatError for an image that cannot be read.
    """
    for path in paths:
        if not path.exists():
            raise ConfigError(f"{path}: no such file or folder")
    if len(paths) == 1 and (product := product_at(paths[0], radar=_is_rtc(paths[0]))):
        return product_draft(product)
    files = _files(paths)
    draft = chip_draft(files)
    if draft is None and len(files.rasters) <= _MOST_AREA_FILES:
        draft = area_draft(files)
    if draft is None:
        raise DataError(
            f"{', '.join(map(str, paths))}: {_seen(files)}; recognised are class folders, folders "
            "of images and masks, a folder per sensor, chips of one size, georeferenced rasters, "
            "band files and products (SAFE, Landsat Collection 2 level 2, HLS, Sentinel-1 RTC)"
        )
    return draft


def product_draft(product: Product, offered: ModalitySet | None = None) -> Draft:
    """The scene file of one product. ``offered``: as of ``product_modalities``.

    ConfigError where the product has none of the offered modalities.
    """
    modalities = product_modalities(product, offered)
    if not modalities:
        raise ConfigError(
            f"{product.path}: {product.kind} ({', '.join(product.bands)}) has the bands of none of "
            f"the inputs {', '.join(offered or ())}"
        )
    time = [Entry("time", product.time, "from the product's metadata")] if product.time else []
    return Draft(
        kind="scene",
        folder=product.path.parent,
        entries=(
            Entry("name", product.path.stem),
            *time,
            Entry("modalities", tuple(
                Entry(n, (Entry("product", product.path.name), Entry("bands", m["bands"])))
                for n, m in modalities.items()
            ), "sensor, processing level, scale, offset and validity are the product's; "
               "`mask_clouds: false` keeps its clouds"),
            Entry("chips", {"size": 120}, "only where the scene is a SOURCE"),
        ),
        evidence=(f"{product.kind}: {product.path.name}", *product.notes),
    )  # fmt: skip


def _is_rtc(path: Path) -> bool:
    """Whether all rasters of a folder are named as Sentinel-1 RTC, a file per polarisation."""
    names = [p.name for p in path.glob("*.tif*")] if path.is_dir() else []
    return bool(names) and all("rtc" in n.lower() for n in names) and len(names) <= 4


def required_text(path: Path) -> tuple[Draft, str]:
    """The draft of a folder that is used as it is, and its YAML.

    ConfigError where a value is blank or something is in doubt; otherwise as ``draft_of``.
    """
    for name in _WRITTEN:
        if (path / name).is_file():
            raise ConfigError(
                f"{path}: is a folder; its description is {path / name}: name that file"
            )
    draft = draft_of([path])
    if draft.blanks or draft.doubts:
        open_points = ", ".join(draft.blanks) or draft.doubts[0]
        raise ConfigError(
            f"{path}: {draft.evidence[0]}, but {open_points} cannot be determined from the files; "
            f"run `multimae-eo init {path} --out {draft.kind}.yaml`, fill in its blanks, and use "
            "that file"
        )
    return draft, draft.text()


def _files(paths: Sequence[Path]) -> FolderFiles:
    """All files of one folder, or those of several paths below their common folder."""
    if len(paths) == 1 and paths[0].is_dir():
        return FolderFiles.of(paths[0])
    listed: list[Path] = []
    for path in paths:
        if path.is_dir():
            inner = FolderFiles.of(path)
            listed += [path / n for n in (*inner.rasters, *inner.tables, *inner.vectors)]
        else:
            listed.append(path)
    parents = [(p if p.is_dir() else p.parent).resolve() for p in paths]
    if len({p.anchor for p in parents}) > 1:
        raise DataError(f"{paths[0]}: lies on another drive than {paths[-1]}; copy them to one")
    folder = Path(os.path.commonpath(parents))
    return FolderFiles.of(folder, [p.resolve() for p in listed])


def _seen(files: FolderFiles) -> str:
    if not files.rasters:
        return "no image is in it"
    folders = len(files.by_folder)
    return f"{len(files.rasters)} images in {folders} folder{'s' if folders > 1 else ''}"
