"""Facts about a folder or file: a chip store, a model, a run; see ``info.files``."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from multimae_eo.errors import ConfigError, FormatError
from multimae_eo.files import METRICS_BYTES, read_text, reading
from multimae_eo.info.files import describe_file
from multimae_eo.model_folder.folder import is_predictor, model_hash
from multimae_eo.network.multimae import MultiMAE
from multimae_eo.network.predictor import Predictor
from multimae_eo.sources.yaml_section import load_yaml
from multimae_eo.store.reader import ChipStore

_METRICS_REMEDY = "delete it, or restore it"


def describe(path: Path, *, verify: bool = False) -> dict[str, Any]:
    """Facts about a store, model or run folder, or a file, ready for JSON.

    ``verify``: also check every checksum of a store, or of a run's checkpoints. Raises ConfigError
    when it is none of these, FormatError when a store's files were changed, CheckpointError for
    damaged checkpoints.
    """
    if path.is_file():
        return describe_file(path)
    if (path / "store.json").is_file() or (path / "plan.json").is_file():
        return _store(path, verify)
    if (path / "config.json").is_file() and (path / "modalities.json").is_file():
        return _model(path)
    if (path / "recipe.yaml").is_file():
        return _run(path, verify)
    if not path.exists():
        raise ConfigError(f"{path}: no such file or folder")
    raise ConfigError(
        f"{path}: neither a chip store (store.json), a model folder (config.json), nor a run "
        "folder (recipe.yaml)"
    )


def _store(path: Path, verify: bool) -> dict[str, object]:

    store = ChipStore(path)
    record = {"what": "chip store", **store.info()}
    if verify:
        damaged = store.verify()
        if damaged:
            raise FormatError(f"{path}: changed since written: {', '.join(damaged[:5])}")
        record["checksums"] = "all as written"
    return record


def _model(path: Path) -> dict[str, object]:
    from multimae_eo.network.multimae import MultiMAE

    if is_predictor(path):
        predictor = Predictor.from_pretrained(path)
        return {
            **_described(predictor.encoder, model_hash(path)),
            "what": "fine-tuned model",
            "head": predictor.config.name,
            "task": f"{predictor.target.task} ({predictor.target.kind})",
            "classes": list(predictor.target.classes),
        }
    model = MultiMAE.from_pretrained(path)
    tasks = {t.name: t.loss for t in model.tasks}
    return {**_described(model, model_hash(path)), "tasks": tasks}


def _described(model: MultiMAE, digest: str) -> dict[str, object]:
    encoder = model.config.encoder
    return {
        "what": "model",
        "hash": digest,
        "parameters": sum(p.numel() for p in model.parameters()),
        "encoder": f"{encoder.width} wide, {encoder.depth} blocks, {encoder.heads} heads",
        "chip": model.config.sizes,
        "modalities": {n: ", ".join(m.band_names) for n, m in model.modalities.items()},
        "statistics": "none: refuses data" if model.statistics is None else "carried",
    }


def _run(path: Path, verify: bool) -> dict[str, object]:
    file, metrics = path / "recipe.yaml", path / "metrics.csv"
    recipe = load_yaml(file)
    with reading(file, FormatError, "restore what pretrain or finetune wrote"):
        record: dict[str, object] = {
            "what": "run",
            "data": recipe["source"]["spec"] or recipe["source"]["name"],
            "chips": recipe["source"]["chips"],
            "epochs": recipe["run"]["epochs"],
            "finished": (path / "model" / "config.json").is_file(),
        }
    if metrics.exists():
        text = read_text(metrics, FormatError, limit=METRICS_BYTES, remedy=_METRICS_REMEDY)
        with reading(metrics, FormatError, _METRICS_REMEDY):
            record |= _progress(list(csv.DictReader(text.splitlines())))
    if verify:
        checkpoints = sorted((path / "checkpoints").glob("*.ckpt"))
        from multimae_eo.train.run import read_checkpoint  # Lightning

        steps = {p.name: read_checkpoint(p, device="meta")["global_step"] for p in checkpoints}
        record["checkpoints"] = {name: f"whole, step {step}" for name, step in steps.items()}
    return record


def _progress(rows: list[dict[str, str]]) -> dict[str, object]:
    """The last step of a run's metrics, and its last validation."""
    record: dict[str, object] = {"step": int(rows[-1]["step"]) if rows else 0}
    validated = [r for r in rows if r.get("val/loss")]
    if validated:
        record["validation"] = {
            k.removeprefix("val/"): float(v)
            for k, v in validated[-1].items()
            if k.startswith("val/") and v
        }
    return record
