"""The model card: the README of a model folder, generated from the model itself.

Its metadata are those of the Hugging Face hub: licence, task, data and measured scores.
"""

from __future__ import annotations

import math
import re

import numpy as np
import yaml

from multimae_eo.modality import Modality
from multimae_eo.network.card_facts import CardFacts, Score
from multimae_eo.network.multimae import MultiMAE
from multimae_eo.network.predictor import Predictor
from multimae_eo.network.target import LabelKind

_NAME = "multimae-eo"
_TAGS = ("earth-observation", "remote-sensing", "geospatial", "masked-autoencoder", "multi-modal")
_PIPELINES: dict[LabelKind, str] = {
    "class": "image-classification",
    "multilabel": "image-classification",
    "map": "image-segmentation",
    "value map": "image-to-image",
    "value": "other",
}
"""The hub's tasks that labels of a kind are closest to."""
_FEATURES = "image-feature-extraction"
_UNDECLARED = "unknown"


def model_card(
    module: MultiMAE | Predictor, digest: str, text: str = "", facts: CardFacts | None = None
) -> str:
    """A README with the sensor contract, how to load the model, its limits, and ``text``.

    ``digest``: the folder's ``model_hash``. ``text``: recipe and results, in Markdown. ``facts``:
    licence, training data and scores, for the hub's metadata in front.
    """
    model = module.encoder if isinstance(module, Predictor) else module
    facts = facts or CardFacts()
    shape = model.config.encoder
    front = yaml.safe_dump(hub_metadata(module, facts), sort_keys=False, allow_unicode=True)
    lines = [
        "---",
        front.rstrip(),
        "---",
        "",
        "# A multimae-eo model",
        "",
        f"Encoder {shape.width} wide, {shape.depth} blocks; "
        f"{sum(p.numel() for p in module.parameters()):,} parameters. {_purpose(module)}",
        "",
        f"Model hash: `{digest}` (also in the tags of maps and the column `model_hash` of "
        "embeddings made with it). `stac.json` describes the model as a STAC item (MLM extension).",
        "",
        f"Licence of the weights: {facts.license or 'not declared'}.",
        "",
        *_contract(model),
        *_usage(module),
        *_limits(model),
        *([text.strip(), ""] if text else []),
    ]
    return "\n".join(lines)


def hub_metadata(module: MultiMAE | Predictor, facts: CardFacts) -> dict[str, object]:
    """The card's metadata as the Hugging Face hub reads them."""
    model = module.encoder if isinstance(module, Predictor) else module
    pipeline = _PIPELINES[module.target.kind] if isinstance(module, Predictor) else _FEATURES
    sensors = dict.fromkeys(m.sensor for m in model.modalities.values() if m.sensor)
    metadata: dict[str, object] = {
        "library_name": _NAME,
        "license": facts.license.lower() or _UNDECLARED,
        "pipeline_tag": pipeline,
        "tags": [*_TAGS, *sensors],
    }
    if facts.datasets:
        metadata["datasets"] = [_hub_name(name) for name in facts.datasets]
    scores = [s for s in facts.scores if math.isfinite(s.value)]
    if scores:
        results = [
            _result(pipeline, name, split, [s for s in scores if (s.dataset, s.split) == key])
            for key in dict.fromkeys((s.dataset, s.split) for s in scores)
            for name, split in [key]
        ]
        metadata["model-index"] = [{"name": _NAME, "results": results}]
    return metadata


def _result(pipeline: str, name: str, split: str, scores: list[Score]) -> dict[str, object]:
    return {
        "task": {"type": pipeline},
        "dataset": {"name": name, "type": _hub_name(name), "split": split},
        "metrics": [{"type": s.metric, "name": s.metric, "value": s.value} for s in scores],
    }


def _hub_name(name: str) -> str:
    """A data set's name in the characters of the hub's."""
    return re.sub(r"[^0-9A-Za-z._/-]+", "-", name).strip("-./") or _UNDECLARED


def _purpose(module: MultiMAE | Predictor) -> str:
    if not isinstance(module, Predictor):
        return f"Tasks: {', '.join(f'{t.name} ({t.loss})' for t in module.tasks) or 'none'}."
    target = module.target
    what = ", ".join(target.classes) or f"a value (mean {target.mean:.4g}, std {target.std:.4g})"
    return f"Head: {module.config.name}; predicts {what}."


def _contract(model: MultiMAE) -> list[str]:
    lines = [
        "## Sensor contract",
        "",
        "| modality | bands | kind | unit | GSD | product levels | nodata | chip |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for m in model.modalities.values():
        gsd = "–" if m.gsd_m is None else f"{m.gsd_m:g} m"
        nodata = ", ".join(f"{v:g}" for v in m.nodata) or "–"
        lines.append(
            f"| {m.name} | {', '.join(m.band_names)} | {m.kind} | {m.unit or '–'} | {gsd} | "
            f"{', '.join(m.levels) or '–'} | {nodata} | {model.config.inputs[m.name].size} px |"
        )
    lines += [
        "",
        "Inputs are given as raw pixels with their scale and offset; the model normalises them.",
        "",
    ]
    if model.statistics is not None:
        lines += [
            "| band | wavelength | level | mean | standard deviation |",
            "|---|---|---|---|---|",
        ]
        for modality in model.modalities.values():
            lines += _statistics(model, modality)
        lines.append("")
    for m in model.modalities.values():
        if m.categorical:
            named = ", ".join(f"{c.id} {c.name}" for c in m.classes)
            lines += [f"Classes of {m.name}: {named}.", ""]
    return lines


def _statistics(model: MultiMAE, modality: Modality) -> list[str]:
    if modality.categorical or model.statistics is None:
        return []
    rows = []
    for level in modality.levels or ("",):
        moments = model.statistics.moments[modality.name][level]
        for i, band in enumerate(modality.bands):
            if np.asarray(moments.count)[i] > 0:
                wave = "–" if band.wavelength_um is None else f"{band.wavelength_um:g} µm"
                rows.append(
                    f"| {modality.name}.{band.name} | {wave} | {level or '–'} | "
                    f"{moments.mean[i]:.5g} | {moments.std[i]:.5g} |"
                )
    return rows


def _usage(module: MultiMAE | Predictor) -> list[str]:
    if isinstance(module, Predictor):
        kind, use = (
            "Predictor",
            [
                "outputs = model.predict(source.batch(source.keys[:4]))",
                "probabilities = model.predictions(outputs)",
            ],
        )
    else:
        kind, use = "MultiMAE", ["features = model.encode(source.batch(source.keys[:4]))"]
    return [
        "## Use",
        "",
        "```python",
        f"from multimae_eo import {kind}, open_source",
        "",
        f'model = {kind}.from_pretrained("path/to/this/folder")',
        'source = open_source("dataset.yaml")',
        *use,
        "```",
        "",
    ]


def _limits(model: MultiMAE) -> list[str]:
    sizes = ", ".join(f"{s} px of {n}" for n, s in model.config.sizes.items())
    lines = [
        "## Limits",
        "",
        f"- Trained on chips of {sizes}; larger ones are taken in windows of that size.",
        "- Data whose bands, unit or product level differ from the contract are refused; "
        "`multimae-eo finetune` adapts the model to other bands.",
        "- It has learnt the locations, seasons and sensors of its training data, and no time.",
    ]
    if model.statistics is None:
        lines.append("- It carries no statistics and refuses data.")
    return [*lines, ""]
