"""Heads, predictors and adapted inputs: shapes, gradients, weights that go where they should."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from multimae_eo import MultiMAE, Predictor
from multimae_eo.catalog import make_modality, modality
from multimae_eo.errors import CheckpointError, ConfigError, ContractError
from multimae_eo.modality import Band, Modality, ModalitySet, rename
from multimae_eo.network.adapt import adapt
from multimae_eo.network.config import POOLS, EncoderConfig, HeadConfig, InputConfig, ModelConfig
from multimae_eo.network.heads import ChipHead
from multimae_eo.network.normalize import require_contract
from multimae_eo.network.target import Target, TargetScan
from multimae_eo.sample import collate
from tests.support.made_statistics import measured

MAP = Target(kind="map", classes=("a", "b", "c"), counts=(1.0, 1.0, 1.0), total=3.0)
CLASS = Target(kind="class", classes=("a", "b", "c"), counts=(1.0, 1.0, 1.0), total=3.0)
DENSE = ("linear", "convnext", "upernet", "dpt", "unet")


@pytest.fixture
def batch(make_sample, modalities):
    return collate([make_sample(i) for i in range(4)], modalities)


@pytest.fixture
def lacking(make_sample, modalities):
    """Each chip lacks something else; none lacks everything."""
    names = [("rgb",), ("elevation", "landcover"), ("landcover",), ("rgb", "elevation")]
    return collate([make_sample(i, names=n) for i, n in enumerate(names)], modalities)


# Features -----------------------------------------------------------------------------------


def test_stages_end_in_the_tokens_and_leave_them_as_they_were(make_model, batch):
    model = make_model().eval()
    plain, staged = model.encode(batch), model.encode(batch, stages=(1, 2))
    assert torch.equal(plain.tokens, staged.tokens)
    assert torch.equal(staged.stages[1], staged.tokens)
    assert not torch.equal(staged.stages[0], staged.tokens)


def test_fused_is_the_mean_over_the_modalities_seen_at_each_place(make_model, lacking):
    features = make_model().eval().encode(lacking)
    fused = features.fused()
    grids = {n: features.grid(n) for n in ("rgb", "elevation", "landcover")}
    assert torch.allclose(fused[0], grids["rgb"][0], atol=1e-6)
    both = (grids["elevation"][1] + grids["landcover"][1]) / 2
    assert torch.allclose(fused[1], both, atol=1e-6)


def test_fused_interpolates_coarser_grids(make_model, batch):
    inputs = {
        "rgb": InputConfig(size=16, patch=4),
        "elevation": InputConfig(size=16, patch=8),
        "landcover": InputConfig(size=16, patch=2, stride=2),
    }
    features = make_model(inputs=inputs).eval().encode(batch, ["elevation"])
    fused, own = features.fused(), features.grid("elevation")
    assert fused.shape[-2:] == (4, 4)
    assert own.shape[-2:] == (2, 2)
    assert torch.allclose(fused[..., 0, 0], own[..., 0, 0], atol=1e-6), "a corner is a corner"


def test_seen_is_where_a_token_lies_and_no_further(make_model, make_sample, modalities):
    inputs = {
        "rgb": InputConfig(size=16, patch=4),
        "elevation": InputConfig(size=16, patch=8),
        "landcover": InputConfig(size=16, patch=2, stride=2),
    }
    ok = {n: np.zeros((1, 16, 16), bool) for n in ("rgb", "elevation")}
    ok["rgb"][:, 8:12, 12:] = True
    ok["elevation"][:, :8, :8] = True
    sample = replace(make_sample(0, names=("rgb", "elevation")), valid=ok)
    features = make_model(inputs=inputs).eval().encode(collate([sample], modalities))
    expected = torch.zeros(1, 4, 4, dtype=torch.bool)
    expected[0, :2, :2] = expected[0, 2, 3] = True
    assert torch.equal(features.seen, expected)
    fused = features.fused().abs().sum(dim=1) > 0
    assert (fused >= features.seen).all()
    assert fused.sum() > features.seen.sum(), "coarser tokens are interpolated beyond their edge"


def test_drop_path_acts_in_training_only_and_keeps_the_mean():
    from multimae_eo.network.encoder import Block

    torch.manual_seed(0)
    block, x = Block(8, 2, 2.0, drop_path=0.5), torch.randn(1, 3, 8)
    plain = x + block.attn(block.norm1(x), None)
    plain = plain + block.mlp(block.norm2(plain))
    assert torch.equal(block.eval()(x), plain)
    block.train()
    drawn = block._thinned(torch.ones(4000, 1, 1))
    assert set(drawn.flatten().tolist()) == {0.0, 2.0}
    assert abs(float(drawn.mean()) - 1.0) < 0.06


# heads --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DENSE)
def test_dense_heads_give_a_map_of_the_chip_and_reach_the_encoder(make_model, lacking, name):
    predictor = Predictor(make_model(), MAP, HeadConfig(name=name, width=16, depth=1))
    outputs = predictor(lacking)
    assert outputs.shape == (4, 3, 16, 16)
    outputs.square().sum().backward()
    missing = [n for n, p in predictor.head.named_parameters() if p.grad is None]
    assert not missing
    first: Any = predictor.encoder.encoder.blocks[0]
    assert first.attn.qkv.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("name", DENSE)
@pytest.mark.parametrize("size", [8, 20, 24])
def test_dense_heads_take_chips_of_any_size(make_model, make_sample, modalities, name, size):
    predictor = Predictor(make_model(), MAP, HeadConfig(name=name, width=16, depth=1)).eval()
    chips = collate([make_sample(i, size=size) for i in range(2)], modalities)
    with torch.no_grad():
        assert predictor(chips).shape == (2, 3, size, size)
        assert predictor.predict(chips).shape == (2, 3, size, size)


@pytest.mark.parametrize("pool", POOLS)
def test_chip_heads_give_a_vector_for_any_subset_of_inputs(make_model, lacking, pool):
    predictor = Predictor(make_model(), CLASS, HeadConfig(pool=pool)).eval()
    assert predictor(lacking).shape == (4, 3)
    few = lacking.take(torch.tensor([0, 3]))
    alone = predictor(few, ["rgb"])
    assert torch.allclose(alone[0], predictor(lacking)[0], atol=1e-5), "it had nothing else"
    assert not torch.allclose(alone[1], predictor(lacking)[3], atol=1e-5)
    with pytest.raises(ContractError, match="chip-1: nothing observed"):
        predictor(lacking, ["rgb"])


@pytest.mark.parametrize("pool", POOLS)
def test_all_that_tokens_sum_up_to_has_a_finite_slope(make_model, make_sample, modalities, pool):
    """Also where there is a single token, whose deviation is 0."""
    predictor = Predictor(make_model(), CLASS, HeadConfig(pool=pool))
    for size in (16, 4):
        predictor.zero_grad()
        predictor(collate([make_sample(0, size=size)], modalities), ["rgb"]).sum().backward()
        grads = [p.grad for p in predictor.parameters() if p.grad is not None]
        assert all(bool(g.isfinite().all()) for g in grads)
        if size == 16:
            assert bool((predictor.head.project.weight.grad != 0).all())


def test_larger_chips_are_averaged_over_windows(make_model, make_sample, modalities):
    predictor = Predictor(make_model(), CLASS, HeadConfig()).eval()
    batch = collate([make_sample(1, size=32)], modalities)
    from multimae_eo.network.windows import chip_windows

    windows = chip_windows(predictor.encoder.config.sizes, batch, 0.0)
    assert len(windows) == 4
    pooled = torch.stack([predictor.encoder.encode(batch.cut(w)).pooled for w in windows])
    assert isinstance(predictor.head, ChipHead)
    with torch.no_grad():
        expected = predictor.head.predict(pooled.mean(dim=0))
    assert torch.allclose(predictor.predict(batch), expected, atol=1e-5)


def test_what_does_not_fit_is_refused(make_model):
    with pytest.raises(ConfigError, match="'dpt' predicts maps"):
        Predictor(make_model(), CLASS, HeadConfig(name="dpt"))
    with pytest.raises(ConfigError, match="no global tokens"):
        Predictor(make_model(global_tokens=0), CLASS, HeadConfig(pool="global"))
    with pytest.raises(ConfigError, match=r"head\.width"):
        HeadConfig(width=0)


def test_an_encoder_of_few_blocks_serves_all_levels(make_model):
    for depth, blocks in ((1, (1, 1, 1, 1)), (2, (1, 1, 2, 2)), (12, (3, 6, 9, 12))):
        model = make_model(encoder=EncoderConfig(width=32, depth=depth, heads=2))
        assert Predictor(model, MAP, HeadConfig(name="upernet", width=8)).head.blocks == blocks


# folder -------------------------------------------------------------------------------------


def test_saved_and_loaded_it_predicts_the_same(make_model, batch, tmp_path):
    target = replace(CLASS, counts=(1.0, 2.0, 3.0))
    predictor = Predictor(make_model(), target, HeadConfig(pool="global")).eval()
    predictor.save_pretrained(tmp_path / "model")
    loaded = Predictor.from_pretrained(tmp_path / "model")
    assert loaded.target == target
    assert torch.equal(loaded(batch), predictor(batch))
    assert not [n for n in loaded.state_dict() if "decoders" in n]


def test_each_kind_of_folder_says_what_it_is(make_model, tmp_path):
    from multimae_eo.info.paths import describe

    model = make_model()
    model.save_pretrained(tmp_path / "pre")
    Predictor(model, CLASS, HeadConfig()).save_pretrained(tmp_path / "fine")
    with pytest.raises(CheckpointError, match="fine-tuned model, without decoders"):
        MultiMAE.from_pretrained(tmp_path / "fine")
    with pytest.raises(CheckpointError, match="without a head"):
        Predictor.from_pretrained(tmp_path / "pre")
    assert describe(tmp_path / "pre")["what"] == "model"
    assert describe(tmp_path / "fine")["classes"] == ["a", "b", "c"]
    (tmp_path / "fine" / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(CheckpointError, match="damaged"):
        Predictor.from_pretrained(tmp_path / "fine")


# inputs -------------------------------------------------------------------------------------


def by_band(model: MultiMAE, name: str) -> torch.Tensor:
    embedding: Any = model.embeddings[name]
    weight: torch.Tensor = embedding.projection.weight
    return weight.reshape(len(weight), model.modalities[name].channels, -1)


def test_the_same_inputs_are_taken_over_whole(make_model, modalities, batch):
    model = make_model().eval()
    kept = modalities.select(["elevation", "rgb"])
    adapted = adapt(model, kept, {"elevation": 16, "rgb": 16}, measured)
    assert adapted.notes == ()
    assert adapted.encoder.modalities.names == ("elevation", "rgb")
    ours, theirs = adapted.encoder.eval().encode(batch, ["rgb"]), model.encode(batch, ["rgb"])
    assert torch.allclose(ours.tokens, theirs.tokens, atol=1e-6)


def test_bands_of_a_superset_keep_their_weights_and_new_ones_are_named(make_model):
    model = make_model()
    rgb = make_modality("rgb", sensor_name="sentinel2", bands=("B2", "B3", "B11", "B4"))
    adapted = adapt(model, ModalitySet([rgb]), {"rgb": 16}, measured)
    ours, theirs = by_band(adapted.encoder, "rgb"), by_band(model, "rgb")
    assert torch.equal(ours[:, [3, 1, 0]], theirs), "by name, not by position"
    assert not torch.isclose(ours[:, 2], theirs[:, 0]).all()
    assert ours[:, 2].abs().sum() > 0
    assert adapted.notes == (
        "rgb: weights of bands: B2 from rgb.B2, B3 from rgb.B3, B11 new, B4 from rgb.B4",
    )


def test_a_new_sensor_takes_the_nearest_wavelengths(make_model):
    model = make_model()
    landsat = make_modality("landsat", sensor_name="landsat8", bands=("B4", "B5", "B2"))
    optical = ModalitySet([replace(landsat, unit=model.modalities["rgb"].unit)])
    adapted = adapt(model, optical, {"landsat": 32}, measured)
    ours, theirs = by_band(adapted.encoder, "landsat"), by_band(model, "rgb")
    half_of_green = theirs[:, [1]] / 2
    assert torch.allclose(ours[:, [0, 2]], theirs[:, [0, 2]] + half_of_green), "red and blue"
    assert "B5 new" in adapted.notes[0]
    assert adapted.encoder.config.inputs["landsat"] == InputConfig(size=32, patch=4)


def custom_sensor(*micrometres: float) -> ModalitySet:
    """Bands with wavelengths and no names in common with any sensor."""
    bands = tuple(Band(name=f"x{i}", wavelength_um=w) for i, w in enumerate(micrometres))
    return ModalitySet([Modality(name="new", bands=bands, unit="reflectance", gsd_m=10)])


def test_bands_with_the_same_nearest_one_share_its_weights(make_model):
    """Else tokens of a sensor with narrow bands would be a multiple of the pre-trained ones."""
    model = make_model()
    bands = (0.655, 0.665, 0.675, 0.56, 0.49, 0.485)
    adapted = adapt(model, custom_sensor(*bands), {"new": 16}, measured)
    ours, theirs = by_band(adapted.encoder, "new"), by_band(model, "rgb")
    expected = theirs[:, [0, 0, 0, 1, 2, 2]] / torch.tensor([3, 3, 3, 1, 2, 2])[:, None]
    assert torch.allclose(ours, expected)
    assert torch.allclose(ours.sum(dim=1), theirs.sum(dim=1), atol=1e-6)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (2, 0, 3, 1)])
def test_weights_of_patches_of_another_side_are_resampled_whatever_the_order(order):
    pair = ModalitySet([modality("rgb"), modality("sired")])
    config = ModelConfig(
        encoder=EncoderConfig(width=32, depth=1, heads=2),
        inputs={"rgb": InputConfig(size=16, patch=4), "sired": InputConfig(size=8, patch=2)},
    )
    model = MultiMAE(pair, [], config, measured(pair))
    names, waves = ("red", "green", "B11", "B12"), (0.665, 0.56, 1.61, 2.19)
    adapted = adapt(model, custom_sensor(*(waves[i] for i in order)), {"new": 16}, measured)
    assert adapted.encoder.config.inputs["new"].patch == 4, "the finest donor's"
    assert "new:" in adapted.notes[0]
    assert " new" not in adapted.notes[0].replace("new:", "")
    ours = by_band(adapted.encoder, "new")
    coarse = torch.randn(2, 2)
    for place, i in enumerate(order):
        if names[i].startswith("B"):
            fine = coarse.repeat_interleave(2, 0).repeat_interleave(2, 1).flatten()
            theirs = by_band(model, "sired")[:, i - 2] @ coarse.flatten()
            assert torch.allclose(ours[:, place] @ fine, theirs / 2, atol=1e-5)


def test_bands_of_other_wavelengths_are_not_the_models(make_model):
    """A sensor of one's own with other bands under the same names."""
    model = make_model()
    moved = replace(
        model.modalities["rgb"],
        bands=tuple(
            replace(b, wavelength_um=w)
            for b, w in zip(model.modalities["rgb"].bands, (2.2, 0.565, 0.49), strict=True)
        ),
    )
    with pytest.raises(ContractError, match=r"wavelengths: model \[0\.665, .*data \[2\.2, "):
        require_contract(model.modalities, ModalitySet([moved]))
    adapted = adapt(model, ModalitySet([moved]), {"rgb": 16}, measured)
    assert "B4 new, B3 from rgb.B3" in adapted.notes[0]
    assert adapted.encoder.modalities["rgb"].bands[0].wavelength_um == 2.2
    slightly = replace(
        moved, bands=(replace(moved.bands[0], wavelength_um=0.667), *moved.bands[1:])
    )
    require_contract(model.modalities, ModalitySet([slightly]))


