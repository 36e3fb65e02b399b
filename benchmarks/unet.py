"""A U-Net trained from scratch on maps: what a model for one input configuration reaches.

The comparison for fine-tuned segmentation: the same chips, splits, normalisation, augmentation
(flips and rot90), loss (cross-entropy), choice of the best epoch on validation and metrics;
only the network is another. Prints a JSON record per seed, and means over seeds with intervals.

    python benchmarks/unet.py --data STORE --inputs optical,elevation [--seeds 3] [--epochs 60]

With ``--study``, the folder of a finished `multimae-eo study` of the same data and inputs, it is
trained on the study's label fractions with the same chips and seeds, and compared with the
fine-tuned model chip by chip:

    python benchmarks/unet.py --data STORE --inputs optical --study STUDY --fractions 5,10,25

Results are recorded in docs/results.md.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from multimae_eo.evaluation.fractions import Indices, Strata, label_fractions
from multimae_eo.evaluation.trials import FINETUNING, Trial, TrialFiles, merged, read_trial
from multimae_eo.loading.loader import make_loader
from multimae_eo.loading.open_source import open_source
from multimae_eo.metrics.intervals import hierarchical_interval, paired_interval
from multimae_eo.metrics.task_metrics import (
    Predictions,
    all_scores,
    class_iou,
    scores_of,
    values_of,
)
from multimae_eo.network.config import InputConfig, ModelConfig
from multimae_eo.network.normalize import Normalizer
from multimae_eo.network.tokens import unpatchify
from multimae_eo.sample import Batch
from multimae_eo.sources.base import Source
from multimae_eo.statistics import Statistics


class UNet(nn.Module):
    """Ronneberger et al. 2015 with batch norm: (B, C, H, W) → logits (B, classes, H, W)."""

    def __init__(self, channels: int, classes: int, width: int = 32, depth: int = 4) -> None:
        super().__init__()
        widths = [width * 2**i for i in range(depth)]
        self.down = nn.ModuleList(
            _double(a, b) for a, b in zip([channels, *widths], widths, strict=False)
        )
        self.up = nn.ModuleList(
            _double(a + b, b) for a, b in zip(widths[:0:-1], widths[-2::-1], strict=True)
        )
        self.out = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept: list[Tensor] = []
        for i, block in enumerate(self.down):
            x = block(x if i == 0 else F.max_pool2d(x, 2))
            kept.append(x)
        for block, beside in zip(self.up, kept[-2::-1], strict=True):
            larger = F.interpolate(x, beside.shape[-2:], mode="bilinear", align_corners=False)
            x = block(torch.cat([larger, beside], dim=1))
        found: Tensor = self.out(x)
        return found


def _double(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(
        *(
            layer
            for a in (before, after)
            for layer in (
                nn.Conv2d(a, after, 3, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(),
            )
        )
    )


class Planes:
    """Batches as normalised planes (B, C, H, W), 0 where nothing was observed."""

    def __init__(self, source: Source, inputs: Sequence[str], side: int) -> None:
        modalities = source.modalities.select(inputs)
        found = Statistics(modalities)
        for index in source.split("train"):
            found.update(source.read(int(index), list(inputs)))
        config = ModelConfig(inputs={n: InputConfig(size=side, patch=1) for n in inputs})
        self.normalizer = Normalizer(modalities, config, found)
        self.channels = sum(m.channels for m in modalities.values())

    def __call__(self, batch: Batch) -> Tensor:
        patches = self.normalizer(batch)
        planes = []
        for name, values in patches.values.items():
            seen = (
                torch.where(patches.valid[name], values, 0.0) if name in patches.valid else values
            )
            planes.append(unpatchify(seen, patches.layout.grids[name], 1))
        return torch.cat(planes, dim=1)


def predictions(
    net: UNet, planes: Planes, source: Source, split: str, names: list[str]
) -> Predictions:
    """The network's maps of a split."""
    net.eval()
    keys: list[str] = []
    truth, predicted, sure = [], [], []
    with torch.no_grad():
        for batch in make_loader(source, source.split(split), batch_size=16, modalities=names):
            best = net(planes(batch)).softmax(dim=1).max(dim=1)
            assert batch.labels is not None
            keys += batch.keys
            truth.append(batch.labels.numpy())
            predicted.append(best.indices.numpy().astype(np.int16))
            sure.append(best.values.numpy())
    return Predictions(
        kind="segmentation",
        keys=tuple(keys),
        truth=np.concatenate(truth),
        predicted=np.concatenate(predicted),
        class_names=tuple(source.class_names),
        probability=np.concatenate(sure),
    )


