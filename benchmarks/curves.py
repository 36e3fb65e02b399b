"""Loss curves of this package's step and of the naive one, over the same chips and masks.

Trains twice from the same weights on the synthetic world (or any chip source), once with each; and
once more with ours from another seed of masks, to show what noise is. Curves that part by less
than that seed's say that speed changed nothing.

    python benchmarks/curves.py [--steps 200] [--data SOURCE] [--encoder nano]

Results go to benchmarks/results/curves.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import measure
import naive
import numpy as np
import torch

from multimae_eo.loading.loader import make_loader
from multimae_eo.loading.open_source import open_source
from multimae_eo.network.masking import sample_states
from multimae_eo.network.multimae import MultiMAE
from multimae_eo.network.sample_rng import PerSample
from multimae_eo.sample import Batch
from multimae_eo.sources.base import Source
from multimae_eo.sources.synthetic import SyntheticSource
from multimae_eo.train.data import chip_sizes, model_config
from multimae_eo.train.objective import Objective
from multimae_eo.train.optim import build_adamw
from multimae_eo.train.recipe import DataRecipe, ModelRecipe, OptimRecipe

PATCH = 8


def batches(source: Source, options: argparse.Namespace) -> Iterator[Batch]:
    """Complete samples only: the naive step knows no others."""
    epoch = 0
    while True:
        yield from make_loader(
            source,
            np.arange(len(source)),
            batch_size=options.batch,
            chip=options.chip,
            train=True,
            epoch=epoch,
        )
        epoch += 1


def make_model(source: Source, options: argparse.Namespace) -> MultiMAE:
    modalities = source.modalities
    sizes = chip_sizes(source, modalities, np.arange(len(source)))
    recipe = ModelRecipe(encoder=options.encoder, patch=PATCH)
    config = model_config(recipe, DataRecipe(chip=options.chip), modalities, sizes)
    from multimae_eo.modality import Task

    tasks = [Task(name=n, modality=n, loss=m.default_loss) for n, m in modalities.items()]
    torch.manual_seed(0)
    return MultiMAE(modalities, tasks, config, source.statistics(range(min(64, len(source)))))


def curve(source: Source, options: argparse.Namespace, *, ours: bool, seed: int) -> list[float]:
    """The loss of every step."""
    model = make_model(source, options)
    objective = Objective(model.tasks)
    optimizer = build_adamw(model, OptimRecipe(), lr=options.lr, fused=ours)
    kept = []
    for step, batch in zip(range(options.steps), batches(source, options), strict=False):
        patches = model.patchify(batch)
        if patches.observed is not None:
            raise SystemExit("choose data without missing pixels or modalities")
        states = sample_states(
            patches.layout,
            None,
            batch_size=len(batch),
            num_visible_tokens=options.visible,
            generator=PerSample(batch.keys, seed, step),
        )
        optimizer.zero_grad(set_to_none=True)
        if ours:
            total = objective(model(patches, states, num_visible_tokens=options.visible)).total
        else:
            said = naive.predict(model, patches, states)
            total = naive.total(model, naive.losses(model, patches, states, said))
        total.backward()
        optimizer.step()
        kept.append(float(total.detach()))
    return kept


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Train; the record that is written."""
    source = (
        SyntheticSource(chips=options.chips, size=options.chip, seed=0)
        if options.data is None
        else open_source(options.data)
    )
    curves = {
        "ours": curve(source, options, ours=True, seed=0),
        "naive": curve(source, options, ours=False, seed=0),
        "ours, other masks": curve(source, options, ours=True, seed=1),
    }
    ours, plain, other = (np.array(c) for c in curves.values())
    return {
        "machine": measure.machine("cpu"),
        "data": source.name,
        "encoder": options.encoder,
        "batch": options.batch,
        "steps": options.steps,
        "largest_relative_difference": float(np.abs(ours / plain - 1).max()),
        "of_other_masks": float(np.abs(ours / other - 1).max()),
        "curves": curves,
    }


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--data", default=None, help="as the command line's SOURCE")
    parser.add_argument("--chips", type=int, default=256)
    parser.add_argument("--chip", type=int, default=32)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--visible", type=int, default=20)
    parser.add_argument("--encoder", default="nano")
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--out", type=Path, default=measure.RESULTS)
    return parser.parse_args(given)


def main() -> None:
    options = arguments()
    record = run(options)
    path = measure.write_results("curves", record, options.out)
    print(
        f"{options.steps} steps: ours and naive differ by at most "
        f"{record['largest_relative_difference']:.1e} of the loss, other masks by "
        f"{record['of_other_masks']:.1e}; last loss {record['curves']['ours'][-1]:.4f}"
    )
    print(path)


if __name__ == "__main__":
    main()
