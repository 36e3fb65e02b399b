"""Which rasters a modality of a scene file has: paths and patterns, a file per band, a product."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from multimae_eo.catalog import MODALITIES, SENSORS
from multimae_eo.errors import BandError, FormatError
from multimae_eo.modality import ModalitySet
from multimae_eo.sources.band_match import BandRule, locate_bands
from multimae_eo.sources.dataset.schema import MODALITY_KEYS, ModalitySpec, modality_spec
from multimae_eo.sources.draft.file_groups import dates_of
from multimae_eo.sources.file_names import existing_path, matching_files
from multimae_eo.sources.products.open_product import open_product
from multimae_eo.sources.products.product import Product, QualityMask
from multimae_eo.sources.raster.reading import read_header
from multimae_eo.sources.raster.remote import is_remote
from multimae_eo.sources.scene.stacking import BandFile, BandGroup, group_files
from multimae_eo.sources.yaml_section import Section

_ONLY_DATASETS = ("optional", "size", "exclude", "layout")
LAYER_KEYS = (
    *(k for k in MODALITY_KEYS if k not in _ONLY_DATASETS),
    "ratio", "product", "mask_clouds",
)  # fmt: skip
_FROM_PRODUCT = (
    "path", "sensor", "level", "scale", "offset", "nodata", "file_bands", "channels", "unit",
    "custom", "kind", "band",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class LayerFiles:
    """A modality and its rasters by band.

    ``ratio``: how many pixels of the grid make one of its pixels, 0 for what their sizes give.
    ``mask``: where its pixels are usable. ``decibel``: f where values become f · log10 of them.
    """

    spec: ModalitySpec
    groups: tuple[BandGroup, ...]
    ratio: int = 1
    mask: QualityMask | None = None
    decibel: float = 0.0


def layer_files(top: Section, name: str, record: object, root: Path) -> LayerFiles:
    """Read one entry of ``modalities:`` of a scene file.

    Raises ConfigError for invalid keys and patterns without a file, BandError and FormatError for
    rasters that are not what is declared.
    """
    section = Section.of(f"{top.where}: modalities.{name}", record or {}, LAYER_KEYS)
    ratio = section.get("ratio", 0 if "product" in section else 1)
    if type(ratio) is not int or ratio < (0 if "product" in section else 1):
        raise section.error("ratio", "expected how many pixels of the grid make one, from 1")
    if "product" in section:
        return _of_product(top, name, section, root, ratio)
    if "mask_clouds" in section:
        raise section.error("mask_clouds", "only a `product:` has a cloud mask")
    if isinstance(section.get("bands"), Mapping):
        return _of_bands(top, name, section, root, ratio)
    value = section.get("path")
    listed = value if isinstance(value, list) else [value]
    if not listed or not all(isinstance(p, str) and p for p in listed):
        raise section.error("path", "expected a raster, or a list of rasters")
    rest = {k: v for k, v in section.record.items() if k not in ("path", "ratio")}
    spec = modality_spec(top, name, rest)
    pattern = any(_is_pattern(text) for text in listed)
    groups = group_files(spec, named_files(section, root, listed), pattern=pattern)
    return LayerFiles(spec=spec, groups=tuple(groups), ratio=ratio)


def named_files(
    section: Section, root: Path, listed: Sequence[str], key: str = "path"
) -> tuple[Path, ...]:
    """The files of paths and patterns; ConfigError for one that matches none."""
    paths: list[Path] = []
    for text in listed:
        files, _ = matching_files(root, text)
        if not files:
            raise section.error(key, f"no file matches {text!r} in {root}")
        paths += files
    return tuple(paths)


def _is_pattern(text: str) -> bool:
    return not is_remote(text) and any(c in text for c in "*?[")


def _of_bands(top: Section, name: str, section: Section, root: Path, ratio: int) -> LayerFiles:
    """``bands: {B4: "*B04*.jp2", …}``: each band in its file, or in a list of tiles."""
    paths = section.get("bands")
    for key in ("path", "band", "file_bands", "channels"):
        if key in section:
            raise section.error(key, "the files are in `bands:` already")
    rest = {k: v for k, v in section.record.items() if k not in ("bands", "ratio")}
    spec = modality_spec(top, name, {**rest, "bands": [str(b) for b in paths]})
    if spec.modality.categorical:
        raise section.error("bands", "a class map has one band: name its file in `path:`")
    groups = []
    for index, (band, value) in enumerate(paths.items()):
        listed = value if isinstance(value, list) else [value]
        if not listed or not all(isinstance(p, str) and p for p in listed):
            raise section.error("bands", f"expected a file, or a list of tiles, for {band}")
        files = [f for text in listed for f in _one_file(section, root, str(band), text)]
        single = replace(spec.modality, bands=(spec.modality.bands[index],))
        rule = BandRule(band_names=(spec.rule.band_names[index],))
        tiles = []
        for path in files:
            header = read_header(path)
            if header.count != 1:
                raise BandError(
                    f"{path}: {name}: has {header.count} bands; a band's file has one: name it in "
                    "`path:`, with `file_bands:`"
                )
            tiles.append(BandFile(path=path, header=header, at=locate_bands(header, single, rule)))
        groups.append(BandGroup(bands=(index,), files=tuple(tiles)))
    return LayerFiles(spec=spec, groups=tuple(groups), ratio=ratio)


def _one_file(section: Section, root: Path, band: str, text: str) -> tuple[Path, ...]:
    """The only file of a pattern; ConfigError naming several, which are no mosaic by chance."""
    files = named_files(section, root, [text], "bands")
    if len(files) > 1:
        names = ", ".join(f.name for f in files[:4]) + (", …" if files[4:] else "")
        dates = sorted({d for f in files if (d := dates_of(f.name))})
        remedy = (
            f"they are of {len(dates)} dates ({', '.join(dates[:3])}): write a scene file for each"
            if len(dates) > 1
            else "narrow the pattern, or list the tiles: [a.tif, b.tif]"
        )
        raise section.error("bands", f"{band}: {text!r} matches {names}; {remedy}")
    return files


def _of_product(top: Section, name: str, section: Section, root: Path, ratio: int) -> LayerFiles:
    """``product: PATH``: sensor, level, calibration and validity are the product's."""
    for key in _FROM_PRODUCT:
        if key in section:
            raise section.error(key, "a `product:` has it in its metadata")
    path = existing_path(root, section.text("product"))
    product = open_product(path)
    bands = section.names("bands") or tuple(product.bands)
    record: dict[str, object] = {"bands": list(bands), "sensor": product.sensor}
    record |= {"level": product.level} if product.level else {}
    record |= {"gsd": section.get("gsd")} if "gsd" in section else {}
    spec = modality_spec(top, name, record)
    modality = replace(spec.modality, nodata=(*spec.modality.nodata, *product.nodata))
    spec = replace(spec, modality=modality)
    groups = tuple(
        BandGroup(bands=(index,), files=(_band_file(product, band.name, name),))
        for index, band in enumerate(modality.bands)
    )
    keep_clouds = section.record.get("mask_clouds") is not None and not section.flag("mask_clouds")
    return LayerFiles(
        spec=spec,
        groups=groups,
        ratio=ratio,
        mask=None if keep_clouds else product.mask,
        decibel=product.decibel,
    )


