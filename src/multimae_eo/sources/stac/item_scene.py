"""STAC items as scenes, each on the grid of its first modality's first band: the items of a
search, or of an ItemCollection. See docs/many_scenes.md."""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from multimae_eo.errors import ConfigError, DataError
from multimae_eo.files import read_json
from multimae_eo.modality import Modality, ModalitySet
from multimae_eo.sources.dataset.schema import PerChip
from multimae_eo.sources.products.product import QualityMask
from multimae_eo.sources.raster.reading import read_header
from multimae_eo.sources.scene.chip_rule import ChipRule
from multimae_eo.sources.scene.layer_files import Acquisition, LayerFiles
from multimae_eo.sources.scene.scene import Scene
from multimae_eo.sources.scene.single_raster import RasterRule, model_spec
from multimae_eo.sources.scene.stacking import BandFile, BandGroup
from multimae_eo.sources.stac.calibration import band_calibration, raster_record
from multimae_eo.sources.stac.items import (
    StacItem,
    asset_of,
    boxes_touch,
    find_items,
    item_errors,
    locate_assets,
    plain_items,
    require_stac,
)
from multimae_eo.sources.stac.stac_file import StacModality, StacSearch, read_stac_file
from multimae_eo.sources.yaml_section import as_number

_ALWAYS = (
    datetime.datetime.min.replace(tzinfo=datetime.UTC),
    datetime.datetime.max.replace(tzinfo=datetime.UTC),
)


@dataclass(frozen=True, kw_only=True)
class ItemScene:
    """A STAC item that can be made a scene. ``where``: the file or object that it is from.

    ``layers``: of a STAC file, each modality as it is described there and the items that have it;
    empty for an item of an ItemCollection, whose assets are matched with a model's bands.
    """

    item: StacItem
    where: str
    layers: Mapping[str, tuple[StacModality, tuple[StacItem, ...]]]
    chip_rule: ChipRule | None = None

    @property
    def name(self) -> str:
        """The item's id."""
        return self.item.id

    def to_scene(
        self,
        modalities: ModalitySet | None = None,
        ratios: Mapping[str, int] | None = None,
        rule: RasterRule | None = None,
    ) -> Scene:
        """The scene. ``modalities``, ``ratios``, ``rule``: of a model, for an ItemCollection's.

        Raises ConfigError for assets, scales or levels that are not clear, FormatError for rasters
        that cannot be read.
        """
        where = f"{self.where}: {self.item.id}"
        rule = rule or RasterRule()
        layers = dict(self.layers)
        if not layers:
            if modalities is None:
                raise ConfigError(
                    f"{where}: which modalities its assets are is not declared; write a STAC file"
                )
            layers = {
                name: (_requested(m, (ratios or {}).get(name, 1), rule, where), (self.item,))
                for name, m in modalities.items()
            }
        elif rule != RasterRule():
            raise ConfigError(f"{where}: level and scale of its assets stand in the STAC file")
        with item_errors(where):
            files = {n: _layer_files(asked, items, where) for n, (asked, items) in layers.items()}
            documents = [i.document for _, items in layers.values() for i in items]
            identity = json.dumps([documents, repr(rule)], sort_keys=True, default=str).encode()
            scene = Scene.of_layers(Path(self.item.id), identity, files)
        scene.name, scene.time, scene.chip_rule = self.item.id, self.item.time, self.chip_rule
        return scene


def searched_scenes(path: Path) -> tuple[ItemScene, ...]:
    """A scene for each item of a STAC file's first modality, by time.

    Modalities of the same search are the item's own; of another search, those of its items that
    touch the item. Raises as ``find_items``.
    """
    require_stac()
    spec = read_stac_file(path)
    matches: dict[StacSearch, tuple[StacItem, ...]] = {}
    for name, requested in spec.modalities.items():
        if requested.search not in matches:
            where = f"{path}: modalities.{name}"
            matches[requested.search] = find_items(requested.search, spec.area, where)
    first = next(iter(spec.modalities.values())).search
    scenes = []
    for item in matches[first]:
        layers = {}
        for name, requested in spec.modalities.items():
            others = (i for i in matches[requested.search] if boxes_touch(i.bbox, item.bbox))
            items = (item,) if requested.search == first else tuple(others)
            if items:
                layers[name] = requested, items
        scenes.append(
            ItemScene(item=item, where=str(path), layers=layers, chip_rule=spec.chip_rule)
        )
    return tuple(scenes)


