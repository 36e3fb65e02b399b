"""What a user sees: the table, JSON, the page, and the verb."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from multimae_eo import cli
from multimae_eo.doctor import inspect
from multimae_eo.doctor.page import write_page
from multimae_eo.doctor.table import show, table
from multimae_eo.errors import FormatError, OutputError
from multimae_eo.reports.chip_pictures import mosaic
from multimae_eo.sources.synthetic import SyntheticSource
from multimae_eo.store.writer import prepare
from tests.support.planting import Planted


@pytest.fixture(scope="module")
def faulty():
    def edit(pixels, i):
        pixels["radar"] = 10 ** (pixels["radar"] / 10)
        if i == 0:
            pixels["landcover"][:, :4] = 77
        if i == 1:
            raise FormatError("chip-1.tif: cannot be read <b>")

    return Planted(SyntheticSource(12, 32, seed=1), edit)


@pytest.fixture(scope="module")
def diagnosis(faulty):
    return inspect(faulty)


def test_table_tells_severity_evidence_and_remedy(diagnosis):
    text = table(diagnosis, width=80)
    assert all(len(line) <= 80 for line in text.splitlines() if line.startswith(" "))
    assert "synthetic: 12 chips (train 8, val 2, test 2), all examined" in text
    assert "error    decibel  radar" in text
    assert "→ convert to dB" in text
    assert "\x1b[" not in text
    assert "\x1b[31;1merror" in table(diagnosis, colour=True)
    order = [f.severity for f in diagnosis.findings]
    assert order == sorted(order, key=["error", "warning", "note"].index)


def test_json_is_strict_and_complete(diagnosis):
    record = json.loads(json.dumps(diagnosis.to_dict(), allow_nan=False))
    assert record["counts"]["error"] == sum(f["severity"] == "error" for f in record["findings"])
    assert {b["band"] for b in record["bands"]} >= {"B4", "VV", "elevation"}
    assert all(f["remedy"] and f["evidence"] for f in record["findings"])
    shares = [c["share"] for c in record["classes"] if c["modality"] == "labels"]
    assert sum(shares) == pytest.approx(1.0)


@pytest.mark.slow
def test_page_is_one_file_with_pictures(diagnosis, faulty, tmp_path):
    path = write_page(diagnosis, faulty, tmp_path / "doctor.html")
    text = path.read_text(encoding="utf-8")
    assert "http://" not in text.replace("http://www.w3.org", "")
    assert "&lt;b&gt;" in text
    assert text.count("<img") >= 13 + 2  # a histogram per band, two class charts, mosaics
    assert [p.name for p in tmp_path.iterdir()] == ["doctor.html"]
    blocker = tmp_path / "file"
    blocker.write_text("")
    with pytest.raises(OutputError):
        write_page(replace(diagnosis, bands=(), classes=()), faulty, blocker / "doctor.html")


def test_mosaic_draws_every_chip_in_a_common_stretch():
    source = SyntheticSource(12, 32, seed=1, missing=0.4, nodata=0.5)
    samples = [source.read(i) for i in range(4)]
    figure = mosaic(samples, source.modalities)
    axes = figure.axes
    present = {n for s in samples for n in s.pixels}
    assert len(axes) == 4 * len(present)
    images = [np.asarray(a.images[0].get_array()) for a in axes]
    assert all(i.shape == (32, 32, 3) and i.dtype == np.uint8 for i in images)


def test_evidence_is_readable():
    assert show(0.123456) == "0.1235"
    assert show(float("nan")) == show(None) == "–"
    assert show({"train": 3, "test": [1, 2.0]}) == "train 3, test 1, 2"


@pytest.mark.slow
def test_verb_inspects_a_store(tmp_path, capsys):
    store = tmp_path / "store"
    prepare(SyntheticSource(12, 16, seed=1, missing=0.3, nodata=0.3), store)
    page = tmp_path / "report.html"
    assert cli.main(["inspect", str(store), "--html", str(page), "--chips", "6"]) == 0
    text = capsys.readouterr().out
    assert "6 examined" in text
    assert page.stat().st_size > 50_000
    assert cli.main(["inspect", str(store), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["chips"] == 12
    assert cli.main(["inspect", str(store), "--chips", "0"]) == 1
    assert cli.main(["inspect", str(tmp_path / "nothing")]) == 1
    assert "no such file" in capsys.readouterr().err