def test_another_unit_or_kind_starts_anew(make_model):
    model = make_model()
    slope = rename(make_modality("elevation", sensor_name="dem", bands=("elevation",)), "slope")
    adapted = adapt(model, ModalitySet([slope]), {"slope": 16}, measured)
    assert adapted.notes == ("slope: weights of bands: elevation new",)
    assert adapted.encoder.config.inputs["slope"].patch == 4


def test_encoder_weights_are_copied_not_shared(make_model, modalities):
    model = make_model(encoder=EncoderConfig(width=32, depth=1, heads=2))
    original: Any = model.encoder.blocks[0]
    before = original.mlp.fc1.weight.clone()
    adapted = adapt(model, modalities.select(["rgb"]), {"rgb": 16}, measured)
    copied: Any = adapted.encoder.encoder.blocks[0]
    with torch.no_grad():
        copied.mlp.fc1.weight.zero_()
    assert torch.equal(original.mlp.fc1.weight, before)


# labels -------------------------------------------------------------------------------------


def scanned(task, labels, names=()):
    scan = TargetScan(task, names, "data")
    used = [scan.add(label) for label in labels]
    return scan.target(), used


def test_targets_describe_labels():
    target, used = scanned("classification", [0, 2, None, 2, -1], "abc")
    assert (target.kind, target.counts, target.total) == ("class", (1.0, 0.0, 2.0), 3.0)
    assert used == [True, True, False, True, False]
    target, _ = scanned("classification", [np.array([1.0, 0.0]), np.array([1.0, 1.0])])
    assert (target.kind, target.counts, target.total) == ("multilabel", (2.0, 1.0), 2.0)
    target, used = scanned("segmentation", [np.array([[0, 1], [-1, 1]]), np.array([[-1, -1]])])
    assert (target.kind, target.counts, used) == ("map", (1.0, 2.0), [True, False])
    target, used = scanned("regression", [np.float32(1), np.float32(3), np.float32("nan")])
    assert (target.mean, target.std, used) == (2.0, 1.0, [True, True, False])
    assert Target.from_dict(target.to_dict()) == target


@pytest.mark.parametrize(
    ("task", "labels", "names", "message"),
    [
        ("segmentation", [1, 2], (), "one class per chip; segmentation needs a map"),
        ("classification", [np.float32(2.5)], (), "a number per chip; classification needs one"),
        ("classification", [0, 5], ("a", "b"), "class 5, but 2 classes"),
        ("classification", [0, 0], (), "all of one class"),
        ("classification", [None], ("a", "b"), "no training chip has a label"),
    ],
)
def test_labels_that_do_not_suit_are_told(task, labels, names, message):
    from multimae_eo.errors import DataError

    with pytest.raises(DataError, match=message):
        scanned(task, labels, names)
