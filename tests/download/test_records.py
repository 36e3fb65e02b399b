"""The package's records are complete and safe; a wrong record is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

import multimae_eo
from multimae_eo.download.records import public_record, public_records
from multimae_eo.errors import ConfigError
from tests.support.paths import ROOT

RECORDS = public_records()
GOOD = {
    "title": "t", "licence": "MIT", "source": "https://a.org", "folder": "a",
    "files": [{"address": "https://a.org/a.zip", "bytes": 5}],
}  # fmt: skip


@pytest.mark.parametrize("name", RECORDS)
def test_every_record_names_source_licence_and_bounds(name):
    record = RECORDS[name]
    assert record.licence
    assert record.source.startswith("https://")
    for file in record.files:
        assert file.max_bytes > 0
        if file.size is None or file.checksum is None or not file.address:
            assert record.note, "what is not confirmed is stated"
        if file.unpacking is not None:
            assert file.name.endswith((".zip", ".tar.gz"))
    for example in record.examples:
        assert f"multimae-eo fetch {name}" in (ROOT / example).read_text(encoding="utf-8")


def test_folders_do_not_contain_one_another():
    folders = [Path(r.folder) for r in RECORDS.values()]
    assert len(set(folders)) == len(folders)
    assert not [(a, b) for a in folders for b in folders if a in b.parents]


def test_every_example_states_its_source_and_how_to_fetch_it():
    for path in sorted((ROOT / "examples").glob("*.yaml")):
        record = yaml.safe_load(path.read_text(encoding="utf-8"))
        if "modalities" not in record:
            continue  # a recipe
        text = path.read_text(encoding="utf-8")
        location = record["series"] if "series" in record else record["root"]
        made_here = "benchmarks/series.py table" in text
        assert made_here or location.startswith("${MULTIMAE_EO_DATA:-../data}/"), path
        assert "Licence:" in text or "lists" in text, path
        assert "multimae-eo fetch " in text or "not fetched" in text, path


def test_the_public_names():
    assert [r.name for r in multimae_eo.public_data()] == list(RECORDS)
    with pytest.raises(ConfigError, match="did you mean 'eurosat-ms'"):
        public_record("eurosat_ms")


def test_several_files_of_one_pattern():
    names = [f.name for f in RECORDS["terramind-examples"].files]
    assert len(names) == 25
    assert "S2L2A/38D_378R_2_3.tif" in names
    assert RECORDS["terramind-examples"].files[0].address.endswith("/S2L2A/282D_485L_3_3.tif")
    assert RECORDS["eurosat-ms"].size == 2_065_402_329
    assert RECORDS["sen1floods11"].size is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"folder": "../a"}, "relative path"),
        ({"folder": "/a"}, "relative path"),
        ({"folder": None}, "folder: is missing"),
        ({"licence": None}, "licence: is missing"),
        ({"files": []}, "at least one file"),
        ({"files": "a"}, "at least one file"),
        ({"colour": "red"}, "unknown key 'colour'"),
        ({"checkpoint": "b.pth"}, "no such file"),
        ({"files": [{"address": "http://a.org/a", "bytes": 5}]}, "begins with https://"),
        ({"files": [{"address": "file:///a", "bytes": 5}]}, "begins with https://"),
        ({"files": [{"address": "https://a.org/a"}]}, "either bytes or at_most"),
        ({"files": [{"address": "https://a.org/a", "bytes": 5, "at_most": 6}]}, "either bytes"),
        ({"files": [{"address": "https://a.org/a", "bytes": 0}]}, "at least 1"),
        ({"files": [{"address": "https://a.org/a", "bytes": True}]}, "at least 1"),
        ({"files": [{"address": "https://a.org/", "bytes": 5}]}, "relative path"),
        ({"files": [{"name": "../x", "bytes": 5}]}, "relative path"),
        ({"files": [{"name": "a", "bytes": 5, "md5": "12"}]}, "32 hexadecimal digits"),
        ({"files": [{"name": "a", "bytes": 5, "sha256": "z" * 64}]}, "64 hexadecimal digits"),
        ({"files": [{"name": "a", "bytes": 5}, {"name": "a", "bytes": 5}]}, "given twice"),
        ({"files": [{"name": "{i}", "bytes": 5, "each": {"i": 3}}]}, "lists of values"),
        ({"files": [{"name": "a.zip", "bytes": 5, "unpack": {"files": 5}}]}, "give at_most"),
    ],
)
def test_wrong_records_are_refused(tmp_path, change, message):
    path = tmp_path / "records.yaml"
    path.write_text(yaml.safe_dump({"good": GOOD, "bad": {**GOOD, **change}}))
    with pytest.raises(ConfigError, match=message) as error:
        public_records(path)
    assert "bad" in str(error.value)
