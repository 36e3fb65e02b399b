"""From chips on disk to weights: samples per second, and how long the step waits for data.

Writes a chip store of noise (six modalities, 64 px), then trains on random 56 px windows of it,
with this package's loader and step, and turn by turn, for the ratio, the naive way: chips read one
by one and collated, the naive step (naive.py), no reading ahead.

    python benchmarks/end_to_end.py [--steps 20] [--batch 32] [--workers 1] [--precision fp32,bf16]

Results go to benchmarks/results/end_to_end_DEVICE.json.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import made
import measure
import naive
import numpy as np
import torch

from multimae_eo.loading.loader import make_loader
from multimae_eo.network.config import RuntimePolicy
from multimae_eo.network.multimae import MultiMAE
from multimae_eo.sample import Batch, collate, crop
from multimae_eo.sources.base import Source
from multimae_eo.store.writer import prepare
from multimae_eo.train.modules import PretrainModule
from multimae_eo.train.optim import build_adamw
from multimae_eo.train.recipe import Recipe

SIZE, CHIP, VISIBLE = 64, 56, 49


def our_batches(store: Source, options: argparse.Namespace) -> Iterator[Batch]:
    """This package's loader, epoch after epoch."""
    epoch = 0
    while True:
        yield from make_loader(
            store,
            np.arange(len(store)),
            batch_size=options.batch,
            chip=CHIP,
            train=True,
            epoch=epoch,
            workers=options.workers,
        )
        epoch += 1


def naive_batches(store: Source, options: argparse.Namespace) -> Iterator[Batch]:
    """Chips one by one, in this process."""
    rng = np.random.default_rng(0)
    while True:
        order = rng.permutation(len(store))
        for start in range(0, len(order) - options.batch + 1, options.batch):
            samples = []
            for index in order[start : start + options.batch].tolist():
                top, left = rng.integers(0, SIZE - CHIP + 1, 2) / SIZE
                samples.append(crop(store.read(index), top=top, left=left, size=CHIP / SIZE))
            yield collate(samples, store.modalities)


class Way:
    """A stream of batches and a step, with clocks on both."""

    def __init__(
        self,
        store: Source,
        model: MultiMAE,
        options: argparse.Namespace,
        *,
        ours: bool,
        mixed: bool,
    ):
        self.options, self.model, self.ours, self.mixed = options, model, ours, mixed
        self.batches = (our_batches if ours else naive_batches)(store, options)
        recipe = Recipe()
        recipe.masking.num_visible_tokens = VISIBLE
        self.module = PretrainModule(model, recipe, steps=1000, warmup=0, lr=1e-4)
        self.optimizer = build_adamw(model, recipe.optim, lr=1e-4, fused=ours)
        self.waited = self.spent = 0.0
        self.count = 0

    def step(self) -> None:
        """Take a batch and learn from it."""
        start = time.perf_counter()
        batch = next(self.batches)
        got = time.perf_counter()
        batch = batch.to(self.options.device)
        self.optimizer.zero_grad(set_to_none=True)
        half = torch.autocast(self.options.device, torch.bfloat16) if self.mixed else nullcontext()
        with half:
            total = self._ours(batch) if self.ours else self._naive(batch)
        total.backward()
        self.optimizer.step()
        measure.synchronise(self.options.device)
        self.waited += got - start
        self.spent += time.perf_counter() - start
        self.count += len(batch)

    def _ours(self, batch: Batch) -> torch.Tensor:
        return self.module._losses(batch, 0)[0].total

    def _naive(self, batch: Batch) -> torch.Tensor:
        patches = self.model.patchify(batch)
        states = naive.draw_states(
            patches.layout, batch=len(batch), num_visible_tokens=VISIBLE, seed=self.count
        )
        said = naive.predict(self.model, patches, states)
        by_task = naive.losses(self.model, patches, states, said)
        for value in by_task.values():
            value.item()
        return naive.total(self.model, by_task)

    def record(self) -> dict[str, float]:
        return {
            "samples_per_s": self.count / self.spent,
            "waiting_share": self.waited / self.spent,
            "step_s": self.spent / self.count * self.options.batch,
        }


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure; the record that is written."""
    about = measure.machine(options.device)
    source = made.MadeSource(made.six_modalities(), chips=options.chips, size=SIZE)
    with tempfile.TemporaryDirectory() as folder:
        store = prepare(source, Path(folder) / "store")
        ways = {}
        for name, precision in itertools.product(
            ("naive", "ours") if options.naive else ("ours",), options.precision.split(",")
        ):
            model = made.make_model(source, encoder=options.encoder, tasks=made.seven_tasks())
            if name == "ours" and options.compile:
                model.set_runtime(RuntimePolicy(compiled=True))
            model.to(options.device)
            ways[f"{name}, {precision}"] = Way(
                store, model, options, ours=name == "ours", mixed=precision == "bf16"
            )
        for turn in range(options.steps + options.warmup):
            measure.say(f"step {turn + 1} of {options.steps + options.warmup}")
            for way in ways.values():
                if turn == options.warmup:
                    way.waited = way.spent = 0.0
                    way.count = 0
                way.step()
        rows = {name: way.record() for name, way in ways.items()}
    return {
        "machine": about,
        "batch": options.batch,
        "encoder": options.encoder,
        "workers": options.workers,
        "compiled": options.compile,
        "rows": rows,
    }


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--chips", type=int, default=2048)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--encoder", default="base")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="fp32,bf16")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--naive", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--out", type=Path, default=measure.RESULTS)
    return parser.parse_args(given)


def main() -> None:
    options = arguments()
    record = run(options)
    path = measure.write_results(f"end_to_end_{options.device}", record, options.out)
    base = next(iter(record["rows"].values()))["samples_per_s"]
    for name, row in record["rows"].items():
        print(
            f"{name:<12} {row['samples_per_s']:10.1f} samples/s, "
            f"{row['waiting_share']:.1%} of the time waiting for data, "
            f"{row['samples_per_s'] / base:.2f} × the first"
        )
    print(path)


if __name__ == "__main__":
    main()
