"""The verb predict: what a fine-tuned model says of a whole scene."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from multimae_eo.cli.parts import Verb, counter, names_in
from multimae_eo.cli.scenes import open_scene, place, scene_how, scene_options, share_options
from multimae_eo.errors import ConfigError


def _predict_options(parser: Any) -> None:
    parser.add_argument("--model", type=str, required=True, help="fine-tuned model folder")
    scene_options(parser, required=True)
    parser.add_argument("--inputs", type=str, default=None, help="modalities, m1,m2 (default: all)")
    parser.add_argument("--out", type=str, required=True, help="GeoTIFF to write, MAP.tif")
    parser.add_argument("--probabilities", action="store_true", help="also a band per class")
    parser.add_argument("--confidence", action="store_true", help="also the likeliest class's")
    parser.add_argument(
        "--overlap",
        type=float,
        default=None,
        help="of windows, [0, 1) (default: 0.5 for maps, 0 for one answer per chip)",
    )
    share_options(parser)


def _predict(options: Any, _: list[str]) -> None:
    from multimae_eo.model_folder.folder import is_predictor
    from multimae_eo.network.predictor import Predictor
    from multimae_eo.scenes.predict import default_overlap, predict_scene

    folder = Path(options.model)
    if (folder / "config.json").is_file() and not is_predictor(folder):
        raise ConfigError(f"{folder}: has no head; fine-tune it first, or use `reconstruct`")
    model = Predictor.from_pretrained(folder).eval()
    if options.overlap is None:
        options.overlap = default_overlap(model)
    with counter("px", scaled=True) as progress:
        paths = predict_scene(
            model,
            open_scene(model.encoder, options),
            out=place(options.out, options),
            inputs=names_in(options.inputs),
            extras=[k for k in ("probabilities", "confidence") if getattr(options, k)],
            options=scene_how(options, progress),
        )
    for path in paths:
        print(path)


PREDICT_VERBS: dict[str, Verb] = {
    "predict": (_predict_options, _predict, "a map of a scene, by a fine-tuned model"),
}
