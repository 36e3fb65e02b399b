"""``finetune`` and ``evaluate`` on the command line."""

from __future__ import annotations

import json

import pytest

from multimae_eo.cli import main
from multimae_eo.network.config import RuntimePolicy

SMALL = ("--run.epochs=1", "--data.batch_size", "8", "--run.accelerator=cpu")


@pytest.fixture(scope="module")
def tuned(made):
    arguments = ["finetune", "--model", made / "run/model", "--data", made / "store"]
    arguments += ["--task", "classification", "--inputs", "rgb,elevation", "--out", made / "fine"]
    assert main([*arguments, *SMALL]) == 0
    return made


def test_evaluate_tells_metrics_with_intervals(tuned, run):
    arguments = ("evaluate", "--model", tuned / "fine/model", "--data", tuned / "store")
    code, out, _ = run(*arguments, "--json", "--out", tuned / "results")
    assert code == 0
    record = json.loads(out)
    assert record["inputs"] == ["rgb", "elevation"]
    assert record["metrics"]["accuracy"]["low"] <= record["metrics"]["accuracy"]["high"]
    with open(tuned / "results/metrics.json", encoding="utf-8") as file:
        assert json.load(file) == record
    code, out, _ = run(*arguments, "--split", "train", "--inputs", "rgb")
    assert code == 0
    assert out.startswith("accuracy\t")
    code, out, _ = run("info", tuned / "fine/model")
    assert "fine-tuned model" in out
    assert run("info", tuned / "fine")[0] == 0


def test_a_fine_tuned_encoder_is_a_start_again(tuned, run):
    code, out, err = run(
        "finetune", "--model", tuned / "fine/model", "--data", tuned / "store", "--task",
        "classification", "--out", tuned / "again", *SMALL,
    )  # fmt: skip
    assert code == 0, err
    assert out.splitlines()[-1].endswith("model")


def test_from_scratch_with_options_of_the_recipe(made, run):
    code, out, err = run(
        "finetune", "--model", "none", "--data", made / "store", "--task", "classification",
        "--out", made / "scratch", "--model.encoder", "{width: 16, depth: 1, heads: 2}",
        "--inputs", "landcover", *SMALL,
    )  # fmt: skip
    assert code == 0, err
    assert "val/accuracy\t" in out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("--task", "segmentation"), "one class per chip; segmentation needs a map"),
        (("--head", "convnext"), "'convnext' predicts maps"),
        (("--inputs", "rgb,elevaton"), "did you mean 'elevation'"),
        (("--model.encoder", "nano"), "give it with --model none"),
        (("--data.chip", "33"), "data.chip: a window of 33 px"),
        (("--model", "nowhere"), "config.json is missing"),
        (("--recipe", "nowhere.yaml"), "cannot be read"),
    ],
)
def test_mistakes_are_told_in_one_line(made, refused, tmp_path, changes, message):
    options = {"--model": made / "run/model", "--data": made / "store", "--task": "classification"}
    options |= dict([changes])
    assert message in refused("finetune", *sum(options.items(), ()), "--out", str(tmp_path / "o"))
    assert not (tmp_path / "o" / "model").exists()


def test_evaluate_needs_a_fine_tuned_model_and_its_split(tuned, refused):
    told = refused("evaluate", "--model", tuned / "run/model", "--data", tuned / "store")
    assert "without a head; fine-tune it with" in told
    arguments = ("--model", tuned / "fine/model", "--data", tuned / "store")
    assert "split 'tset' is empty" in refused("evaluate", *arguments, "--split", "tset")
    assert "no 'radar' in both" in refused("evaluate", *arguments, "--inputs", "radar")


def test_flips_average_the_mirror_images(tuned, run):
    from dataclasses import replace

    import numpy as np
    import torch

    from multimae_eo import Predictor, open_source

    source = open_source(str(tuned / "store"))
    batch = source.batch(source.keys[:3], ["rgb", "elevation"])
    predictor = Predictor.from_pretrained(tuned / "fine/model")

    def mirrored(*axes):
        def flip(values):
            return torch.from_numpy(np.flip(values.numpy(), axes).copy())

        return replace(batch, pixels={n: flip(p) for n, p in batch.pixels.items()},
                       valid={n: flip(v) for n, v in batch.valid.items()})  # fmt: skip

    each = [predictor.predict(mirrored(*axes)) for axes in ((), (-1,), (-2,), (-2, -1))]
    assert not torch.allclose(each[0], each[1])
    predictor.set_runtime(RuntimePolicy(flips=True))
    np.testing.assert_allclose(predictor.predict(batch), torch.stack(each).mean(dim=0), rtol=1e-5)
    np.testing.assert_allclose(  # the same for a chip and its mirror image
        predictor.predict(mirrored(-1)), predictor.predict(batch), rtol=1e-5
    )
    arguments = ("evaluate", "--model", tuned / "fine/model", "--data", tuned / "store")
    assert run(*arguments, "--flips", "--json")[0] == 0
