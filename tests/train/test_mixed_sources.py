"""Real chips that lack modalities train in one batch with complete ones."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import torch

from multimae_eo.errors import ContractError
from multimae_eo.loading.open_source import open_source
from multimae_eo.network.multimae import MultiMAE
from multimae_eo.network.tokens import TokenState
from multimae_eo.sample import collate, crop
from multimae_eo.train.objective import Objective
from multimae_eo.train.pretrain import pretrain
from multimae_eo.train.recipe import load_recipe
from tests.support.paths import DATA, ROOT

NAMES = ["rgb", "ired", "sired", "ebands", "radar", "elevation", "landcover", "ndvi"]

pytestmark = pytest.mark.skipif(
    not (DATA / "terramind_examples").is_dir(), reason="its data need rasterio"
)


@pytest.fixture(scope="module")
def source():
    examples = (ROOT / "examples" / n for n in ("terramind_examples.yaml", "sen1floods11.yaml"))
    return open_source(",".join(map(str, examples)))


@pytest.fixture(scope="module")
def run(source, tmp_path_factory):
    recipe = load_recipe(
        "many-sensors-small",
        [
            "--run.epochs=3",
            "--run.val_every=3",
            "--run.log_every=1",
            "--data.batch_size=8",
            "--data.chip=32",
            "--model.patch=8",
            "--masking.num_visible_tokens=12",
        ],
    )
    return pretrain(recipe, source, tmp_path_factory.mktemp("mixed") / "run")


@pytest.mark.slow
def test_both_train_together(run):
    """All eight training chips are one batch: three have all, two lack four, three have radar."""
    rows = list(csv.DictReader((run.model.parent / "metrics.csv").open()))
    losses = [float(r["train/loss"]) for r in rows if r.get("train/loss")]
    assert losses
    assert np.isfinite(losses).all()


@pytest.mark.slow
def test_absent_modalities_give_neither_tokens_nor_loss(run, source):
    model = MultiMAE.from_pretrained(run.model)
    keys = [
        "terramind-examples/38D_378R_2_3",
        "terramind-examples/433D_629L_3_1",
        "sen1floods11/Spain_7370579",
        "sen1floods11/Nigeria_812045",
    ]
    samples = [source.read(source.index_of(k), NAMES) for k in keys]
    samples = [crop(s, top=0.0, left=0.0, size=32 / s.pixels["radar"].shape[-1]) for s in samples]
    batch = collate(samples, source.modalities.select(NAMES))
    assert batch.present.sum(dim=1).tolist() == [8, 7, 5, 1]

    patches = model.patchify(batch)
    states = model_states(patches)
    losses = Objective(model.tasks)(model(patches, states))
    absent = states == TokenState.ABSENT
    for name, part in patches.layout.slices.items():
        has = batch.present[:, batch.modalities.index(name)]
        assert absent[~has, part].all()
        assert not absent[has, part].all()
        assert int(losses.samples[name]) == int(has.sum())

    complete = collate(samples[:2], source.modalities.select(NAMES))
    alone = Objective(model.tasks)(model(model.patchify(complete), states[:2]))
    for name in ("elevation", "landcover"):
        torch.testing.assert_close(losses.by_task[name], alone.by_task[name], rtol=1e-4, atol=1e-6)


def model_states(patches):
    """Twelve visible tokens per sample, evenly spaced over what it has."""
    observed = patches.observed
    states = torch.full((patches.batch_size, patches.layout.count), int(TokenState.MASKED))
    states = states.to(torch.int8)
    states[~observed] = int(TokenState.ABSENT)
    for row in range(len(states)):
        able = observed[row].nonzero()[:, 0]
        states[row, able[:: max(1, len(able) // 12)][:12]] = int(TokenState.VISIBLE)
    return states


@pytest.mark.slow
def test_a_chip_without_any_input_is_refused_by_name(run, source):
    model = MultiMAE.from_pretrained(run.model)
    sample = source.read(source.index_of("sen1floods11/Nigeria_812045"), ["radar"])
    cut = crop(sample, top=0.0, left=0.0, size=32 / 512)
    batch = collate([cut], source.modalities.select(NAMES))
    with pytest.raises(ContractError, match="Nigeria_812045"):
        model.reconstruct(batch, ["rgb"])
