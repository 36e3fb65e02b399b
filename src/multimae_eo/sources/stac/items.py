"""STAC items: searched in an API or a static catalogue, counted before each filter."""

from __future__ import annotations

import datetime
import importlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from multimae_eo.errors import ConfigError, DataError, FormatError, MultiMAEError, did_you_mean
from multimae_eo.modality import Modality
from multimae_eo.sources.stac.stac_file import StacModality, StacSearch
from multimae_eo.sources.yaml_section import one_line

Box = tuple[float, float, float, float]
"""(west, south, east, north) in degrees."""


@dataclass(frozen=True, kw_only=True)
class StacItem:
    """An item as plain data, so that it can travel between processes.

    ``bbox`` in degrees. ``cloud``: percent, None where unknown. ``document``: the item's JSON with
    absolute asset links.
    """

    id: str
    time: str
    bbox: Box
    cloud: float | None
    document: Mapping[str, Any] = field(repr=False, hash=False, compare=False)

    @property
    def properties(self) -> Mapping[str, object]:
        """The item's properties."""
        properties: Mapping[str, object] = self.document["properties"]
        return properties

    @property
    def assets(self) -> Mapping[str, Mapping[str, object]]:
        """Its assets by key."""
        assets: Mapping[str, Mapping[str, object]] = self.document["assets"]
        return assets


def require_stac() -> None:
    """ConfigError unless odc-stac, pystac and pystac-client are installed."""
    for package in ("odc.stac", "pystac", "pystac_client"):
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise ConfigError(
                f"STAC needs {package}; install it with pip install 'multimae-eo[geo]'"
            ) from error


def find_items(search: StacSearch, area: Mapping[str, object], where: str) -> tuple[StacItem, ...]:
    """Items that match a search and touch the area's box, by time.

    Raises FormatError for a catalogue that cannot be read, and DataError when nothing is found,
    with the number of items before each filter.
    """
    box = box_of(area)
    counts: list[str] = []
    with item_errors(search.catalogue):
        candidates = _from_api(search, area) if search.is_api else _from_catalogue(search)
    if search.is_api:
        counts.append(f"{len(candidates)} from the API for collections, dates and area")
    else:
        counts.append(f"{len(candidates)} in the catalogue")
        candidates = [i for i in candidates if not search.collections or i[1] in search.collections]
        counts.append(f"{len(candidates)} in the collections")
        candidates = [i for i in candidates if _overlaps(i[2], search.dates)]
        counts.append(f"{len(candidates)} in the dates")
        candidates = [i for i in candidates if boxes_touch(i[0].bbox, box)]
        counts.append(f"{len(candidates)} touch the area")
    items = [i[0] for i in candidates]
    if search.max_cloud is not None:
        most = search.max_cloud
        items = [i for i in items if i.cloud is None or i.cloud <= most]
        counts.append(f"{len(items)} with at most {most:g} % cloud")
    if not items:
        first, last = (d.date().isoformat() for d in search.dates)
        raise DataError(
            f"{where}: no item in {search.catalogue} for area {[round(b, 4) for b in box]}, dates "
            f"{first}/{last}, collections {', '.join(search.collections) or 'any'}: "
            f"{', '.join(counts)}"
        )
    names = [i.id for i in items]
    for name in names:
        if names.count(name) > 1:
            raise DataError(
                f"{where}: two items of {search.catalogue} are called {name!r}; name one collection"
            )
    return tuple(sorted(items, key=lambda i: (i.time, i.id)))


Candidate = tuple[StacItem, str, tuple[datetime.datetime, datetime.datetime]]
"""An item, its collection, its first and last moment."""


def _from_catalogue(search: StacSearch) -> list[Candidate]:
    import pystac

    catalogue = search.catalogue
    if "://" not in catalogue and not Path(catalogue).is_file():
        raise FormatError(
            f"{catalogue}: no such catalogue; give its catalog.json or collection.json"
        )
    root = pystac.read_file(catalogue)
    if not isinstance(root, pystac.Catalog):
        raise FormatError(f"{catalogue}: is no STAC catalogue or collection, but an item")
    return plain_items(root.get_items(recursive=True))


def _from_api(search: StacSearch, area: Mapping[str, object]) -> list[Candidate]:
    import pystac_client

    first, last = (d.astimezone(datetime.UTC).isoformat() for d in search.dates)
    client = pystac_client.Client.open(search.catalogue)
    search_result = client.search(
        collections=list(search.collections) or None,
        intersects=dict(area),
        datetime=f"{first}/{last}",
    )
    return plain_items(search_result.items())


