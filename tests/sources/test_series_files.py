"""Series from files: a file for each date, and tables of points."""

from __future__ import annotations

import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from multimae_eo import open_source
from multimae_eo.errors import ConfigError, DataError, FormatError
from multimae_eo.sample import collate
from multimae_eo.sources.acquisition_dates import date_text, days_since_1970
from multimae_eo.sources.dataset.chip_files import Pattern
from multimae_eo.store.writer import prepare

YAML = """
name: farm
modalities:
  heat: {{path: "{path}", custom: true, bands: [red, nir], file_bands: [red, nir], nodata: -1}}
  height: {{path: "height/{{id}}.npy", custom: true, bands: [z], file_bands: [z]}}
"""

# Dates --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "days"),
    [
        ("1970-01-01", 0.0),
        ("19700102", 1.0),
        ("1970-01-02T12:00", 1.5),
        ("19700102T120000", 1.5),
        ("1970-01-02T12:00:00.000Z", 1.5),
        ("1969-12-31", -1.0),
        ("2020-02-29", 18321.0),
    ],
)
def test_dates_become_days_and_texts_again(text, days):
    assert days_since_1970(text) == days
    assert date_text(days) == text[:10] or date_text(days).replace("-", "") == text[:8]


@pytest.mark.parametrize(
    "text", ["", "2019", "15.07.2019", "2019-13-01", "2019-02-29", "x2019-01-01"]
)
def test_what_is_no_date_is_refused(text):
    with pytest.raises(ValueError, match="is no date"):
        days_since_1970(text)


def test_a_pattern_finds_id_and_date():
    pattern = Pattern("s2/{id}_{date}.tif")
    assert pattern.dated
    assert pattern.key("s2/a_1_20190715T102031.tiff") == "a_1"
    assert pattern.days("s2/a_1_2019-07-15.tif") == days_since_1970("2019-07-15")
    assert pattern.key("s2/a_1.tif") is None
    folders = Pattern("{date}/{id}/{date}_B4.tif")
    assert folders.key("20190715/x/20190715_B4.tif") == "x"
    assert folders.key("20190715/x/20190716_B4.tif") is None
    with pytest.raises(ConfigError, match="knows only"):
        Pattern("{id}/{day}.tif")


# Files of dates -----------------------------------------------------------------------------


def written(folder: Path, path: str = "heat/{id}/{date}.npy") -> Path:
    rng = np.random.default_rng(0)
    for key, dates in {"a": ("2019-05-01", "2019-03-01", "2019-07-09"), "b": ("20190402",)}.items():
        for date in dates:
            file = folder / path.format(id=key, date=date)
            file.parent.mkdir(parents=True, exist_ok=True)
            np.save(file, rng.integers(0, 99, (2, 6, 6)).astype(np.int16))
        (folder / "height").mkdir(exist_ok=True)
        np.save(folder / f"height/{key}.npy", np.full((1, 6, 6), 3, np.int16))
    file = folder / "farm.yaml"
    file.write_text(YAML.format(path=path))
    return file


def test_a_chip_is_read_from_a_file_of_each_date(tmp_path):
    source = open_source(written(tmp_path))
    a, b = source.read(0), source.read(1)
    texts = [date_text(d) for d in a.dates["heat"]]
    assert texts == ["2019-03-01", "2019-05-01", "2019-07-09"]
    assert a.pixels["heat"].shape == (3, 2, 6, 6)
    assert np.array_equal(a.pixels["heat"][1], np.load(tmp_path / "heat/a/2019-05-01.npy"))
    assert a.pixels["height"].shape == (1, 6, 6)
    assert b.pixels["heat"].shape == (1, 2, 6, 6)
    assert source.notes == ()
    batch = collate([a, b], source.modalities)
    assert batch.dates["heat"].shape == (2, 3)
    store = prepare(source, tmp_path / "store")
    assert np.array_equal(store.read(0).pixels["heat"], a.pixels["heat"])


def test_dates_without_a_valid_pixel_are_left_out(tmp_path):
    file = written(tmp_path, "heat/{id}_{date}.npy")
    path = tmp_path / "heat/a_2019-05-01.npy"
    np.save(path, np.full((2, 6, 6), -1, np.int16))
    part = np.load(tmp_path / "heat/a_2019-07-09.npy")
    part[:, 0] = -1
    np.save(tmp_path / "heat/a_2019-07-09.npy", part)
    sample = open_source(file).read(0)
    assert [date_text(d) for d in sample.dates["heat"]] == ["2019-03-01", "2019-07-09"]
    assert sample.valid["heat"].shape[0] == 2
    assert sample.valid["heat"][0].all()
    assert not sample.valid["heat"][1, :, 0].any()
    for path in (tmp_path / "heat").glob("a_*.npy"):
        np.save(path, np.full((2, 6, 6), -1, np.int16))
    assert "heat" not in open_source(file).read(0).pixels


