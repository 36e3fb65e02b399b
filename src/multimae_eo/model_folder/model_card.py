"""The model card: the README of a model folder, generated from the model itself."""

from __future__ import annotations

import numpy as np

from multimae_eo.modality import Modality
from multimae_eo.network.multimae import MultiMAE
from multimae_eo.network.predictor import Predictor


def model_card(module: MultiMAE | Predictor, digest: str, text: str = "") -> str:
    """A README with the sensor contract, how to load the model, its limits, and ``text``.

    ``digest``: the folder's ``model_hash``. ``text``: recipe and results, in Markdown.
    """
    model = module.encoder if isinstance(module, Predictor) else module
    shape = model.config.encoder
    lines = [
        "---",
        "library_name: multimae-eo",
        "tags: [earth-observation, remote-sensing, masked-autoencoder, multi-modal]",
        "---",
        "",
        "# A multimae-eo model",
        "",
        f"Encoder {shape.width} wide, {shape.depth} blocks; "
        f"{sum(p.numel() for p in module.parameters()):,} parameters. {_purpose(module)}",
        "",
        f"Model hash: `{digest}` (also in the tags of maps and the column `model_hash` of "
        "embeddings made with it).",
        "",
        *_contract(model),
        *_usage(module),
        *_limits(model),
        *([text.strip(), ""] if text else []),
    ]
    return "\n".join(lines)


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