def collected_scenes(collection: Any, where: str) -> tuple[ItemScene, ...]:
    """A scene for each item of an ItemCollection: its JSON file, or pystac's object.

    Raises FormatError for a file that is none, DataError for one without items.
    """
    require_stac()
    import pystac

    base = Path()
    if isinstance(collection, Path):
        base = collection.resolve()
        record = read_json(collection, ConfigError, form="a STAC ItemCollection")
        with item_errors(where):
            collection = pystac.ItemCollection.from_dict(record)
    with item_errors(where):
        members = collection.items  # a list; of pystac-client's search a method
        items = [item.clone() for item in (members() if callable(members) else members)]
        for item in items:
            if item.get_self_href() is None:
                item.set_self_href(str(base.with_name(f"{item.id}.json")) if base.name else "")
        plain = [candidate[0] for candidate in plain_items(items)]
    if not plain:
        raise DataError(f"{where}: has no item")
    return tuple(ItemScene(item=i, where=where, layers={}) for i in plain)


def _requested(modality: Modality, ratio: int, rule: RasterRule, where: str) -> StacModality:
    """A model's modality as a STAC file would describe it."""
    spec = model_spec(modality, rule, rule.scale, rule.offset, f"{where}: {modality.name}")
    search = StacSearch(
        catalogue=where, is_api=False, collections=(), dates=_ALWAYS, max_cloud=None
    )
    return StacModality(
        spec=spec, search=search, assets={}, mask=None, composite="first", ratio=ratio, check=True
    )


def _layer_files(requested: StacModality, items: tuple[StacItem, ...], where: str) -> LayerFiles:
    """The rasters of a modality, with the calibration and nodata of the items' metadata."""
    modality = requested.spec.modality
    assets = [locate_assets(item, requested, where) for item in items]
    nodata = set(modality.nodata)
    groups = []
    for band in range(modality.channels):
        files = []
        for item, keys in zip(items, assets, strict=True):
            name, number = asset_of(item, keys[band])
            record = raster_record(item.assets[name], number)
            if (value := as_number(record.get("nodata"))) is not None:
                nodata.add(value)
            files.append(_band_file(item, keys[band], requested, where))
        groups.append(BandGroup(bands=(band,), files=tuple(files)))
    mask = None
    if requested.mask is not None:
        name, number = asset_of(items[0], requested.mask.asset)
        path = Path(str(items[0].assets[name]["href"]))
        mask = QualityMask(path=path, bands=(number - 1,), classes=requested.mask.classes)
    # Scale and offset are those of the headers, band by band.
    spec = replace(
        requested.spec,
        modality=replace(modality, nodata=tuple(n for n in sorted(nodata) if not math.isnan(n))),
        scale=PerChip(),
        offset=PerChip(),
    )
    acquisition = Acquisition(groups=tuple(groups), mask=mask)
    return LayerFiles(spec=spec, acquisitions=(acquisition,), ratio=requested.ratio)


def _band_file(item: StacItem, key: str, requested: StacModality, where: str) -> BandFile:
    name, number = asset_of(item, key)
    path = Path(str(item.assets[name]["href"]))
    header = read_header(path)
    if not 0 < number <= header.count:
        raise ConfigError(f"{where}: asset {name!r} has {header.count} bands, none is {number}")
    if not requested.spec.modality.categorical:
        linear = band_calibration(item, key, requested, where)
        bands = list(header.bands)
        bands[number - 1] = replace(
            bands[number - 1], scale=linear.scale, offset=linear.offset or None
        )
        header = replace(header, bands=tuple(bands))
    return BandFile(path=path, header=header, at=(number - 1,))
