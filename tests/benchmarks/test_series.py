"""Models of series against forests: splits by place, equal labels, no look at the test split."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import report
import series
import series_points
import series_sets

from multimae_eo import open_source
from multimae_eo.sources.base import Source

MONTHS = 4
CURVES = {"Cerrado": 0.3, "Pasture": 0.6, "Soy_Corn": 0.9}


def write_monthly(folder, points: int = 40) -> None:
    """Arrays in the layout of fuel_moisture: the target is elevation plus noise."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    values = rng.normal(size=(points, MONTHS, 18))
    site = np.arange(points) // 2
    arrays: dict[str, Any] = {
        "s1_s2_era5_srtm": values,
        "latlon": np.stack([30 + site * 0.7, -100 - site * 0.7], axis=1),
        "month": (np.arange(points)[:, None] + np.arange(MONTHS)) % 12,
        "target": values[:, 0, 15] * 10 + 100,
        "is_test": (site % 4 == 0).astype(int),
    }
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)


def write_patch(folder) -> None:
    """Arrays in the layout of slovenia_patch, 101 × 100 px: class 2 is green, class 3 is not."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    classes = rng.choice([0, 2, 3, 9], size=(101, 100, 1), p=[0.1, 0.5, 0.395, 0.005])
    cloud = rng.random((5, 101, 100, 1)) < 0.4
    arrays: dict[str, Any] = {
        "NDVI": np.where(classes == 2, 0.8, 0.2)[None] + np.zeros((5, 1, 1, 1)),
        "CLM": cloud.astype(np.uint8),
        "IS_VALID": ~cloud,
        "LULC": classes.astype(np.uint16),
    }
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    times = [f"2015-0{i}-11T10:00:08" for i in range(1, 6)]
    (folder / "timestamps.json").write_text(json.dumps(times))


def write_table(folder, points: int = 60) -> None:
    """A table in the layout of modis_sinop: the level of NDVI tells the class."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    names = rng.choice(list(CURVES), size=points)
    site = np.arange(points) // 3
    columns = {
        "id": [f"s{i:04d}" for i in range(points)],
        "longitude": (-55.0 - site).tolist(),
        "latitude": (-10.0 - site % 5).tolist(),
        "label": names.tolist(),
        "dates": [[f"2013-{m:02d}-14" for m in (9, 10, 11, 12)]] * points,
        "NDVI": [(CURVES[n] + rng.normal(0, 0.02, 4)).tolist() for n in names],
        "split": [("train", "train", "val", "test")[i % 4] for i in site],
    }
    pq.write_table(pa.table(columns), folder / "samples.parquet")


@pytest.fixture
def data(tmp_path, monkeypatch):
    folder = tmp_path / "data"
    below = folder / "time_series"
    write_table(below / "modis_sinop")
    for name in ("fuel_moisture", "algae_blooms"):
        write_monthly(below / name)
    write_patch(below / "slovenia_patch")
    monkeypatch.setenv("MULTIMAE_EO_DATA", str(folder))
    return folder


def test_arrays_become_tables_whose_splits_share_no_place(data, tmp_path):
    for name in series_sets.ARRAYS:
        source = series_sets.open_set(name, data, tmp_path / "tables")
        assert set(source.splits) == {"train", "val", "test"}
        of = {s: set(series_sets.places(source, source.split(s))) for s in source.splits}
        assert not of["train"] & of["val"]
        assert not of["train"] & of["test"]
        assert not of["val"] & of["test"]
    assert source.class_names == ("class 2", "class 3"), "none, and a class of few pixels, are out"


def test_blocks_of_a_patch_are_apart(data, tmp_path):
    source = series_sets.open_set("slovenia_patch", data, tmp_path / "tables")
    at = {s: np.array([[int(v) for v in source.keys[i].split("/")[1].split("_")]
                       for i in source.split(s)]) for s in source.splits}  # fmt: skip
    for one in ("train", "val"):
        apart = np.abs(at[one][:, None] - at["test"][None]).max(axis=2)
        assert apart.min() > 2 * series_sets._GAP
    samples = [source.read(i) for i in range(50)]
    clear = [s.validity("index").mean() for s in samples if s.pixels]  # else it was always cloudy
    assert 0.4 < np.mean(clear) < 0.8


def test_months_are_dates_in_order_across_the_year(data, tmp_path):
    source = series_sets.open_set("fuel_moisture", data, tmp_path / "tables")
    for index in range(12):
        days = source.read(index).dates["radar"]
        assert (np.diff(days) >= 28).all()
        assert (np.diff(days) <= 32).all()
    target = np.load(data / "time_series/fuel_moisture/target.npy")
    assert source.read(0).label == target[0]
    assert list(source.modalities) == ["radar", "optical", "weather", "terrain"]


def test_folds_keep_places_whole_and_leave_every_label_out_once(data, tmp_path):
    source = series_sets.open_set("modis_sinop", data, tmp_path)
    left_out: list[int] = []
    for fold in range(series_points.FOLDS):
        train, val = series_points.fold_of(source, fold)
        assert not set(series_sets.places(source, train)) & set(series_sets.places(source, val))
        assert not {source.split_of[i] for i in (*train, *val)} - {"train", "val"}
        left_out += val.tolist()
    assert sorted(left_out) == sorted((*source.split("train"), *source.split("val")))


