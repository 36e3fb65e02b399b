"""The verbs of whole scenes and of embeddings: reconstruct, embed, search."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from multimae_eo.cli.parts import SOURCE, Verb, counter, names_in, print_json
from multimae_eo.errors import ConfigError

# reconstruct --------------------------------------------------------------------------------


def scene_options(parser: Any, *, required: bool = False) -> None:
    """Which scene; and what a single raster does not say of itself."""
    parser.add_argument(
        "--scene",
        type=str,
        required=required,
        help="scene file (YAML), or a raster that holds all inputs",
    )
    parser.add_argument("--level", type=str, default="", help="product level of a raster: l1c, l2a")
    parser.add_argument(
        "--scale",
        type=float,
        default=None,
        help="units per number of a raster (default: what it declares, or the model's data had)",
    )
    parser.add_argument(
        "--offset", type=float, default=None, help="beside --scale: physical = raw * scale + offset"
    )


def open_scene(model: Any, options: Any) -> Any:
    """The scene, as a model wants it."""
    from multimae_eo.scenes.scene_inputs import open_for
    from multimae_eo.sources.scene.single_raster import RasterRule

    rule = RasterRule(level=options.level, scale=options.scale, offset=options.offset)
    inputs = names_in(options.inputs)
    return open_for(model, place(options.scene, options), inputs=inputs, rule=rule)


def _window_options(parser: Any) -> None:
    parser.add_argument("--overlap", type=float, default=0.5, help="of a scene's windows, [0, 1)")
    share_options(parser)


def share_options(parser: Any) -> None:
    """How a scene is computed, and by whom."""
    parser.add_argument("--workers", type=int, default=1, help="processes that share a scene")
    parser.add_argument(
        "--dask", type=str, default="", help="address of a Dask scheduler whose workers share it"
    )
    parser.add_argument(
        "--precision", type=str, default="auto", help="auto, 32-true, bf16-mixed or 16-mixed"
    )
    parser.add_argument("--batch_size", type=int, default=None, help="windows at once")
    parser.add_argument("--device", type=str, default="auto", help="cpu, cuda, cuda:1, …")


def _reconstruct_options(parser: Any) -> None:
    parser.add_argument("--model", type=str, required=True, help="model folder")
    parser.add_argument("--data", type=str, default=None, help=SOURCE)
    scene_options(parser)
    parser.add_argument("--inputs", type=str, required=True, help="given modalities, m1,m2")
    parser.add_argument("--outputs", type=str, default=None, help="predicted ones (default: all)")
    parser.add_argument("--out", type=str, required=True, help="folder to write")
    parser.add_argument("--split", type=str, default=None, help="chips of this split only")
    parser.add_argument("--limit", type=int, default=8, help="chips to picture")
    parser.add_argument("--arrays", action="store_true", help="write arrays (.npz), too")
    parser.add_argument(
        "--draws",
        type=int,
        default=None,
        help="random subsets for the spread (default: 8 for chips, 0 for a scene)",
    )
    parser.add_argument("--error", action="store_true", help="a scene's errors where it has truth")
    _window_options(parser)


def _reconstruct(options: Any, _: list[str]) -> None:
    from multimae_eo.network.multimae import MultiMAE

    if (options.data is None) == (options.scene is None):
        raise ConfigError("reconstruct: give either --data or --scene")
    model = MultiMAE.from_pretrained(options.model)
    inputs, outputs = names_in(options.inputs) or [], names_in(options.outputs)
    if options.scene is not None:
        from multimae_eo.scenes.reconstruct import reconstruct_scene

        with counter("px", scaled=True) as progress:
            paths = reconstruct_scene(
                model,
                open_scene(model, options),
                inputs=inputs,
                outputs=outputs,
                out=place(options.out, options),
                options=scene_how(options, progress, draws=options.draws or 0),
                error=options.error,
            )
        for path in paths:
            print(path)
        return
    from multimae_eo.inference.reconstruct_chips import ReconstructOptions, reconstruct_chips
    from multimae_eo.loading.open_source import open_source

    result = reconstruct_chips(
        model,
        open_source(options.data),
        inputs=inputs,
        out=Path(options.out),
        split=options.split,
        options=ReconstructOptions(
            limit=options.limit,
            outputs=None if outputs is None else tuple(outputs),
            arrays=options.arrays,
            draws=8 if options.draws is None else options.draws,
        ),
    )
    print_json(result)


def scene_how(options: Any, progress: Any, *, draws: int = 0) -> Any:
    """The options of a scene's engine."""
    import torch

    from multimae_eo.model_folder.folder import model_hash
    from multimae_eo.scenes.job import SceneOptions

    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device="cpu" if options.dask else device)  # Dask's workers have their own
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"--device {device}: cannot be used here; try --device cpu") from error
    return SceneOptions(
        overlap=options.overlap,
        workers=options.workers,
        dask=options.dask,
        precision=options.precision,
        batch_size=options.batch_size,
        device=device,
        draws=draws,
        model_hash=model_hash(options.model),
        progress=progress,
    )


