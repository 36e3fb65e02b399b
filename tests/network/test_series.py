"""Series in the network: tokens know their dates, and a chip does not depend on its batch."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from multimae_eo import MultiMAE, Predictor
from multimae_eo.errors import ConfigError, ContractError
from multimae_eo.inference.backbone import physical_tensors
from multimae_eo.modality import Task
from multimae_eo.network.config import (
    DatesKind,
    DecoderConfig,
    EncoderConfig,
    HeadConfig,
    InputConfig,
    ModelConfig,
    RuntimePolicy,
    SeriesMasking,
)
from multimae_eo.network.date_codes import YEAR, date_codes, first_dates
from multimae_eo.network.date_fusion import DateFusion
from multimae_eo.network.embedding import PatchEmbedding
from multimae_eo.network.masking import sample_decoded, sample_states
from multimae_eo.network.sample_rng import PerSample
from multimae_eo.network.target import Target
from multimae_eo.network.tokens import TokenLayout, TokenState
from multimae_eo.sample import Sample, collate
from multimae_eo.sources.phenology import SeriesOptions, SyntheticSeries
from multimae_eo.train.objective import Objective
from multimae_eo.train.supervised import Hiding, Mixing

SOURCE = SyntheticSeries(6, 8, options=SeriesOptions(dates=4, clouds=0.4, radar=True))
CLASS = Target(kind="class", classes=("a", "b", "c"), counts=(1.0, 1.0, 1.0), total=3.0)
MAP = Target(kind="map", classes=("a", "b", "c"), counts=(1.0, 1.0, 1.0), total=3.0)
KEYS = [f"chip-{i}" for i in range(6)]


@pytest.fixture(scope="module")
def model() -> MultiMAE:
    torch.manual_seed(0)
    config = ModelConfig(
        encoder=EncoderConfig(width=32, depth=2, heads=2),
        decoder=DecoderConfig(width=16, depth=1, heads=2),
        inputs={n: InputConfig(size=8, patch=4) for n in SOURCE.modalities},
        modality_embeddings=True,
    )
    tasks = [Task(name=n, modality=n) for n in SOURCE.modalities]
    return MultiMAE(SOURCE.modalities, tasks, config, SOURCE.statistics()).eval()


@pytest.mark.parametrize("name", ["s2", "elevation"])
def test_a_pixel_weighs_as_much_as_its_date_at_the_start(name):
    """As a token of few values it would be drowned by codes that are never learnt."""
    torch.manual_seed(0)
    modality = SOURCE.modalities[name]
    embed = PatchEmbedding(modality, InputConfig(size=1, patch=1), 256)
    with torch.no_grad():
        vectors = embed(torch.randn(2000, modality.channels))
    assert float(vectors.var()) == pytest.approx(0.5, rel=0.25)


def test_patches_of_more_pixels_start_by_xaviers_rule():
    modality = SOURCE.modalities["s2"]
    torch.manual_seed(0)
    weight = PatchEmbedding(modality, InputConfig(size=8, patch=4), 32).projection.weight.detach()
    assert float(weight.abs().max()) <= math.sqrt(6 / (64 + 32))
    assert float(weight.var()) == pytest.approx(2 / (64 + 32), rel=0.1)


def some_dates(index: int, count: int) -> Sample:
    sample = SOURCE.read(index)
    keep = {n: np.arange(len(d)) < count for n, d in sample.dates.items()}
    return sample.at_dates(keep)


def as_images(index: int) -> Sample:
    return SOURCE.read(index).clearest()


def batch_of(*samples: Sample):
    return collate(list(samples), SOURCE.modalities)


# Codes of dates ------------------------------------------------------------------------------


def codes_of(model: MultiMAE, sample: Sample, width: int = 64) -> torch.Tensor:
    return date_codes(model.patchify(batch_of(sample)), width)["s2"][0]


def test_codes_are_nearer_the_nearer_the_dates(model):
    sample = SOURCE.read(0)
    days = 18_000 + np.array([0.0, 3.0, 20.0, 90.0])
    code = codes_of(model, replace(sample, dates={**sample.dates, "s2": days}))
    assert code.dtype == torch.float32
    product = (code[0] * code).sum(dim=1)
    assert product[0] > product[1] > product[2] > product[3]


def test_the_half_of_the_year_repeats_and_that_of_the_offset_does_not(model):
    sample = SOURCE.read(0)
    days = 18_000 + np.array([0.0, 1.0, YEAR, YEAR + 1.0])
    code = codes_of(model, replace(sample, dates={**sample.dates, "s2": days}))
    season, since = code[:, :32], code[:, 32:]
    assert torch.allclose(season[:2], season[2:], atol=0.05)
    assert not torch.allclose(since[0], since[2], atol=0.5)


def test_the_first_date_is_the_first_that_is_seen(model):
    sample = SOURCE.read(0)
    ok = np.ones((4, 1, 8, 8), bool)
    ok[0] = False
    cloudy = batch_of(replace(sample, valid={"s2": ok}).select(["s2"]))
    gone = sample.at_dates({"s2": np.array([False, True, True, True])}).select(["s2"])
    first = first_dates(model.patchify(cloudy))
    assert first[0] == first_dates(model.patchify(batch_of(gone)))[0]
    nothing = replace(sample, valid={"s2": np.zeros((4, 1, 8, 8), bool)}).select(["s2"])
    assert first_dates(model.patchify(batch_of(nothing)))[0] == np.float32(sample.dates["s2"][0])


# Chips in batches ----------------------------------------------------------------------------


def test_a_chip_is_encoded_alike_alone_and_beside_longer_series(model):
    short = some_dates(1, 2)
    alone = model.encode(batch_of(short)).pooled
    beside = model.encode(batch_of(SOURCE.read(0), short, as_images(2))).pooled
    assert torch.allclose(alone[0], beside[1], atol=1e-5)


def test_images_are_encoded_alike_in_a_batch_with_series(model):
    alone = model.encode(batch_of(as_images(2)))
    beside = model.encode(batch_of(SOURCE.read(0), as_images(2)))
    assert not model.patchify(batch_of(as_images(2))).dates
    assert torch.allclose(alone.pooled[0], beside.pooled[1], atol=1e-5)


def test_a_cloudy_date_is_as_one_that_is_missing(model):
    sample = SOURCE.read(3).select(["s2"])
    ok = sample.validity("s2").copy()
    ok[2] = False
    cloudy = replace(sample, valid={"s2": ok})
    missing = sample.at_dates({"s2": np.array([True, True, False, True])})
    a, b = (model.encode(batch_of(s)).pooled for s in (cloudy, missing))
    assert torch.allclose(a, b, atol=1e-5)


def test_dates_matter_and_so_does_their_distance(model):
    sample = SOURCE.read(0)
    base = model.encode(batch_of(sample)).pooled
    for days in (sample.dates["s2"] + 60, sample.dates["s2"][0] + 2 * np.arange(4.0)):
        moved = replace(sample, dates={**sample.dates, "s2": days})
        assert not torch.allclose(model.encode(batch_of(moved)).pooled, base, atol=1e-4)


def test_decoders_together_and_apart_agree_on_series(model):
    patches = model.patchify(batch_of(SOURCE.read(0), some_dates(1, 3)))
    states = sample_states(
        patches.layout, patches.observed, batch_size=2, num_visible_tokens=9,
        generator=torch.Generator().manual_seed(1),
    )  # fmt: skip
    outputs = []
    for together in (False, True):
        model.set_runtime(RuntimePolicy(group_decoders=together))
        outputs.append(model(patches, states).predictions)
    model.set_runtime(RuntimePolicy())
    for name, predicted in outputs[0].items():
        assert (
            predicted.shape[1]
            == patches.layout.slices[name].stop - patches.layout.slices[name].start
        )
        assert torch.allclose(predicted, outputs[1][name], atol=1e-5)


def test_every_weight_learns_from_series(model):
    patches = model.patchify(batch_of(*(SOURCE.read(i) for i in range(4))))
    states = sample_states(
        patches.layout, patches.observed, batch_size=4, num_visible_tokens=12, series="mixed",
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    model.zero_grad()
    losses = Objective(model.tasks)(model(patches, states))
    losses.total.backward()
    silent = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    assert silent == []
    model.zero_grad()


def test_reconstruction_gives_every_date_in_physical_units(model):
    batch = batch_of(SOURCE.read(0), some_dates(1, 3))
    result = model.reconstruct(batch, samples=2)
    assert result["s2"].mean.shape == (2, 4, 4, 8, 8)
    assert result["s2"].std.shape == (2, 4, 4, 8, 8)
    assert result["elevation"].mean.shape == (2, 1, 8, 8)
    assert result["s2"].mean.isfinite().all()


def test_larger_chips_are_seen_in_windows(model):
    larger = SyntheticSeries(3, 16, options=SeriesOptions(dates=3))
    batch = collate([larger.read(i) for i in range(2)], larger.modalities)
    assert model.reconstruct(batch, samples=2)["s2"].mean.shape == (2, 3, 4, 16, 16)


def test_a_backbone_of_tensors_refuses_series():
    with pytest.raises(ContractError, match="several dates"):
        physical_tensors(batch_of(SOURCE.read(0)))


# Masks ---------------------------------------------------------------------------------------

LAYOUT = TokenLayout({"a": (2, 2), "b": (1, 3), "c": (2, 2)}, {"a": 3, "b": 4})


def test_tokens_are_laid_out_date_by_date():
    assert LAYOUT.count == 12 + 12 + 4
    assert LAYOUT.slices["b"] == slice(12, 24)
    assert LAYOUT.acquisition_of.tolist() == [
        *np.repeat([0, 1, 2], 4), *np.repeat([3, 4, 5, 6], 3), *[7] * 4
    ]  # fmt: skip
    assert LAYOUT.location_of.tolist() == [
        *[0, 1, 2, 3] * 3, *[4, 5, 6] * 4, 7, 8, 9, 10
    ]  # fmt: skip


def shown(series: SeriesMasking, budget: int, size: int = 64) -> torch.Tensor:
    keys = [f"chip-{i}" for i in range(size)]
    states = sample_states(
        LAYOUT, None, batch_size=size, num_visible_tokens=budget, alpha=1.0,
        series=series, generator=PerSample(keys, 3),
    )  # fmt: skip
    visible = states == TokenState.VISIBLE
    assert (visible.sum(dim=1) == budget).all()
    return visible


@pytest.mark.parametrize(("series", "of"), [("dates", "acquisition_of"), ("tubes", "location_of")])
def test_dates_and_tubes_are_masked_as_far_as_the_share_goes(series, of):
    visible = shown(series, 10)[:, :24]
    groups = getattr(LAYOUT, of)[:24]
    random = shown("random", 10)[:, :24]

    def divided(mask: torch.Tensor) -> float:
        """The mean number of groups of a chip that are visible in part."""
        parts = [mask[:, groups == g] for g in range(int(groups.max()) + 1)]
        return float(sum((p.any(dim=1) & ~p.all(dim=1)).float().mean() for p in parts))

    # Each of the two series, and the correction to the exact budget, divides at most one group.
    assert divided(visible) < 2.1
    assert divided(random) > 3


def test_mixed_masks_are_all_three_and_random_ones_as_before():
    mixed = shown("mixed", 10)
    for series in ("random", "dates", "tubes"):
        assert not torch.equal(mixed, shown(series, 10))
    images = TokenLayout({"a": (2, 2), "b": (2, 2)})
    masks = [
        sample_states(images, None, batch_size=8, num_visible_tokens=3, series=s,
                      generator=torch.Generator().manual_seed(0))
        for s in ("random", "dates")
    ]  # fmt: skip
    assert torch.equal(*masks)


def test_a_share_of_every_date_is_decoded_as_alone(model):
    patches = model.patchify(batch_of(SOURCE.read(0), some_dates(1, 3)))
    states = sample_states(
        patches.layout, patches.observed, batch_size=2, num_visible_tokens=6,
        generator=torch.Generator().manual_seed(1),
    )  # fmt: skip
    generator = torch.Generator().manual_seed(2)
    states, rows = sample_decoded(patches.layout, states, 0.5, generator)
    assert rows["s2"].shape == (2, 8)
    assert (rows["s2"].reshape(2, 4, 2) // 4 == torch.arange(4)[:, None]).all()
    for together in (False, True):
        model.set_runtime(RuntimePolicy(group_decoders=together))
        some = model(patches, states, decoded=rows).predictions["s2"]
        assert some.shape == (2, 16, 64)
        assert ((some != 0).any(dim=2).sum(dim=1) == 8).all()
    model.set_runtime(RuntimePolicy())


def test_dropped_dates_leave_one_and_images_alone(model):
    patches = model.patchify(batch_of(*(SOURCE.read(i) for i in range(6))))
    layout = patches.layout
    seen = Hiding(0.9, KEYS, (1,), dates=True)(patches).observed
    assert seen[:, layout.slices["elevation"]].all()
    assert int(seen[:, layout.slices["s2"]].sum()) < int(
        patches.observed[:, layout.slices["s2"]].sum()
    )
    alone = model.patchify(batch_of(*(SOURCE.read(i).select(["s2"]) for i in range(6))))
    for seed in range(5):
        assert Hiding(0.99, KEYS, (seed,), dates=True)(alone).observed.any(dim=1).all()
    images = model.patchify(batch_of(as_images(0)))
    assert Hiding(0.9, KEYS[:1], (1,), dates=True)(images) is images


def test_chips_of_different_dates_are_not_mixed(model):
    patches = model.patchify(batch_of(SOURCE.read(0), SOURCE.read(1)))
    with pytest.raises(ConfigError, match="different dates"):
        Mixing(torch.tensor([1, 0]), 0.5)(patches)
    sample = SOURCE.read(0)
    other = replace(SOURCE.read(1), dates=sample.dates)
    same = model.patchify(batch_of(sample, other))
    mixed = Mixing(torch.tensor([1, 0]), 0.5, (0.0, 1.0, 0.0, 1.0))(same)
    assert torch.equal(mixed.values["s2"][0], same.values["s2"][1])


# Heads ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["mean", "attention", "change"])
@pytest.mark.parametrize("name", ["linear", "convnext", "upernet", "dpt", "unet"])
def test_heads_of_maps_read_series(model, name, kind):
    predictor = Predictor(model, MAP, HeadConfig(name=name, width=8, depth=1, dates=kind))
    out = predictor(batch_of(SOURCE.read(0), some_dates(1, 2)))
    assert out.shape == (2, 3, 8, 8)
    out.sum().backward()
    assert all(p.grad is not None for p in predictor.head.parameters())


@pytest.mark.parametrize("kind", ["mean", "attention", "change"])
@pytest.mark.parametrize("pool", ["mean", "mean-std", "all-layers-mean-std"])
def test_heads_of_chips_read_series(model, pool, kind):
    predictor = Predictor(model, CLASS, HeadConfig(pool=pool, dates=kind))
    batch = batch_of(SOURCE.read(0), some_dates(1, 2))
    out = predictor(batch)
    assert out.shape == (2, 3)
    out.square().sum().backward()
    assert all(p.grad is not None for p in predictor.head.parameters())
    alone = predictor(batch_of(some_dates(1, 2)))
    assert torch.allclose(out[1], alone[0], atol=1e-5)


def fusion_of(model: MultiMAE, target: Target, kind: DatesKind) -> DateFusion:
    head = Predictor(model, target, HeadConfig(dates=kind)).head
    assert isinstance(head.dates, DateFusion)
    return head.dates


def test_attention_begins_as_the_mean_and_then_weighs(model):
    features = model.encode(batch_of(SOURCE.read(0), some_dates(1, 2)))
    fusion = fusion_of(model, MAP, "attention")
    assert torch.allclose(fusion.map(features), features.fused(), atol=1e-6)
    assert torch.allclose(fusion.vector(features, "mean"), features.pooled, atol=1e-6)
    torch.nn.init.normal_(fusion.score.weight)
    assert not torch.allclose(fusion.map(features), features.fused(), atol=1e-3)


def test_first_and_last_pass_over_what_is_not_seen(model):
    sample = SOURCE.read(0).select(["s2"])
    ok = np.ones((4, 1, 8, 8), bool)
    ok[0, 0, :4, :4] = False  # the first patch of the first date
    ok[3] = False  # the last date
    features = model.encode(batch_of(replace(sample, valid={"s2": ok})))
    first, last = features.first_and_last()
    tokens = features.slots.token[0].tolist()
    assert [t for t, f in zip(tokens, first[0, :, 0].tolist(), strict=True) if f] == [1, 2, 3, 4]
    assert [t for t, f in zip(tokens, last[0, :, 0].tolist(), strict=True) if f] == [8, 9, 10, 11]


def test_a_change_head_sees_no_change_between_equal_features(model):
    features = model.encode(batch_of(as_images(0)))
    fusion = fusion_of(model, CLASS, "change")
    first, last, difference = fusion.vector(features, "mean").chunk(3, dim=1)
    assert torch.equal(first, last)
    assert not difference.any()


def test_global_tokens_have_no_dates(model):
    with pytest.raises(ConfigError, match=r"head\.dates"):
        Predictor(model, CLASS, HeadConfig(pool="global", dates="change"))
    with pytest.raises(ConfigError, match=r"head\.dates"):
        HeadConfig(dates="median")  # type: ignore[arg-type]


def test_a_head_of_series_is_saved_and_loaded(model, tmp_path):
    batch = batch_of(SOURCE.read(0), some_dates(1, 2))
    predictor = Predictor(model, MAP, HeadConfig(name="convnext", width=8, depth=1, dates="change"))
    predictor.eval().save_pretrained(tmp_path / "model")
    again = Predictor.from_pretrained(tmp_path / "model")
    assert torch.equal(again(batch), predictor(batch))
    assert "dates" not in HeadConfig().to_dict()


def test_one_date_more_costs_the_same_at_a_fixed_budget(model):
    """Products of the encoder and decoders, counted: linear in dates."""
    from torch.utils.flop_counter import FlopCounterMode

    flops = []
    for dates in (4, 8, 16):
        source = SyntheticSeries(3, 8, options=SeriesOptions(dates=dates, clouds=0.0))
        patches = model.patchify(collate([source.read(i) for i in range(2)], source.modalities))
        states = sample_states(
            patches.layout, patches.observed, batch_size=2, num_visible_tokens=8,
            generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(patches, states, tasks=["s2"])
        flops.append(counter.get_total_flops())
    assert math.isclose(flops[2] - flops[1], 2 * (flops[1] - flops[0]), rel_tol=0.02)
