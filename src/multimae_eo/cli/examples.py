"""What stands at the end of each verb's ``--help``: commands that work as they are written."""

from __future__ import annotations

_EXAMPLES: dict[str, tuple[str, ...]] = {
    "quickstart": (
        "quickstart --out quickstart",
        "quickstart --world_only --chips 200 --out small",
    ),
    "inspect": ("inspect dataset.yaml --html report.html", "inspect mmearth:DIR --json"),
    "prepare": ("prepare dataset.yaml --out store", "prepare mmearth:DIR --out store --workers 4"),
    "pretrain": (
        "pretrain --recipe quickstart --data store --out runs/first",
        "pretrain --recipe my.yaml --data store --out runs/first --optim.lr 3e-4",
    ),
    "finetune": (
        "finetune --model runs/first/model --data dataset.yaml --task segmentation --out runs/map",
        "finetune --model none --data dataset.yaml --task classification --out runs/scratch",
    ),
    "evaluate": ("evaluate --model runs/map/model --data dataset.yaml --split test --json",),
    "probe": (
        "probe --model runs/first/model --data dataset.yaml --methods knn,linear --out probes",
    ),
    "predict": ("predict --model runs/map/model --scene scene.yaml --out map.tif",),
    "study": (
        "study --model runs/first/model --data dataset.yaml --task classification --out studies/a",
    ),
    "benchmark": ("benchmark geobench --model runs/first/model --root ROOT --out benchmarks/a",),
    "reconstruct": (
        "reconstruct --model runs/first/model --scene scene.yaml --inputs rgb --out maps",
        "reconstruct --model runs/first/model --data store --inputs rgb --limit 4 --out pictures",
    ),
    "embed": (
        "embed --model runs/first/model --scene scene.yaml --out scene.parquet",
        "embed --model runs/first/model --data store --out store.parquet --half",
    ),
    "search": ("search --embeddings store.parquet --at=-4.1,52.4 --k 5",),
    "demo": ("demo --model runs/first/model --scene scene.yaml --runs runs",),
    "convert": ("convert checkpoint-999.pth --out model --statistics band_stats.json",),
    "export": (
        "export --model runs/first/model --format onnx --inputs elevation --out encoder.onnx",
        "export --model runs/map/model --format torch --quantize int8 --out map.pt2",
    ),
    "info": ("info runs/first/model", "info map.tif --json"),
    "completion": (
        "completion bash > ~/.local/share/bash-completion/completions/multimae-eo",
        "completion fish > ~/.config/fish/completions/multimae-eo.fish",
    ),
}


def examples(verb: str) -> str:
    """A verb's examples, a line each; empty where there are none."""
    lines = [f"  multimae-eo {line}" for line in _EXAMPLES.get(verb, ())]
    return "\n".join(["examples:", *lines]) if lines else ""
