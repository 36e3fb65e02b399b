"""Between a model and a scene: which modalities are read, and how the scene is cut into windows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from multimae_eo.errors import ConfigError, did_you_mean
from multimae_eo.geo import Window
from multimae_eo.inference.input_check import check_samples
from multimae_eo.modality import ModalitySet
from multimae_eo.network.multimae import MultiMAE
from multimae_eo.scenes.job import SceneOptions
from multimae_eo.scenes.tiling import Tiling, make_tiling
from multimae_eo.sources.draft.drafting import product_draft, required_text
from multimae_eo.sources.products.open_product import product_at
from multimae_eo.sources.scene.scene import Scene, require_scene_modalities
from multimae_eo.sources.scene.single_raster import RasterRule, is_raster
from multimae_eo.sources.stac.item_scene import ItemScene

_CHECKED_WINDOWS = 8
"""Windows that are checked before a scene is mapped."""


def open_for(
    model: MultiMAE,
    path: Path,
    *,
    inputs: Sequence[str] | None = None,
    rule: RasterRule | None = None,
) -> Scene:
    """Open a scene file, a folder of rasters whose sensor, level and scale the files show, or a
    single raster that holds all ``inputs`` (default: the model's).

    Modalities are read at the resolutions of the model's training: all on one grid, or native.
    ``rule``: what a raster does not declare itself. Raises as ``Scene`` and ``Scene.of_raster``;
    ConfigError for a rule beside a scene file.
    """
    sizes = model.config.sizes
    if not is_raster(path):
        if rule not in (None, RasterRule()):
            raise ConfigError(f"{path}: level and scale of its rasters stand in the scene file")
        native = len(set(sizes.values())) > 1
        offered = _modalities_of(model, inputs)[0]
        text = folder_text(path, offered) if path.is_dir() else None
        return Scene(path, native=native, text=text)
    modalities, ratios = _modalities_of(model, inputs)
    return Scene.of_raster(path, modalities, rule, ratios=ratios)


def open_arrays(
    model: MultiMAE,
    data: object,
    *,
    inputs: Sequence[str] | None = None,
    rule: RasterRule | None = None,
) -> Scene:
    """An ``xarray.DataArray`` or ``Dataset`` that holds all ``inputs``, as ``open_for``."""
    modalities, ratios = _modalities_of(model, inputs)
    return Scene.of_arrays(data, modalities, rule, ratios=ratios)


def open_item(
    model: MultiMAE,
    item: ItemScene,
    *,
    inputs: Sequence[str] | None = None,
    rule: RasterRule | None = None,
) -> Scene:
    """A STAC item that has all ``inputs``, as ``open_for``; one of a STAC file as that declares."""
    if item.layers:
        return item.to_scene(rule=rule)
    modalities, ratios = _modalities_of(model, inputs)
    return item.to_scene(modalities, ratios, rule)


def _modalities_of(
    model: MultiMAE, inputs: Sequence[str] | None
) -> tuple[ModalitySet, dict[str, int]]:
    """The inputs, and how many pixels of the finest make one of each."""
    sizes = model.config.sizes
    modalities = model.modalities.select(inputs or list(model.modalities))
    side = max(sizes[n] for n in modalities)
    return modalities, {n: side // sizes[n] for n in modalities if side % sizes[n] == 0}


def folder_text(path: Path, offered: ModalitySet | None) -> str:
    """The scene file of a product, or of a folder of rasters that leave nothing open.

    ``offered``: the modalities of a model, which a product is read as; None for its native ones.
    ConfigError for a folder of chips, and where something is left open; FormatError for an
    incomplete product.
    """
    product = product_at(path, radar=False)
    if product is not None:
        return product_draft(product, offered).text()
    draft, text = required_text(path)
    if draft.kind != "scene":
        raise ConfigError(f"{path}: {draft.evidence[0]}: a data set (SOURCE), not a scene")
    return text


def require_inputs(
    modalities: ModalitySet, scene: Scene, inputs: Sequence[str] | None
) -> ModalitySet:
    """The modalities to read, as the scene has them.

    ``modalities``: the model's. ``inputs``: names (default: all that model and scene share).
    Raises ConfigError for a name that either lacks, or where nothing is shared.
    """
    shared = [n for n in scene.modalities if n in modalities]
    for name in inputs or ():
        if name not in modalities:
            raise ConfigError(f"the model has no input {name!r}; {did_you_mean(name, shared)}")
    require_scene_modalities(scene, inputs or ())
    names = [n for n in shared if inputs is None or n in inputs]
    if not names:
        raise ConfigError(f"{scene.name}: has none of the inputs {', '.join(modalities)}")
    return scene.modalities.select(names)


def check_scene(network: MultiMAE, scene: Scene, inputs: ModalitySet, tiling: Tiling) -> str:
    """Look at a few windows of a scene before a model is applied; see ``check_samples``."""
    names = [n for n, m in inputs.items() if not m.categorical]
    corners = [(row, col) for row in tiling.tops for col in tiling.lefts]
    step = max(1, len(corners) // _CHECKED_WINDOWS)
    samples = (
        scene.read(Window(row=row, col=col, height=tiling.chip, width=tiling.chip), names)
        for row, col in corners[step // 2 :: step][:_CHECKED_WINDOWS]
    )
    return check_samples(network.modalities, network.statistics, samples, where=scene.name)


def scene_tiling(
    sizes: Mapping[str, int], scene: Scene, inputs: ModalitySet, options: SceneOptions
) -> Tiling:
    """Cut a scene into windows for a model whose chips have ``sizes``; see ``make_tiling``."""
    ratios = {n: scene.ratios[n] for n in inputs}
    dates = max([1, *(len(scene.dates[n]) for n in inputs if n in scene.dates)])
    return make_tiling(
        scene.grid, sizes, ratios, chip=options.chip, overlap=options.overlap, dates=dates
    )
