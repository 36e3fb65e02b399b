"""A band that is missing: the training mean in its place, or the mean of the pixel's other bands.

For each band of every optical modality of several, that modality alone without the band: logistic
regressions on frozen features of labelled chips, as in ablation.py, beside those with all bands.

    python benchmarks/missing_bands.py --model RUN/model --data STORE

Results are recorded in docs/results.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from ablation import outcomes, signed

from multimae_eo.loading.loader import make_loader
from multimae_eo.loading.open_source import open_source
from multimae_eo.metrics.intervals import mean_score, paired_interval
from multimae_eo.model_folder.folder import load_model
from multimae_eo.network.missing_bands import bands_agree, filled
from multimae_eo.network.multimae import MultiMAE
from multimae_eo.sample import Batch

FILLS = ("0 (the training mean)", "mean of the others")


def features(
    model: MultiMAE, batches: Sequence[Batch], name: str, missing: int | None, fill: str
) -> np.ndarray:
    """Features of all layers, of one modality without a band: (N, D)."""
    modality, blocks = model.modalities[name], range(1, model.config.encoder.depth + 1)
    rows = []
    for batch in batches:
        patches = model.patchify(batch.select([name]))
        if missing is not None:
            values = patches.values[name]
            by_band = values.reshape(*values.shape[:2], modality.channels, -1)
            valid = torch.ones_like(by_band, dtype=torch.bool)
            valid[:, :, missing] = False
            changed = (
                torch.where(valid, by_band, 0.0)
                if fill == FILLS[0]
                else filled(by_band, valid, modality, dim=2)
            )
            patches = replace(patches, values={name: changed.flatten(2)})
        with torch.inference_mode():
            encoded = model.encode_patches(patches, batch.keys, [name], stages=list(blocks))
        rows.append(encoded.summary("all-layers-mean-std").numpy())
    return np.concatenate(rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--labels", type=int, nargs="+", default=[25, 125])
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args()
    model, source = load_model(options.model).eval(), open_source(options.data)
    window = max(c.size for c in model.config.inputs.values())
    batches = list(
        make_loader(source, np.arange(len(source)), batch_size=64, chip=window, train=False)
    )
    labels = np.concatenate([b.labels.numpy() for b in batches if b.labels is not None])
    splits = {s: source.split(s) for s in ("train", "val", "test")}
    for name, modality in model.modalities.items():
        if name not in source.modalities or not bands_agree(modality):
            continue
        for missing in (None, *range(modality.channels)):
            fills = FILLS if missing is not None else ("",)
            found = {f: features(model, batches, name, missing, f) for f in fills}
            what = "all bands" if missing is None else f"without {modality.band_names[missing]}"
            for count in options.labels:
                hits = {
                    f: outcomes(x, labels, splits, count, options.repeats)["test"]
                    for f, x in found.items()
                }
                line = f"{name}, {what}, {count} labels: "
                line += ", ".join(f"{f} {np.mean(v):.3f}".strip() for f, v in hits.items())
                if len(hits) > 1:
                    before, after = ([mean_score(hits[f])] for f in FILLS)
                    line += f", gain {signed(paired_interval(after, before, len(splits['test'])))}"
                print(line, flush=True)


if __name__ == "__main__":
    main()