def place(path: str, options: Any) -> Path:
    """A path; whole where other machines have to find it, too."""
    return Path(path).resolve() if options.dask else Path(path)


# embed --------------------------------------------------------------------------------------


def _embed_options(parser: Any) -> None:
    parser.add_argument("--model", type=str, required=True, help="model folder")
    parser.add_argument("--data", type=str, default=None, help=SOURCE)
    scene_options(parser)
    parser.add_argument("--inputs", type=str, default=None, help="modalities, m1,m2 (default: all)")
    parser.add_argument("--out", type=str, required=True, help="GeoParquet file to write")
    parser.add_argument("--per", type=str, default="chip", help="a vector per chip, or per patch")
    parser.add_argument("--half", action="store_true", help="vectors as float16")
    parser.add_argument(
        "--precision", type=str, default="auto", help="auto, 32-true, bf16-mixed or 16-mixed"
    )
    parser.add_argument("--batch_size", type=int, default=None, help="chips at once")
    parser.add_argument("--device", type=str, default="auto", help="cpu, cuda, cuda:1, …")


def _embed(options: Any, _: list[str]) -> None:
    from multimae_eo.network.multimae import MultiMAE
    from multimae_eo.scenes.embed import embed_scene, embed_source

    if (options.data is None) == (options.scene is None):
        raise ConfigError("embed: give either --data or --scene")
    model = MultiMAE.from_pretrained(options.model)
    options.overlap, options.workers, options.dask = 0.0, 1, ""
    unit = "px" if options.scene is not None else "chips"
    with counter(unit, scaled=options.scene is not None) as progress:
        how = scene_how(options, progress)
        what = {"inputs": names_in(options.inputs), "per": options.per, "half": options.half}
        if options.scene is not None:
            scene = open_scene(model, options)
            count = embed_scene(model, scene, Path(options.out), options=how, **what)
        else:
            from multimae_eo.loading.open_source import open_source

            source = open_source(options.data)
            count = embed_source(model, source, Path(options.out), options=how, **what)
    print(f"{options.out}: {count} vectors")


# search -------------------------------------------------------------------------------------


def _search_options(parser: Any) -> None:
    parser.add_argument("--embeddings", type=str, required=True, help="GeoParquet file of embed")
    parser.add_argument(
        "--at", type=str, default=None, help="what lies at LON,LAT in degrees (--at=-4.1,52.4)"
    )
    parser.add_argument("--key", type=str, default=None, help="or what has this key")
    parser.add_argument("--k", type=int, default=10, help="how many neighbours")
    parser.add_argument("--json", action="store_true", help="as JSON")


def _search(options: Any, _: list[str]) -> None:
    from multimae_eo.inference.search import search

    at = None
    if options.at is not None:
        try:
            lon, lat = (float(v) for v in options.at.split(","))
        except ValueError:
            raise ConfigError(f"--at: expected LON,LAT in degrees, got {options.at!r}") from None
        at = lon, lat
    found = search(Path(options.embeddings), at=at, key=options.key, k=options.k)
    if options.json:
        print_json(found)
        return
    width = max(len(row["key"]) for row in found)
    for row in found:
        place = "" if row["lon"] is None else f"{row['lon']:11.5f} {row['lat']:10.5f}"
        sys.stdout.write(f"{row['key']:{width}}  {row['similarity']:7.4f} {place}".rstrip() + "\n")


SCENE_VERBS: dict[str, Verb] = {
    "reconstruct": (_reconstruct_options, _reconstruct, "any modality from any others"),
    "embed": (_embed_options, _embed, "vectors of chips or patches, as GeoParquet"),
    "search": (_search_options, _search, "what looks alike: neighbours among embeddings"),
}