def test_flattened_values_are_interpolated_between_dates(tmp_path):
    columns = {"id": ["a"], "dates": [["2019-01-01", "2019-01-02", "2019-01-05", "2019-01-06"]],
               "NDVI": [[1.0, None, 5.0, None]], "label": ["x"]}  # fmt: skip
    pq.write_table(pa.table(columns), tmp_path / "one.parquet")
    file = tmp_path / "one.yaml"
    file.write_text("series: one.parquet\ncolumns: {id: id, dates: dates, label: label}\n"
                    "modalities:\n  v: {custom: true, bands: [NDVI]}\n")  # fmt: skip
    values, _ = series_points.flat(open_source(file), np.array([0]))
    assert values.tolist() == [[1.0, 2.0, 5.0, 5.0]]
    season = series_points.calendar(open_source(file), np.array([0]))
    assert season[0] == pytest.approx([0.0, 1.0, 0, 1, 4, 5], abs=0.02), "the first of January"


def test_the_only_place_of_a_class_is_never_left_out(data, tmp_path):
    table = pq.read_table(data / "time_series/modis_sinop/samples.parquet").to_pydict()
    table["label"] = ["Forest" if i < 3 else n for i, n in enumerate(table["label"])]
    table["longitude"] = [-55.0 if i < 12 else x for i, x in enumerate(table["longitude"])]
    table["latitude"] = [-10.0 if i < 12 else y for i, y in enumerate(table["latitude"])]
    pq.write_table(pa.table(table), data / "time_series/modis_sinop/samples.parquet")
    source = series_sets.open_set("modis_sinop", data, tmp_path)
    for fold in range(series_points.FOLDS):
        train, _ = series_points.fold_of(source, fold)
        assert {0, 1, 2} <= set(train.tolist())
    assert series_points.usable_folds(source) == [1, 2, 3, 4], "the largest place was fold 0"


class NoTest(Source):
    """A source whose test labels are other ones."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.name, self.modalities, self.keys = source.name, source.modalities, source.keys
        self.split_of, self.class_names = source.split_of, source.class_names

    def read(self, index, names=None):
        sample = self.source.read(index, names)
        if self.split_of[index] == "test":
            object.__setattr__(sample, "label", (sample.label + 1) % len(self.class_names))
        return sample


def test_the_forest_is_tuned_without_the_test_labels(data, tmp_path):
    source = series_sets.open_set("modis_sinop", data, tmp_path)
    found, blind = (series_points.forest(s, 1, trees=9) for s in (source, NoTest(source)))
    assert found == blind
    outputs = np.array(found["outputs"][0])
    assert outputs.shape == (len(source.split("test")), 3)
    of, locations = series_points.scored(source, outputs, "accuracy")
    assert of(np.ones((1, locations)))[0] == 1.0, "the level tells the class"
    assert locations == len(source.split("test")) // 3, "points of one location count once"


def test_the_table_of_a_set_and_its_curve(data, tmp_path, capsys):
    command = ["points", "--set", "modis_sinop", "--out", str(tmp_path / "out"), "--steps", "2",
               "--seeds", "1"]  # fmt: skip
    series.main([*command, "--methods", "forest,forest with dates,pre-trained"])
    table = capsys.readouterr().out
    assert "| modis-sinop | 30 / 15 / 15 | accuracy |" in table
    before = (tmp_path / "out/modis-sinop/forest.json").read_bytes()
    series.main([*command, "--methods", "forest,probe"])
    assert (tmp_path / "out/modis-sinop/forest.json").read_bytes() == before
    assert (tmp_path / "out/modis-sinop/probe-0.json").exists()
    series.main(["early", "--set", "modis_sinop", "--out", str(tmp_path / "out")])
    record = json.loads((tmp_path / "out/series_early.json").read_text())
    assert {p["days"] for p in record["points"]} == {0.0, 30.0, 61.0, 91.0}
    assert [p.name for p in report.draw(tmp_path / "out", tmp_path)] == ["series_early.png"]


def test_a_budget_of_visible_tokens_grows_linearly_with_dates(tmp_path):
    """Memory is counted, not timed."""
    series.main(["cost", "--out", str(tmp_path), "--dates", "4,8,16", "--rounds", "1"])
    points = json.loads((tmp_path / "series_cost_cpu.json").read_text())["points"]
    memory = {p["dates"]: p["memory_bytes"] for p in points if p["way"] == "budget"}
    assert (memory[16] - memory[8]) == pytest.approx(2 * (memory[8] - memory[4]), rel=0.1)
    share = {p["dates"]: p["memory_bytes"] for p in points if p["way"] == "share"}
    assert (share[16] - share[8]) > 2.3 * (share[8] - share[4])
    assert [p.name for p in report.draw(tmp_path, tmp_path)] == ["series_cost_cpu.png"]
