"""``open_source`` opens any source by what the user wrote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from multimae_eo.errors import ConfigError, DataError
from multimae_eo.modality import ModalitySet
from multimae_eo.sources.base import ConcatSource, Source
from multimae_eo.sources.raster.arrays import is_xarray
from multimae_eo.sources.scene.single_raster import RasterRule
from multimae_eo.sources.unsupported_files import other_kind

_YAML_KINDS = ("scene", "stac", "series")


def open_source(
    spec: object,
    *,
    modalities: ModalitySet | None = None,
    chips: Mapping[str, object] | None = None,
    level: str = "",
    scale: float | None = None,
    offset: float | None = None,
) -> Source:
    """Open a source, whatever it is.

    A dataset, scene or STAC file (YAML), a chip store, an MMEarth or a GEO-Bench folder; a folder
    of chips or rasters whose layout, sensor, level and scale the files themselves show (``init``);
    or, cut into chips, an ``xarray.DataArray`` or ``Dataset``, a Zarr or NetCDF cube, or a raster
    that holds the bands of ``modalities``.

    ``mmearth:DIR`` names an MMEarth folder; ``geobench:ROOT/NAME`` a data set of GEO-Bench, with
    ``?partition=0.10x_train`` a label fraction and ``?modalities=A+B`` other modalities;
    ``geobench2:ROOT/NAME`` or a tortilla file one of GEO-Bench-2;
    ``scene:FILE`` and ``stac:FILE`` state the kind of a YAML file, otherwise inferred from its
    keys. Several specs (a list, or separated by commas) become one source whose chips may have
    different modalities.

    Args:
        spec: A path, a name as above, an xarray object, or a list of paths and names.
        modalities: Of an array, cube or raster: what its bands are.
        chips: Of an array, cube or raster: the section ``chips`` of a scene file, such as
            ``{"size": 64}``.
        level: Of an array, cube or raster: processing level, l1c or l2a.
        scale: Of an array, cube or raster: physical units per digital number (default: declared).
        offset: Of an array, cube or raster: physical value of the digital number 0.

    Raises:
        ConfigError: nothing is there, or it is none of these.
    """
    if modalities is not None or is_xarray(spec):
        rule = RasterRule(level=level, scale=scale, offset=offset)
        return _open_raster(spec, modalities, chips, rule)
    if chips is not None or level or scale is not None or offset is not None:
        raise ConfigError(
            "chips, level, scale and offset are of an array or raster: give modalities"
        )
    return _open_named(spec)


def _open_named(spec: Any) -> Source:
    """A source by its path or name, or several in a list."""
    if not isinstance(spec, str | Path):
        specs = list(spec)
        return (
            open_source(specs[0])
            if len(specs) == 1
            else ConcatSource([open_source(s) for s in specs])
        )
    text = str(spec)
    if "," in text and not Path(text).exists():
        return open_source([part.strip() for part in text.split(",") if part.strip()])
    if text.startswith("mmearth:"):
        from multimae_eo.sources.mmearth import MMEarthSource

        return MMEarthSource(Path(text.removeprefix("mmearth:")))
    if text.startswith("geobench:"):
        from multimae_eo.sources.geobench.source import open_geobench

        return open_geobench(text.removeprefix("geobench:"))
    if text.startswith("geobench2:") or text.endswith(".tortilla"):
        from multimae_eo.sources.geobench2.source import open_geobench2

        return open_geobench2(text.removeprefix("geobench2:"))
    kind, _, rest = text.partition(":")
    path = Path(rest if kind in _YAML_KINDS else text)
    if not path.exists():
        raise ConfigError(
            f"{text}: no such file or folder; a source is a dataset, scene or STAC file (YAML), "
            "a chip store, mmearth:DIR, geobench:ROOT/NAME or geobench2:ROOT/NAME"
        )
    if path.is_file() and (kind in _YAML_KINDS or path.suffix.lower() in (".yaml", ".yml")):
        return _open_yaml(path, kind if kind in _YAML_KINDS else _yaml_kind(path))
    return _marked_folder(path) or _open_drafted(path, text)


def _marked_folder(path: Path) -> Source | None:
    """A folder that a file in it identifies: a chip store, an MMEarth or a GEO-Bench one."""
    if (path / "store.json").is_file() or (path / "plan.json").is_file():
        from multimae_eo.store.reader import ChipStore

        return ChipStore(path)
    stores = [p.parent for p in sorted(path.glob("*/store.json"))]
    if stores:
        return _store_of_each(stores)
    if any(path.glob("*_tile_info.json")):
        from multimae_eo.sources.mmearth import MMEarthSource

        return MMEarthSource(path)
    if (path / "default_partition.json").is_file():
        from multimae_eo.sources.geobench.source import GeoBenchSource

        return GeoBenchSource(path)
    return None


def _store_of_each(folders: Sequence[Path]) -> Source:
    """The stores that ``prepare`` wrote of several scenes as one source, named as the folders."""
    from multimae_eo.store.reader import ChipStore

    stores = [ChipStore(folder) for folder in folders]
    for store in stores:
        store.name = store.path.name
    return ConcatSource(stores)


def _open_drafted(path: Path, spec: str) -> Source:
    """A folder that needs no dataset or scene file, for its files leave nothing open."""
    from multimae_eo.sources.draft.drafting import required_text
    from multimae_eo.sources.products.open_product import product_at

    if (what := other_kind(path)) and product_at(path, radar=False) is None:
        raise ConfigError(
            f"{spec}: {what}. A source is a dataset, scene or STAC file (YAML), a chip store, "
            "mmearth:DIR or geobench:ROOT/NAME"
        )
    try:
        draft, text = required_text(path)
    except DataError as error:
        raise ConfigError(
            f"{error}; nor is it a chip store (no store.json), an MMEarth folder (no "
            "*_tile_info.json) or a GEO-Bench one (no default_partition.json)"
        ) from error
    if draft.kind == "scene":
        from multimae_eo.sources.scene.chips import SceneChips
        from multimae_eo.sources.scene.scene import Scene

        return SceneChips(Scene(path, native=True, text=text))
    from multimae_eo.sources.dataset.dataset_file import DatasetFileSource

    return DatasetFileSource(path, text)


def _open_raster(
    spec: Any, modalities: ModalitySet | None, chips: Mapping[str, object] | None, rule: RasterRule
) -> Source:
    """The chips of an array, cube or raster."""
    from multimae_eo.sources.scene.chips import SceneChips
    from multimae_eo.sources.scene.scene import Scene

    if modalities is None or chips is None:
        raise ConfigError(
            "an array is a source with modalities=… (what its bands are) and chips={'size': …}; "
            "to apply a model to it, pass it as scene=…"
        )
    if is_xarray(spec):
        return SceneChips(Scene.of_arrays(spec, modalities, rule, chips=chips))
    return SceneChips(Scene.of_raster(Path(spec), modalities, rule, chips=chips))


def _yaml_kind(path: Path) -> str:
    """What a YAML file describes: ``stac`` has an ``area``; ``series`` a table of that name;
    ``scene`` a section ``chips`` or lists of rasters; anything else is a data set."""
    from multimae_eo.sources.yaml_section import load_yaml

    top = load_yaml(path)
    if not isinstance(top, Mapping):
        return "dataset"
    if "area" in top:
        return "stac"
    if "series" in top:
        return "series"
    records = top.get("modalities")
    layers = records.values() if isinstance(records, Mapping) else ()
    listed = any(isinstance(r, Mapping) and isinstance(r.get("path"), list) for r in layers)
    return "scene" if listed or isinstance(top.get("chips"), Mapping) else "dataset"


def _open_yaml(path: Path, kind: str) -> Source:
    if kind == "series":
        from multimae_eo.sources.point_series import PointSeries

        return PointSeries(path)
    if kind == "stac":
        from multimae_eo.sources.stac.source import open_stac

        return open_stac(path)
    if kind == "scene":
        from multimae_eo.sources.scene.chips import open_scene

        return open_scene(path)
    from multimae_eo.sources.dataset.dataset_file import DatasetFileSource

    return DatasetFileSource(path)