def _band_file(product: Product, band: str, name: str) -> BandFile:
    """The file of a product's band, with the calibration of the product's metadata."""
    file = product.band(band)
    header = read_header(file.path)
    if header.count != 1:
        raise FormatError(f"{file.path}: {name}: expected one band, got {header.count}")
    if file.scale is None and file.offset is None:
        return BandFile(path=file.path, header=header, at=(0,))
    calibrated = replace(header.bands[0], scale=file.scale, offset=file.offset or None)
    return BandFile(path=file.path, header=replace(header, bands=(calibrated,)), at=(0,))


def product_modalities(product: Product, offered: ModalitySet | None = None) -> dict[str, Any]:
    """The ``modalities:`` of a scene file of one product.

    ``offered``: a model's, of which those that the product's bands make up are taken; by default
    the catalogue's groups of two or three bands, or all bands as one.
    """
    names = set(product.bands)
    groups = {
        n: m.band_names
        for n, m in (MODALITIES if offered is None else offered).items()
        if m.sensor == product.sensor
        and (offered is not None or m.channels <= 3)
        and set(m.band_names) <= names
    }
    if not groups and offered is None:
        groups = {"optical": tuple(product.bands)}
    by_size = sorted(groups.items(), key=lambda item: _finest_m(product, item[1]))
    folder = str(product.path.resolve())
    return {n: {"product": folder, "bands": list(bands)} for n, bands in by_size}


def _finest_m(product: Product, bands: Sequence[str]) -> float:
    """Nominal pixel size of the finest of some bands, in metres."""
    return min(SENSORS[product.sensor].band(b).gsd_m or 0.0 for b in bands)
