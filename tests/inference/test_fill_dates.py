"""Dates of series predicted from the others: what is masked, scored and written."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import multimae_eo
from multimae_eo import MultiMAE
from multimae_eo.errors import ConfigError, DataError
from multimae_eo.inference.fill_dates import fill_dates
from multimae_eo.inference.masked_dates import DateRule
from multimae_eo.inference.reconstruct_chips import ReconstructOptions
from multimae_eo.metrics.date_scores import HeldOut, IntervalCalibration, IntervalScale
from multimae_eo.sample import Sample
from multimae_eo.sources.acquisition_dates import date_text, days_since_1970
from multimae_eo.sources.base import Source
from multimae_eo.sources.phenology import SeriesOptions, SyntheticSeries
from tests.support.series_model import series_model

SOURCE = SyntheticSeries(12, 8, options=SeriesOptions(dates=6, clouds=0.4, radar=True))


@pytest.fixture(scope="module")
def model() -> MultiMAE:
    return series_model(SOURCE)


class Given(Source):
    """Samples as they are."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.name, self.modalities = "given", SOURCE.modalities
        self.samples = list(samples)
        self.keys = [s.key for s in self.samples]
        self.split_of = ["test"] * len(self.samples)

    def read(self, index: int, names: Sequence[str] | None = None) -> Sample:
        return self.samples[index].select(list(names or self.modalities))


def masked(rule: DateRule, sample: Sample) -> list[list[int]]:
    return [np.flatnonzero(t.masked).tolist() for t in rule.masked(sample, "s2")]


# What is masked ------------------------------------------------------------------------------


def test_each_date_and_each_gap_in_turn():
    sample = SOURCE.read(0)
    assert masked(DateRule.parse("each"), sample) == [[i] for i in range(6)]
    runs = masked(DateRule.parse("each", gap=3), sample)
    assert runs == [[0, 1, 2], [1, 2, 3], [2, 3, 4], [3, 4, 5]]
    assert masked(DateRule.parse("each", gap=6), sample) == []


def test_cloudy_dates_are_masked_together_and_none_of_a_clear_chip():
    sample = SOURCE.read(0)
    valid = np.ones(sample.pixels["s2"].shape, dtype=bool)
    assert masked(DateRule.parse("cloudy"), replace(sample, valid={"s2": valid})) == []
    valid[1], valid[4, :, :5] = False, False
    cloudy = replace(sample, valid={"s2": valid})
    assert masked(DateRule.parse("cloudy"), cloudy) == [[1, 4]]
    assert masked(DateRule.parse("cloudy", clear=0.2), cloudy) == [[1]]
    task = next(DateRule.parse("cloudy").masked(cloudy, "s2"))
    shown = task.given.validity("s2")
    assert not shown[[1, 4]].any()
    assert shown[[0, 2, 3, 5]].all()
    assert task.truth.validity("s2")[4].any()


def test_a_date_that_was_never_acquired_is_put_in_its_place():
    sample = SOURCE.read(0)
    known, days = date_text(sample.dates["s2"][2]), sample.dates["s2"]
    new = date_text((days[3] + days[4]) / 2)
    (task,) = DateRule.parse(f"{new}, {known}").masked(sample, "s2")
    assert (np.diff(task.truth.dates["s2"]) > 0).all()
    assert len(task.truth.dates["s2"]) == 7
    assert np.flatnonzero(task.masked).tolist() == [2, 4]
    kept = np.arange(7) != 4
    assert np.array_equal(task.truth.pixels["s2"][kept], sample.pixels["s2"])
    assert np.array_equal(task.truth.validity("s2")[kept], sample.validity("s2"))
    assert not task.truth.validity("s2")[4].any()
    assert days_since_1970(new) == task.truth.dates["s2"][4]


@pytest.mark.parametrize(
    ("dates", "options", "message"),
    [
        ("2021-13-01", {}, "no date of the calendar"),
        ("cloud", {}, "give ISO dates"),
        ([], {}, "at least one"),
        ("each", {"gap": 0}, "gap: must be ≥ 1"),
        ("cloudy", {"clear": 0.0}, "clear: a share"),
    ],
)
def test_wrong_dates_are_an_error(dates, options, message):
    with pytest.raises(ConfigError, match=message):
        DateRule.parse(dates, **options)


# What is predicted ---------------------------------------------------------------------------


def run(model: MultiMAE, out: Path, source: Source = SOURCE, **arguments):
    options = {"batch_size": 5, "samples": 2, "limit": 2, **arguments.pop("options", {})}
    rule = DateRule.parse(arguments.pop("dates", "each"), gap=arguments.pop("gap", 1))
    return fill_dates(
        model, source, inputs=["s2", "s1"], rule=rule, out=out,
        options=ReconstructOptions(outputs=("s2",), **options), **arguments,
    )  # fmt: skip