def train(
    source: Source, names: list[str], options: Any, seed: int, chips: Indices | None = None
) -> tuple[Predictions, dict[str, float]]:
    """Train one network; the best validation epoch's predictions of the test split.

    ``chips``: those to train on (default: the training split).
    """
    chips = source.split("train") if chips is None else chips
    torch.manual_seed(seed)
    side = max(source.read(0).pixels[n].shape[-1] for n in names)
    planes = Planes(source, names, side)
    net = UNet(planes.channels, len(source.class_names), options.width)
    if seed == 0:
        with FlopCounterMode(display=False) as counter:
            net.eval()(torch.zeros(1, planes.channels, side, side))
        size = sum(p.numel() for p in net.parameters())
        flops = counter.get_total_flops() / 1e9
        print(f"U-Net: {size / 1e6:.2f} M parameters, {flops:.2f} GFLOP a chip")
    optim = torch.optim.AdamW(net.parameters(), lr=options.lr, weight_decay=0.05)
    per_epoch = -(-len(chips) // options.batch)
    epochs = max(options.epochs, -(-options.steps // per_epoch))
    every = max(1, epochs // 12)
    steps = epochs * per_epoch
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optim, options.lr, total_steps=steps + 1, pct_start=0.1
    )
    best, kept = -1.0, net.state_dict()
    start = time.perf_counter()
    for epoch in range(epochs):
        net.train()
        loader = make_loader(
            source,
            chips,
            batch_size=options.batch,
            modalities=names,
            train=True,
            seed=seed,
            epoch=epoch,
            rot90=True,
            chip=options.chip,
        )
        for batch in loader:
            assert batch.labels is not None
            with torch.autocast("cpu", torch.bfloat16, enabled=options.bf16):
                out = net(planes(batch))
            loss = F.cross_entropy(out.float(), batch.labels.long(), ignore_index=-1)
            optim.zero_grad()
            loss.backward()
            optim.step()
            schedule.step()
        if epoch % every == every - 1 or epoch == epochs - 1:
            value = values_of(predictions(net, planes, source, "val", names))["mIoU"]
            if value > best:
                best, kept = value, {k: v.clone() for k, v in net.state_dict().items()}
    seconds = time.perf_counter() - start
    net.load_state_dict(kept)
    cost = {"seconds": seconds, "validation mIoU": best}
    return predictions(net, planes, source, "test", names), cost


def compare(source: Source, names: list[str], options: Any) -> None:
    """Train on the chips of a study's fractions; print differences from its trials."""
    finished = [
        trial
        for path in sorted((options.study / "cells").glob("*.npz"))
        if (trial := read_trial(path)).method == FINETUNING and trial.inputs == ",".join(names)
    ]
    kept = TrialFiles(options.study / "unet")
    labels = {int(i): source.read(int(i), names).label for i in source.split("train")}
    labelled = np.array([i for i, label in labels.items() if label is not None])
    strata = Strata.of([x for x in labels.values() if x is not None], len(source.class_names))
    for percent in options.fractions:
        trials: list[Trial] = []
        for seed in range(options.seeds):
            cell = (",".join(names), "U-Net", f"{percent:g}", str(seed))
            known = kept.get(*cell)
            if known is None:
                chips = labelled[label_fractions(strata, [percent], seed=seed)[percent]]
                found, cost = train(source, names, options, seed, chips)
                known = Trial(
                    inputs=",".join(names), features="U-Net", method="U-Net", percent=percent,
                    train_chips=len(chips), chosen=(0.0,), predictions=(found,),
                    seconds=cost["seconds"], validation=(cost["validation mIoU"],),
                )  # fmt: skip
                kept.put(known, *cell)
            trials.append(known)
        unet = merged(trials)
        print(f"{percent:g} %, {unet.train_chips} chips, U-Net: {scores(unet)}", flush=True)
        for features in dict.fromkeys(t.features for t in finished):
            ours = merged([t for t in finished if t.features == features and t.percent == percent])
            difference = paired_interval(
                [scores_of(p)["mIoU"] for p in ours.predictions],
                [scores_of(p)["mIoU"] for p in unet.predictions],
                len(unet.predictions[0]),
            )
            print(f"  {features}: {scores(ours)}; minus U-Net {difference}", flush=True)


def scores(trial: Trial) -> str:
    """A trial's validation and test mIoU."""
    tables = [scores_of(p)["mIoU"] for p in trial.predictions]
    value = hierarchical_interval(tables, len(trial.predictions[0]))
    return f"validation {np.mean(trial.validation):.3f}, test {value}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", required=True)
    parser.add_argument("--inputs", required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--chip", type=int, default=None)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--study", type=Path, help="compare with its fine-tuned model")
    parser.add_argument("--fractions", type=lambda text: [float(p) for p in text.split(",")])
    parser.add_argument("--steps", type=int, default=0, help="at least so many, however few chips")
    options = parser.parse_args()
    source, names = open_source(options.data), options.inputs.split(",")
    if options.study is not None:
        compare(source, names, options)
        return
    told = []
    for seed in range(options.seeds):
        found, cost = train(source, names, options, seed)
        told.append(found)
        ones = np.ones((1, len(found)))
        scores = {n: float(s(ones)[0]) for n, s in class_iou(found).items()}
        record = {"seed": seed, **cost, **values_of(found), "IoU": scores}
        print(json.dumps(record), flush=True)
    tables = [all_scores(t) for t in told]
    for name in tables[0]:
        interval = hierarchical_interval([t[name] for t in tables], len(told[0]))
        print(f"{name}\t{interval}")


if __name__ == "__main__":
    main()
