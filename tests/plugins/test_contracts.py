"""The plugins against stand-ins of what they plug into; no such package is needed."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from multimae_eo import backbone
from multimae_eo.catalog import make_modality
from multimae_eo.errors import BandError, ConfigError, ContractError
from multimae_eo.modality import ModalitySet
from multimae_eo.plugins.channels import Channel, assign_channels

LEVEL = {"rgb": "l2a"}


@pytest.fixture
def folder(make_model, tmp_path):
    make_model().save_pretrained(tmp_path / "m")
    return str(tmp_path / "m")


@pytest.fixture
def stand_in(monkeypatch):
    """Installs a module (and its parents) and imports a plugin on it."""

    def install(name: str, plugin: str, **members: object) -> ModuleType:
        parts = name.split(".")
        for i in range(1, len(parts) + 1):
            monkeypatch.setitem(sys.modules, ".".join(parts[:i]), ModuleType(parts[i - 1]))
        for key, value in members.items():
            setattr(sys.modules[name], key, value)
        monkeypatch.delitem(sys.modules, f"multimae_eo.plugins.{plugin}", raising=False)
        module = importlib.import_module(f"multimae_eo.plugins.{plugin}")
        # Not through monkeypatch, which would put it back after the test.
        del sys.modules[f"multimae_eo.plugins.{plugin}"]
        return module

    return install


@pytest.fixture
def terratorch(stand_in):
    registered = {}

    class Registry:
        def register(self, constructor):
            registered[constructor.__name__] = constructor
            return constructor

    stand_in("terratorch.registry", "terratorch", TERRATORCH_BACKBONE_REGISTRY=Registry())
    return registered


def rgb(seed=0, size=16):
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(seed))


def test_terratorch_gives_a_map_per_block(terratorch, folder):
    body = terratorch["multimae_eo"](folder, inputs=["rgb"], levels=LEVEL).eval()
    assert body.out_channels == [32, 32]
    with torch.no_grad():
        maps = body(rgb())
        own = backbone(folder, ["rgb"], out_indices=[0, 1], levels=LEVEL).eval()(rgb())
    assert [tuple(m.shape) for m in maps] == [(2, 32, 4, 4)] * 2
    for a, b in zip(maps, own, strict=True):
        assert_close(a, b)


def test_terratorch_takes_dictionaries_keywords_and_scales(terratorch, folder):
    names = ["rgb", "elevation"]
    body = terratorch["multimae_eo"](folder, inputs=names, levels=LEVEL).eval()
    images = {"rgb": rgb(), "elevation": torch.rand(2, 1, 16, 16)}
    with torch.no_grad():
        assert_close(body(images)[-1], body(**images)[-1])
        scaled = terratorch["multimae_eo"](folder, names, levels=LEVEL, scale=1e-4).eval()
        digital = {n: t * 1e4 for n, t in images.items()}
        assert_close(scaled(digital)[-1], body(images)[-1], atol=1e-4, rtol=1e-4)
    with pytest.raises(ContractError, match="name its channels"):
        body(rgb())


def test_terratorch_finds_bands_by_name(terratorch, folder):
    turned = terratorch["multimae_eo"](folder, bands=["BLUE", "B04"], levels=LEVEL).eval()
    own = backbone(folder, ["rgb"], bands={"rgb": ["B4", "B2"]}, levels=LEVEL).eval()
    image = rgb()[:, :2]
    with torch.no_grad():
        assert_close(turned(image)[-1], own(image.flip(1))[0])
    with pytest.raises(ConfigError, match="bands B99"):
        terratorch["multimae_eo"](folder, bands=["B4", "B99"], levels=LEVEL)


@pytest.fixture
def bench(stand_in):
    class BenchModel(nn.Module):
        _forward_patch_features: Callable[[torch.Tensor], torch.Tensor]

        def __init__(self, bands, normalization):
            super().__init__()
            assert normalization == "identity"

        def forward(self, images):
            return self._forward_patch_features(images)

    module = stand_in("torchgeo_bench.models.interface", "torchgeo_bench", BenchModel=BenchModel)
    return module.MultiMAEBench


def spec(name, wavelength=None, source=""):
    return SimpleNamespace(name=name, source_name=source, wavelength_um=wavelength)


def test_torchgeo_bench_gets_pooled_features(bench, folder):
    bands = [spec("blue", 0.49), spec("nobody", 0.56), spec("red"), spec("vapour", 0.945)]
    with pytest.warns(UserWarning, match="left out: vapour"):
        model = bench(bands, model=folder, levels=LEVEL, scale=1e-4).eval()
    assert model.split.channels == {"rgb": (2, 1, 0)}, "in the model's order, one by wavelength"
    images = torch.rand(2, 4, 16, 16) * 1e4
    own = backbone(folder, ["rgb"], levels=LEVEL).eval()
    with torch.no_grad():
        expected = own.reader.encode({"rgb": images[:, [2, 1, 0]] * 1e-4}).pooled
        assert_close(model(images), expected)


def test_torchgeo_bench_may_not_normalise_twice(bench, folder):
    with pytest.raises(ConfigError, match="normalization=identity"):
        bench([spec("red")], model=folder, levels=LEVEL, normalization="bandspec_zscore")
    with pytest.raises(BandError, match="rgb: B4, B3, B2"):
        bench([spec("vh")], model=folder, levels=LEVEL)


def test_pangaea_takes_one_date_of_several_kinds(stand_in, folder):
    class Encoder(nn.Module):
        """Its keywords, and what it makes of output_dim, are those of PANGAEA's base class."""

        def __init__(
            self, *, model_name, input_bands, input_size, embed_dim, output_layers, output_dim,
            multi_temporal, multi_temporal_output, pyramid_output, encoder_weights, download_url,
        ):  # fmt: skip
            super().__init__()
            self.input_bands, self.input_size = input_bands, input_size
            self.output_layers, self.output_dim = output_layers, list(output_dim)
            assert {multi_temporal, multi_temporal_output, pyramid_output} == {False}
            assert download_url is None, "it downloads where an address is given"
            assert (model_name, embed_dim) == ("multimae_eo", 32)
            assert encoder_weights == folder

    module = stand_in("pangaea.encoders.base", "pangaea", Encoder=Encoder)
    encoder = module.MultiMAEEncoder(
        folder,
        {"optical": ["B2", "B3", "B4"], "dem": ["elevation"]},
        16,
        output_layers=[0, 1],
        levels=LEVEL,
        scale={"optical": 1e-4},
    ).eval()
    assert encoder.output_dim == [32, 32]
    assert encoder.output_layers == [0, 1]
    optical, dem = rgb() * 1e4, torch.rand(2, 1, 16, 16) * 500
    own = backbone(folder, ["rgb", "elevation"], out_indices=[0, 1], levels=LEVEL).eval()
    with torch.no_grad():
        maps = encoder({"optical": optical[:, :, None], "dem": dem[:, :, None]})
        expected = own({"rgb": optical.flip(1) * 1e-4, "elevation": dem})
    for a, b in zip(maps, expected, strict=True):
        assert_close(a, b, atol=1e-5, rtol=1e-5)
    with pytest.raises(ContractError, match="2 dates"):
        encoder({"optical": optical[:, :, None].repeat(1, 1, 2, 1, 1), "dem": dem})


def test_a_band_of_two_inputs_goes_to_both():
    both = ModalitySet(
        [
            make_modality("rgb", sensor_name="sentinel2", bands=("B4", "B3", "B2")),
            make_modality("edge", sensor_name="sentinel2", bands=("B4", "B8")),
        ]
    )
    split = assign_channels(both, [Channel(names=("B8",)), Channel(names=("red",))])
    assert split.bands == {"rgb": ("B4",), "edge": ("B4", "B8")}
    assert split.channels == {"rgb": (1,), "edge": (1, 0)}


@pytest.mark.slow
def test_the_core_imports_no_plugin():
    import subprocess

    code = "import sys, multimae_eo.cli, multimae_eo.train.finetune, multimae_eo.scenes.engine\n"
    code += "print([m for m in sys.modules if m.startswith('multimae_eo.plugins')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
