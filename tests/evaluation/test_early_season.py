"""Scores from the first days of series: later dates are withheld, and more of them help."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from multimae_eo import MultiMAE, Predictor
from multimae_eo.errors import ConfigError
from multimae_eo.evaluation.early_season import DatesUntil, early_season
from multimae_eo.network.config import EncoderConfig, HeadConfig, InputConfig, ModelConfig
from multimae_eo.network.target import Target
from multimae_eo.reports.tables import number_in
from multimae_eo.sources.phenology import CROPS, SeriesOptions, SyntheticSeries
from multimae_eo.store.writer import prepare

SOURCE = SyntheticSeries(24, 4, options=SeriesOptions(dates=9, radar=True))


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    torch.manual_seed(0)
    config = ModelConfig(
        encoder=EncoderConfig(width=16, depth=1, heads=2),
        inputs={n: InputConfig(size=4, patch=4) for n in SOURCE.modalities},
    )
    encoder = MultiMAE(SOURCE.modalities, (), config, SOURCE.statistics())
    target = Target(kind="class", classes=CROPS, counts=(1.0,) * 4, total=4.0)
    return Predictor(encoder, target, HeadConfig(dates="attention"))


def test_later_dates_are_withheld_and_the_first_one_is_of_any_series():
    for i in range(6):
        sample, early = SOURCE.read(i), DatesUntil(SOURCE, 100.0).read(i)
        first = min(d[0] for d in sample.dates.values())
        for name, dates in sample.dates.items():
            kept = dates[dates <= first + 100]
            assert np.array_equal(early.dates.get(name, np.array([])), kept)
        assert "elevation" in early.pixels
    assert DatesUntil(SOURCE, 400.0).read(0).dates["s2"].size == 9


def test_rows_curve_and_tables(predictor, tmp_path):
    rows = early_season(predictor, SOURCE, [400, 0, 60], out=tmp_path / "early")
    assert [r["days"] for r in rows] == [0.0, 60.0, 400.0]
    dates = [number_in(r, "dates") for r in rows]
    assert dates == sorted(dates)
    assert dates[0] == 1
    assert all(0 <= number_in(r, "accuracy") <= 1 for r in rows)
    assert json.loads((tmp_path / "early/early.json").read_text()) == rows
    assert "early.csv" in {p.name for p in (tmp_path / "early").iterdir()}
    assert "<img" in (tmp_path / "early/early.html").read_text()


def test_all_days_are_the_full_score(predictor):
    from multimae_eo.evaluation.predictions import evaluate

    (row,) = early_season(predictor, SOURCE, [1000])
    full = evaluate(predictor, SOURCE)["metrics"]["accuracy"]["value"]
    assert row["accuracy"] == full


@pytest.mark.parametrize("days", [[], [-1.0], [float("nan")]])
def test_days_that_are_none_are_refused(predictor, days):
    with pytest.raises(ConfigError, match="days: expected"):
        early_season(predictor, SOURCE, days)


def test_data_without_dates_are_refused(predictor):
    class Images(SyntheticSeries):
        def read(self, index, names=None):
            return super().read(index, names).clearest()

    with pytest.raises(ConfigError, match="has dates"):
        early_season(predictor, Images(24, 4, options=SeriesOptions(radar=True)), [10])


def test_the_command_prints_a_row_for_each_number(predictor, tmp_path, capsys):
    from multimae_eo.cli.main import main

    prepare(SOURCE, tmp_path / "store")
    predictor.save_pretrained(tmp_path / "model")
    command = ["evaluate", "--model", str(tmp_path / "model"), "--data", str(tmp_path / "store")]
    command += ["--device", "cpu", "--precision", "32-true"]
    assert main([*command, "--days", "30,300"]) == 0
    out = capsys.readouterr().out
    assert out.count("\n|") == 3
    assert "| 30 " in out
    assert main([*command, "--days", "soon"]) == 1
    assert "expected numbers" in capsys.readouterr().err
    assert main([*command, "--days", "30", "--drop", "all"]) == 1
    assert main([*command, "--days", "30", "--adapt", "2"]) == 1
    assert "leave --adapt out" in capsys.readouterr().err
