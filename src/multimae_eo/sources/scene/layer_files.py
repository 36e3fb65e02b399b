"""Which rasters a modality of a scene file has: paths and patterns, a file per band, a product."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from multimae_eo.catalog import MODALITIES, SENSORS
from multimae_eo.errors import BandError, FormatError
from multimae_eo.modality import ModalitySet
from multimae_eo.sources.acquisition_dates import days_since_1970
from multimae_eo.sources.band_match import BandRule, locate_bands
from multimae_eo.sources.dataset.schema import MODALITY_KEYS, ModalitySpec, modality_spec
from multimae_eo.sources.draft.file_groups import dates_of
from multimae_eo.sources.file_names import DATE, dated_files, existing_path, matching_files
from multimae_eo.sources.products.open_product import open_product
from multimae_eo.sources.products.product import Product, QualityMask
from multimae_eo.sources.raster.arrays import cube_name, dated_cubes
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
    "custom", "wavelengths", "bandwidths", "kind", "band",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Acquisition:
    """The rasters of one date by band. ``days``: since 1970, None for an image without a date.

    ``mask``: where its pixels are usable.
    """

    groups: tuple[BandGroup, ...]
    days: float | None = None
    mask: QualityMask | None = None


@dataclass(frozen=True, kw_only=True)
class LayerFiles:
    """A modality and its rasters: of one image, or of each date of a series, in order.

    ``ratio``: how many pixels of the grid make one of its pixels, 0 for what their sizes give.
    ``decibel``: f where values become f · log10 of them.
    """

    spec: ModalitySpec
    acquisitions: tuple[Acquisition, ...]
    ratio: int = 1
    decibel: float = 0.0

    @property
    def files(self) -> tuple[BandFile, ...]:
        """The rasters of all dates."""
        return tuple(f for a in self.acquisitions for g in a.groups for f in g.files)

    @property
    def dates(self) -> tuple[float, ...]:
        """Days since 1970 of each date; none for an image."""
        return tuple(a.days for a in self.acquisitions if a.days is not None)


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
    if any(DATE in text for text in listed):
        acquisitions = _dated(section, root, listed, spec)
        return LayerFiles(spec=spec, acquisitions=acquisitions, ratio=ratio)
    pattern = any(_is_pattern(text) for text in listed)
    groups = group_files(spec, named_files(section, root, listed), pattern=pattern)
    return LayerFiles(spec=spec, acquisitions=(Acquisition(groups=tuple(groups)),), ratio=ratio)


def _dated(
    section: Section, root: Path, listed: Sequence[str], spec: ModalitySpec
) -> tuple[Acquisition, ...]:
    """``path: "s2/{date}.tif"``: the files of each date, a mosaic where a date has several; of a
    cube ``path: "s2.zarr@{date}"``."""
    if len(listed) > 1:
        raise section.error("path", "a path with {date} stands alone, not in a list")
    try:
        cube = existing_path(root, listed[0].replace(f"@{DATE}", ""))
        if listed[0].endswith(f"@{DATE}") and cube_name(cube) is not None:
            by_date = [(days_since_1970(date), [path]) for date, path in dated_cubes(cube)]
        else:
            by_date = dated_files(root, listed[0])
    except ValueError as error:
        raise section.error("path", f"{error}; rename it, or move it elsewhere") from error
    if not by_date:
        raise section.error(
            "path", f"no file matches {listed[0]!r} in {root}, with a date such as 2019-07-15"
        )
    return tuple(
        Acquisition(groups=tuple(group_files(spec, paths, pattern=len(paths) > 1)), days=days)
        for days, paths in by_date
    )


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
    return LayerFiles(spec=spec, acquisitions=(Acquisition(groups=tuple(groups)),), ratio=ratio)


def _one_file(section: Section, root: Path, band: str, text: str) -> tuple[Path, ...]:
    """The only file of a pattern; ConfigError naming several, which are no mosaic by chance."""
    files = named_files(section, root, [text], "bands")
    if len(files) > 1:
        names = ", ".join(f.name for f in files[:4]) + (", …" if files[4:] else "")
        dates = sorted({d for f in files if (d := dates_of(f.name))})
        remedy = (
            f"they are of {len(dates)} dates ({', '.join(dates[:3])}): write a scene file for "
            "each, or `path:` with {date} for a series of rasters that have all bands"
            if len(dates) > 1
            else "narrow the pattern, or list the tiles: [a.tif, b.tif]"
        )
        raise section.error("bands", f"{band}: {text!r} matches {names}; {remedy}")
    return files


def _of_product(top: Section, name: str, section: Section, root: Path, ratio: int) -> LayerFiles:
    """``product: PATH``: sensor, level, calibration and validity are the product's.

    A list of products, or a pattern, is a series of their dates.
    """
    for key in _FROM_PRODUCT:
        if key in section:
            raise section.error(key, "a `product:` has it in its metadata")
    products, dated = _products(section, root)
    product = products[0]
    bands = section.names("bands") or tuple(product.bands)
    record: dict[str, object] = {"bands": list(bands), "sensor": product.sensor}
    record |= {"level": product.level} if product.level else {}
    record |= {"gsd": section.get("gsd")} if "gsd" in section else {}
    spec = modality_spec(top, name, record)
    modality = replace(spec.modality, nodata=(*spec.modality.nodata, *product.nodata))
    spec = replace(spec, modality=modality)
    keep_clouds = section.record.get("mask_clouds") is not None and not section.flag("mask_clouds")
    acquisitions = tuple(
        Acquisition(
            groups=tuple(
                BandGroup(bands=(index,), files=(_band_file(one, band.name, name),))
                for index, band in enumerate(modality.bands)
            ),
            days=days_since_1970(one.time) if dated else None,
            mask=None if keep_clouds else one.mask,
        )
        for one in products
    )
    return LayerFiles(spec=spec, acquisitions=acquisitions, ratio=ratio, decibel=product.decibel)


def _products(section: Section, root: Path) -> tuple[list[Product], bool]:
    """The products of an entry by date, and whether they are a series."""
    value = section.get("product")
    if isinstance(value, str) and not _is_pattern(value):
        return [open_product(existing_path(root, section.text("product")))], False
    listed = value if isinstance(value, list) else [value]
    if not listed or not all(isinstance(p, str) and p for p in listed):
        raise section.error("product", "expected a product, a list of them, or a pattern")
    products = [open_product(p) for p in named_files(section, root, listed, "product")]
    first = products[0]
    for product in products:
        if not product.time:
            raise section.error("product", f"{product.path.name} has no date in its metadata")
        if (product.sensor, product.level) != (first.sensor, first.level):
            raise section.error(
                "product",
                f"{product.path.name} is {product.kind}, {first.path.name} {first.kind}; a series "
                "has one sensor and level",
            )
    return sorted(products, key=lambda p: days_since_1970(p.time)), True


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