def plain_items(items: Iterable[Any]) -> list[Candidate]:
    """pystac's items as plain data, with their collections and spans of time.

    Those without a geometry are left out; FormatError for one without a time.
    """
    candidates: list[Candidate] = []
    for item in items:
        start, end = item.common_metadata.start_datetime, item.common_metadata.end_datetime
        moment = item.datetime or start or end
        if moment is None:
            raise FormatError(f"{item.id}: the item has no time")
        if item.geometry is None and item.bbox is None:
            continue
        item.make_asset_hrefs_absolute()
        document = item.to_dict(include_self_link=False, transform_hrefs=False)
        bbox = box_of(item.geometry) if item.bbox is None else _flat(item.bbox)
        cloud = item.properties.get("eo:cloud_cover")
        plain = StacItem(
            id=item.id,
            time=_utc(moment).isoformat().replace("+00:00", "Z"),
            bbox=bbox,
            cloud=None if cloud is None else float(cloud),
            document={**document, "links": []},
        )
        span = (_utc(start or moment), _utc(end or moment))
        candidates.append((plain, item.collection_id or "", span))
    return candidates


def _utc(moment: datetime.datetime) -> datetime.datetime:
    aware = moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)
    return aware.astimezone(datetime.UTC)


def _flat(bbox: Sequence[float]) -> Box:
    """The box without heights."""
    half = len(bbox) // 2
    return float(bbox[0]), float(bbox[1]), float(bbox[half]), float(bbox[half + 1])


def box_of(geometry: Mapping[str, object]) -> Box:
    """The box around a GeoJSON geometry."""
    points = list(_points(geometry["coordinates"]))
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    return min(xs), min(ys), max(xs), max(ys)


def _points(coordinates: Any) -> Iterator[Sequence[float]]:
    if coordinates and isinstance(coordinates[0], int | float):
        yield coordinates
        return
    for part in coordinates:
        yield from _points(part)


def boxes_touch(a: Box, b: Box) -> bool:
    """Whether two boxes have a point in common."""
    return a[0] <= b[2] and b[0] <= a[2] and a[1] <= b[3] and b[1] <= a[3]


def _overlaps(
    a: tuple[datetime.datetime, datetime.datetime], b: tuple[datetime.datetime, datetime.datetime]
) -> bool:
    return a[0] <= b[1] and b[0] <= a[1]


@contextmanager
def item_errors(catalogue: str) -> Iterator[None]:
    """Whatever goes wrong with the documents of a catalogue is a FormatError of its address."""
    try:
        yield
    except MultiMAEError:
        raise
    # pystac's and pystac-client's errors have no common base, and damaged JSON raises any.
    except Exception as error:
        what = one_line(error) or type(error).__name__
        raise FormatError(
            f"{catalogue}: cannot be read as STAC: {what}; check its address"
        ) from error


def locate_assets(item: StacItem, requested: StacModality, where: str) -> tuple[str, ...]:
    """The asset of each band (``key`` or ``key.NUMBER`` for a band of it), in the bands' order.

    ConfigError where one is missing or several match, with the nearest.
    """
    modality = requested.spec.modality
    keys = tuple(
        requested.assets.get(name) or _match(item, modality, band, where)
        for band, name in enumerate(requested.spec.rule.band_names)
    )
    if len(set(keys)) < len(keys):
        raise ConfigError(f"{where}: item {item.id}: two bands are one asset: {', '.join(keys)}")
    for key in (*keys, *([requested.mask.asset] if requested.mask else [])):
        if asset_of(item, key)[0] not in item.assets:
            raise ConfigError(
                f"{where}: item {item.id} has no asset {key!r}; {did_you_mean(key, item.assets)}"
            )
    return keys


def asset_of(item: StacItem, key: str) -> tuple[str, int]:
    """The asset's key and the number of its band from 1: ``visual.3`` is band 3 of ``visual``."""
    name, _, number = key.rpartition(".")
    if key not in item.assets and name and number.isdigit():
        return name, int(number)
    return key, 1


def _match(item: StacItem, modality: Modality, index: int, where: str) -> str:
    band = modality.bands[index]
    hits = [key for key in item.assets if band.matches(key)]
    if not hits:
        hits = [k for k, a in item.assets.items() if any(band.matches(n) for n in _named(a))]
    if len(hits) == 1:
        return hits[0]
    reason = f"may be any of {', '.join(hits)}" if hits else f"not found among {list(item.assets)}"
    raise ConfigError(
        f"{where}: item {item.id}: band {band.name!r} {reason}; write `assets: "
        f"{{{band.name}: KEY}}`"
    )


def _named(asset: Mapping[str, Any]) -> list[str]:
    """The band's names of an asset with one band."""
    bands = asset.get("eo:bands") or asset.get("bands") or []
    return [bands[0]["name"]] if len(bands) == 1 and bands[0].get("name") else []