def test_what_is_wrong_with_dates_is_named(tmp_path):
    file = written(tmp_path)
    np.save(tmp_path / "heat/a/20190501.npy", np.zeros((2, 6, 6), np.int16))
    with pytest.raises(DataError, match=r"are both chip 'a' .* on 2019-05-01"):
        open_source(file)
    (tmp_path / "heat/a/20190501.npy").rename(tmp_path / "heat/a/20190532.npy")
    with pytest.raises(DataError, match=r"20190532\.npy: .*no date of the calendar"):
        open_source(file)
    (tmp_path / "heat/a/20190532.npy").unlink()
    np.save(tmp_path / "heat/a/2019-05-01.npy", np.zeros((2, 3, 3), np.int16))
    with pytest.raises(FormatError, match=r"2019-05-01.npy: heat: 3×3 px"):
        open_source(file).read(0)
    text = file.read_text() + 'labels: {mask: "{id}/{date}.npy", classes: [x, y]}\n'
    file.write_text(text)
    with pytest.raises(ConfigError, match="only `path:` and `chips:`"):
        open_source(file)


# Tables of points ---------------------------------------------------------------------------

POINTS = """
series: points.parquet
columns: {id: name, dates: when, label: crop, split: part, longitude: lon, latitude: lat}
modalities:
  modis: {custom: true, bands: [NDVI, EVI], nodata: -9}
"""


def table(folder: Path, **changes: list[object]) -> Path:
    columns: dict[str, list[object]] = {
        "name": ["p0", "p1", "p2"],
        "when": [["2019-05-01", "2019-03-01"], ["2019-01-01"], ["2020-01-01", "2020-02-01"]],
        "NDVI": [[0.5, 0.3], [0.1], [None, 0.7]],
        "EVI": [[0.4, -9.0], [0.2], [float("nan"), 0.6]],
        "crop": ["maize", "wheat", None],
        "part": ["train", "training", "test"],
        "lon": [10.0, 11.0, 12.0],
        "lat": [50.0, 50.0, 50.0],
    }
    pq.write_table(pa.table({**columns, **changes}), folder / "points.parquet")
    file = folder / "points.yaml"
    file.write_text(POINTS)
    return file


def test_points_are_chips_of_one_pixel(tmp_path):
    source = open_source(table(tmp_path))
    assert source.name == "points"
    assert source.keys == ["p0", "p1", "p2"]
    assert source.split_of == ["train", "train", "test"]
    assert source.class_names == ("maize", "wheat")
    first = source.read(0)
    assert [date_text(d) for d in first.dates["modis"]] == ["2019-03-01", "2019-05-01"]
    assert first.pixels["modis"].shape == (2, 2, 1, 1)
    assert first.pixels["modis"][:, 0, 0, 0].tolist() == [0.3, 0.5]
    assert first.valid["modis"][:, 1, 0, 0].tolist() == [False, True]
    assert first.label == 0
    assert first.geometry.crs == "EPSG:4326"
    last = source.read(2)
    assert last.label is None
    assert not last.valid["modis"][0].any()
    assert np.isfinite(last.pixels["modis"]).all()


def test_values_and_time_stamps_of_points(tmp_path):
    stamps: list[object] = [[datetime.datetime(2019, 5, 1, 12), datetime.datetime(2019, 6, 1)]] * 3
    file = table(
        tmp_path, when=stamps, NDVI=[[0.1, 0.2]] * 3, EVI=[[0.3, 0.4]] * 3, crop=[1.5, 2.0, None]
    )
    file.write_text(POINTS + "numeric: true\n")
    source = open_source(f"series:{file}")
    assert source.class_names == ()
    assert source.read(0).label == 1.5
    assert source.read(0).dates["modis"][0] == days_since_1970("2019-05-01") + 0.5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": ["p0", "p0", "p1"]}, "'p0' is listed twice"),
        ({"when": [["2019"]] * 3, "NDVI": [[1.0]] * 3, "EVI": [[1.0]] * 3}, "'2019' is no date"),
        ({"when": [[], [], []]}, "'p0' has no date"),
        ({"NDVI": [[0.5], [0.1], [0.7, 0.7]]}, "'p0': NDVI has 1 values, 2 dates"),
    ],
)
def test_rows_that_do_not_fit_are_named(tmp_path, changes, message):
    file = table(tmp_path, **changes)
    with pytest.raises(DataError, match=message):
        open_source(file).read(0)


def test_tables_lie_below_the_folder_of_data(tmp_path, monkeypatch):
    file = table(tmp_path)
    file.write_text(POINTS.replace("points.parquet", "${MULTIMAE_EO_DATA:-../data}/points.parquet"))
    monkeypatch.setenv("MULTIMAE_EO_DATA", str(tmp_path))
    assert len(open_source(file)) == 3
    monkeypatch.setenv("MULTIMAE_EO_DATA", str(tmp_path / "elsewhere"))
    with pytest.raises(ConfigError, match="no such file; set MULTIMAE_EO_DATA"):
        open_source(file)
    file.write_text(POINTS.replace("points.parquet", "${HOME}/points.parquet"))
    with pytest.raises(ConfigError, match=r"series: only .*MULTIMAE_EO_DATA"):
        open_source(file)


def test_columns_that_are_lacking_are_named(tmp_path):
    file = table(tmp_path)
    file.write_text(POINTS.replace("EVI", "EVJ"))
    with pytest.raises(ConfigError, match="no column 'EVJ'"):
        open_source(file)
    file.write_text(POINTS.replace("points.parquet", "other.parquet"))
    with pytest.raises(ConfigError, match="no such file"):
        open_source(file)
    file.write_text(POINTS.replace(", longitude: lon", ""))
    with pytest.raises(ConfigError, match="both longitude and latitude"):
        open_source(file)
    (tmp_path / "points.parquet").write_text("no table")
    file.write_text(POINTS)
    with pytest.raises(ConfigError, match="Parquet"):
        open_source(file)
