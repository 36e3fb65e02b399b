"""The verbs that lead elsewhere: export, info, completion."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from multimae_eo.cli.parts import SOURCE, Verb, names_in, print_json
from multimae_eo.errors import ConfigError, did_you_mean

# export -------------------------------------------------------------------------------------


def _export_options(parser: Any) -> None:
    parser.add_argument("--model", type=str, required=True, help="model folder, or owner/model")
    parser.add_argument("--format", type=str, default="onnx", help="torch or onnx")
    parser.add_argument("--out", type=str, required=True, help="file to write (.pt2, .onnx)")
    parser.add_argument(
        "--what",
        type=str,
        default=None,
        help="encoder, predict or reconstruct (default: predict where there is a head)",
    )
    parser.add_argument("--inputs", type=str, default=None, help="modalities, m1,m2 (default: all)")
    parser.add_argument("--outputs", type=str, default=None, help="to reconstruct (default: all)")
    parser.add_argument(
        "--levels", type=str, default=None, help="product levels of inputs: rgb=l2a,ired=l2a"
    )
    parser.add_argument("--size", type=int, default=None, help="chip side in px, finest input")
    parser.add_argument(
        "--dynamic", type=str, default="batch", help="what is free: batch, or none (one chip)"
    )
    parser.add_argument("--quantize", type=str, default=None, help="weights as int8 or bf16")
    parser.add_argument(
        "--data", type=str, default=None, help="check on real chips, too: " + SOURCE
    )
    parser.add_argument("--json", action="store_true", help="the file's record as JSON")


def _export(options: Any, _: list[str]) -> None:
    from multimae_eo.export.files import FileOptions, export_model
    from multimae_eo.export.graphs import WHATS, GraphOptions
    from multimae_eo.model_folder.folder import load_either, model_hash
    from multimae_eo.network.predictor import Predictor

    choices: dict[str, tuple[str | None, ...]] = {
        "format": ("torch", "onnx"),
        "dynamic": ("batch", "none"),
        "what": (None, *WHATS),
        "quantize": (None, "int8", "bf16"),
    }
    for name, valid in choices.items():
        said = getattr(options, name)
        if said not in valid:
            hint = did_you_mean(said, [v for v in valid if v])
            if said == "size":
                hint = "positions are relative to the chip: export once per --size"
            raise ConfigError(f"--{name}: no {said!r}; {hint}")
    model = load_either(options.model)
    inputs, outputs = names_in(options.inputs), names_in(options.outputs)
    record = export_model(
        model,
        Path(options.out),
        GraphOptions(
            what=options.what or ("predict" if isinstance(model, Predictor) else "encoder"),
            inputs=None if inputs is None else tuple(inputs),
            outputs=None if outputs is None else tuple(outputs),
            levels=_levels(options.levels),
            size=options.size,
        ),
        FileOptions(
            format=options.format,
            dynamic=options.dynamic == "batch",
            quantization=options.quantize,
            model_hash=model_hash(options.model),
        ),
        images=None if options.data is None else _chips(options.data, model),
    )
    if options.json:
        print_json(record)
        return
    print(
        f"{options.out}: differs from the model by at most {record['max_difference']:.1e} "
        f"on {record['checked_on']}"
    )
    for name, change in record.get("quantization_change", {}).items():
        print(f"{name}: changed by the {options.quantize} weights by {change:.2%} (rms / std)")


def _levels(text: str | None) -> dict[str, str]:
    pairs = [p.split("=") for p in names_in(text) or []]
    if any(len(p) != 2 for p in pairs):
        raise ConfigError(f"--levels: expected m1=level,m2=level, got {text!r}")
    return {p[0]: p[1] for p in pairs}


def _chips(spec: str, model: Any, count: int = 8) -> dict[str, Any]:
    from multimae_eo.inference.backbone import physical_tensors
    from multimae_eo.loading.open_source import open_source

    source = open_source(spec)
    whole = getattr(model, "modalities", None) or model.encoder.modalities
    names = [n for n in source.modalities if n in whole]
    if not names:
        raise ConfigError(f"--data {spec}: has none of the inputs {', '.join(whole)}")
    return physical_tensors(source.batch(source.keys[:count], names))


# info ---------------------------------------------------------------------------------------


def _info_options(parser: Any) -> None:
    parser.add_argument(
        "path", type=str, help="a store, model or run folder; a map, embeddings, graph or dataset"
    )
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.add_argument("--verify", action="store_true", help="check a store or run's checksums")


def _info(options: Any, _: list[str]) -> None:
    from multimae_eo.info.paths import describe

    record = describe(Path(options.path), verify=options.verify)
    if options.json:
        print_json(record)
    else:
        for key, value in record.items():
            print(f"{key:>14}  {value}")


# completion ---------------------------------------------------------------------------------


def _completion_options(parser: Any) -> None:
    parser.add_argument("shell", type=str, help="bash, zsh or fish")


def _completion(options: Any, _: list[str]) -> None:
    from multimae_eo.cli.completion import script
    from multimae_eo.cli.main import _VERBS

    sys.stdout.write(script(options.shell, _VERBS))


ECOSYSTEM_VERBS: dict[str, Verb] = {
    "export": (_export_options, _export, "a graph for other runtimes: torch.export or ONNX"),
    "info": (_info_options, _info, "what a store, model, run, map or other file is"),
    "completion": (_completion_options, _completion, "the script that completes verbs and options"),
}