def test_an_untrained_model_scores_as_the_interpolation_that_it_is(model, tmp_path):
    result = run(model, tmp_path, split="test", calibrate="val")
    assert json.loads((tmp_path / "scores.json").read_text())["scores"] == result["scores"]
    assert result["chips"] == len(SOURCE.split("test"))
    assert result["skipped"] == 0
    assert result["dates"] == 6 * result["chips"]
    for group in ("between", "beyond"):
        score = result["scores"]["s2"][group]
        assert score["model"]["rmse"] == pytest.approx(score["linear"]["rmse"], rel=1e-4)
        assert score["linear"]["rmse"] != score["nearest"]["rmse"] or group == "beyond"
    bands = result["calibration"]["s2"]
    assert set(bands) == {"B2", "B3", "B4", "B8"}
    page = (tmp_path / "index.html").read_text()
    assert "linear" in page.lower()
    assert len(result["pictures"]) == 2


def test_what_is_masked_cannot_change_a_prediction(model, tmp_path):
    samples = [SOURCE.read(i) for i in range(2)]
    changed = []
    for sample in samples:
        pixels = sample.pixels["s2"].copy()
        pixels[2] = 9_000
        changed.append(replace(sample, pixels={**sample.pixels, "s2": pixels}))
    day = [date_text(s.dates["s2"][2]) for s in samples]
    arrays = []
    for number, chips in enumerate((samples, changed)):
        out = tmp_path / str(number)
        for sample, date in zip(chips, day, strict=True):
            run(model, out / sample.key, Given([sample]), dates=date, options={"arrays": True})
            path = out / sample.key / "arrays" / f"{sample.key}.s2.{date}.npz"
            with np.load(path) as stored:
                arrays.append({n: stored[n] for n in stored.files})
    for before, after in zip(arrays[:2], arrays[2:], strict=True):
        assert set(before) == {"mean", "std", "low", "high"}
        assert all(np.array_equal(before[n], after[n]) for n in before)
        assert (before["low"] <= before["mean"]).all()


def test_batches_do_not_change_scores(model, tmp_path):
    one = run(model, tmp_path / "1", split="test", options={"samples": 0 + 1, "batch_size": 1})
    many = run(model, tmp_path / "2", split="test", options={"samples": 0 + 1, "batch_size": 7})
    a, b = (r["scores"]["s2"]["between"]["model"]["rmse"] for r in (one, many))
    assert a == pytest.approx(b, rel=1e-5)


def test_mistakes_are_errors_before_anything_is_written(model, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(ConfigError, match="itself an input"):
        fill_dates(
            model, SOURCE, inputs=["s1"], rule=DateRule(), out=out,
            options=ReconstructOptions(outputs=("s2",)),
        )  # fmt: skip
    with pytest.raises(ConfigError, match="several gaps"):
        run(model, out, gap=2, options={"arrays": True})
    with pytest.raises(DataError, match="has a date to predict"):
        run(model, out, Given([SOURCE.read(0).clearest()]))
    assert not (out / "scores.json").exists()
    with pytest.raises(ConfigError, match="not for a scene"):
        multimae_eo.reconstruct(model, scene="s.yaml", out=out, inputs=["s2"], dates="each")
    with pytest.raises(ConfigError, match="need dates"):
        multimae_eo.reconstruct(model, data=SOURCE, out=out, inputs=["s2"], gap=2)


# Intervals -----------------------------------------------------------------------------------


def held_out(rng: np.random.Generator, count: int, factor: float) -> HeldOut:
    """Errors with a std of ``factor`` times the predictive one."""
    std = rng.uniform(0.05, 0.5, (2, count))
    zero, yes = np.zeros((2, count)), np.ones((2, count), dtype=bool)
    error = rng.normal(0, factor * std)
    return HeldOut(truth=error, valid=yes, between=yes, mean=zero, std=std, linear=zero,
                   nearest=zero)  # fmt: skip


@pytest.mark.parametrize("factor", [0.1, 1.0, 7.0])
def test_calibrated_intervals_hold_ninety_per_cent_of_new_truths(factor):
    rng = np.random.default_rng(0)
    modality = replace(SOURCE.modalities["s1"])
    calibration = IntervalCalibration(modality, np.ones(2))
    for _ in range(3):
        calibration.update(held_out(rng, 3_000, factor))
    scale = calibration.scale("here")
    new = held_out(rng, 20_000, factor)
    inside = np.abs(new.truth) <= scale.half_width(new.std)
    assert inside.mean(axis=1) == pytest.approx([0.9, 0.9], abs=0.012)
    raw = np.abs(new.truth) <= IntervalScale.normal(2).half_width(new.std)
    assert (abs(raw.mean() - 0.9) < 0.02) == (factor == 1.0)


def test_intervals_of_a_model_without_any_std_are_of_one_width_and_right():
    rng = np.random.default_rng(1)
    calibration = IntervalCalibration(SOURCE.modalities["s1"], np.array([1.0, 3.0]))
    held = held_out(rng, 5_000, 1.0)
    calibration.update(replace(held, std=np.zeros_like(held.std)))
    scale = calibration.scale("here")
    new = held_out(rng, 20_000, 1.0)
    half = scale.half_width(np.zeros_like(new.std))
    assert np.ptp(half, axis=1).max() == 0
    assert (np.abs(new.truth) <= half).mean() == pytest.approx(0.9, abs=0.012)


def test_no_pixel_to_calibrate_with_is_an_error():
    with pytest.raises(DataError, match="split val: no valid pixel of s1"):
        IntervalCalibration(SOURCE.modalities["s1"], np.ones(2)).scale("x, split val")
