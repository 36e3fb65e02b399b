from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from multimae_eo.errors import FormatError, OutputError
from multimae_eo.files import write_file
from multimae_eo.reports.curves import Curve, curve_figure, thin
from multimae_eo.reports.html import Report
from multimae_eo.reports.run_page import read_metrics, run_page, run_report
from multimae_eo.reports.tables import format_column, format_value

VOID = {"meta", "link", "img", "br"}


class Checker(HTMLParser):
    """Collects tags and insists that they nest."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def parsed(page: str) -> Checker:
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    return checker


def png(path: Path, side: int = 12) -> Path:
    Image.fromarray(np.zeros((side, side, 3), np.uint8)).save(path)
    return path


def test_everything_a_user_writes_is_escaped(tmp_path: Path) -> None:
    evil = '<script>alert("x")</script>&'
    page = (
        Report(evil, evil)
        .heading(evil)
        .text(evil)
        .facts({evil: evil})
        .table([{evil: evil}], evil)
        .picture(png(tmp_path / "a.png"), evil, evil)
        .gallery([(png(tmp_path / "b.png"), evil, evil)])
        .code(evil, evil)
        .html()
    )
    found = parsed(page)
    assert "script" not in {tag for tag, _ in found.seen}
    assert sum(evil in w for w in found.words) >= 10
    assert [a["alt"] for tag, a in found.seen if tag == "img"] == [evil, evil]


def test_a_page_needs_nothing_from_outside(tmp_path: Path) -> None:
    curve = Curve(label="a", x=np.arange(5.0), y=np.arange(5.0))
    page = Report("t").picture(curve_figure([curve], title="p"), "c").html()
    for tag, attrs in parsed(page).seen:
        for key in ("src", "href"):
            assert (attrs.get(key) or "data:").startswith("data:"), tag
    assert "@import" not in page
    assert "url(" not in page
    assert "prefers-color-scheme" in page
    assert 'name="viewport"' in page


def test_tables_align_numbers_and_show_gaps() -> None:
    page = Report("t").table([{"name": "a", "r2": 0.51234}, {"name": "b", "n": 12345}]).html()
    words = parsed(page).words
    assert {"0.5123", "12\u202f345", "—"} <= set(words)
    assert page.count('<td class="number">') == 4
    assert "<td>a</td>" in page


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "—"),
        (True, "yes"),
        (3, "3"),
        (np.int64(-1200), "−1\u202f200"),
        (np.float32(0.25), "0.25"),
        (-0.5, "−0.5"),
        (1234.6, "1\u202f235"),
        (0.0, "0"),
        (2e-6, "2.00e−06"),
        ("words", "words"),
    ],
)
def test_cells_read_well(value: object, text: str) -> None:
    assert format_value(value) == text


@pytest.mark.parametrize(("values", "cells"), [
    ([0.8, 0.8333, None], ["0.8000", "0.8333", "—"]),
    ([-1.5, 12.25], ["−1.50", "12.25"]),
    ([5, 0.001], ["5", "0.001"]),  # a count among them: not one quantity
    ([2127.0, 41.25], ["2\u202f127", "41.25"]),
    ([0.5, 1e-9], ["0.5", "1.00e-09".replace("-", "−")]),
    ([1.0, 2.0], ["1", "2"]),
    (["a", None], ["a", "—"]),
])  # fmt: skip
def test_a_columns_numbers_have_equally_many_decimals(values, cells) -> None:
    assert format_column(values) == cells


def test_pictures_that_are_none_are_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_text("no")
    for name, why in (
        ("bad.png", "read as a picture"),
        ("gone.png", "No such file"),
        ("a.tif", "not a"),
    ):
        with pytest.raises(FormatError, match=why):
            Report("t").picture(tmp_path / name)


def test_writing_is_whole_or_not_at_all(tmp_path: Path) -> None:
    path = write_file(tmp_path / "deep" / "x.bin", b"new")
    assert path.read_bytes() == b"new"
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="cannot be written"):
        write_file(tmp_path / "folder", b"x")
    with pytest.raises(OutputError, match="cannot be written"):
        write_file(path / "below-a-file", b"x")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["deep", "folder", "x.bin"]


COLUMNS = (
    "step,epoch,train/loss,train/rgb,val/loss,val/rgb,val_baseline/rgb,"
    "throughput/samples_per_s,lr\n"
)
METRICS = f"""{COLUMNS}\
0,0,2.0,2.0,,,,100,0.001
5,0,1.5,1.5,,,,300,0.001
5,0,,,1.2,1.2,1.6,,
5,0,1.4,1.4,,,,,
9,1,nan,1.0,,,,200,0.0005
9,1,,,0.4,0.4,1.6,,
"""


def run_folder(tmp_path: Path) -> Path:
    run = tmp_path / "my <run>"
    (run / "pictures").mkdir(parents=True)
    (run / "metrics.csv").write_text(METRICS)
    (run / "recipe.yaml").write_text("name: a & b\n")
    png(run / "pictures" / "step-9.png", 9)
    png(run / "pictures" / "step-10.png", 10)
    return run


def test_metrics_are_read_sparse_and_the_later_record_of_a_step_counts(tmp_path: Path) -> None:
    metrics = read_metrics(run_folder(tmp_path) / "metrics.csv")
    assert metrics.tasks == ["rgb"]
    assert metrics.of("train/rgb").tolist() == [[0, 5, 9], [2.0, 1.4, 1.0]]
    assert metrics.of("val/rgb").tolist() == [[5, 9], [1.2, 0.4]]
    assert metrics.last("train/loss") == 1.4
    assert metrics.dropped == 1
    assert metrics.last("nothing") is None


def test_a_run_report_tells_losses_beside_the_baseline(tmp_path: Path) -> None:
    run = run_folder(tmp_path)
    path = run_report(run)
    assert path == run / "report.html"
    page = path.read_text()
    found = parsed(page)
    words = " ".join(found.words)
    assert "Training run: my <run>" in words
    assert "0.75" in found.words  # skill: 1 - 0.4 / 1.6
    assert "200" in found.words  # the median rate
    assert "name: a & b" in words
    assert "1 recorded values were not finite" in words
    pictures = [a for tag, a in found.seen if tag == "img"]
    assert [a["width"] for a in pictures if a["src"].startswith("data:image/png")] == ["10"]
    assert "step-10.png" in words
    assert len(pictures) == 2 + 1 + 2  # losses, the reconstruction, speed


def test_a_run_without_recipe_pictures_or_validation_still_has_a_report(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("step,train/loss\n0,1.0\n1,0.5\n")
    page = run_page(tmp_path).html()
    assert "Recipe" not in page
    assert len(re.findall("<img", page)) == 1
    (tmp_path / "metrics.csv").write_text("step,train/loss\n")
    assert "<img" not in run_page(tmp_path).html()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "is .* a run folder"),
        ("a,b\n1,2\n", "no column 'step'"),
        ("step,x\n1,two\n", "read as"),
    ],
)
def test_damaged_metrics_are_told(tmp_path: Path, content: str | None, why: str) -> None:
    if content is not None:
        (tmp_path / "metrics.csv").write_text(content)
    with pytest.raises(FormatError, match=why):
        run_report(tmp_path)


def test_long_curves_are_averaged_not_sampled() -> None:
    x = np.arange(1001.0)
    y = np.where(x % 2 == 0, 1.0, 3.0)
    thin_x, thin_y = thin(x, y, most=100)
    assert len(thin_x) == 100
    assert thin_y == pytest.approx(np.full(100, 2.0), abs=0.12)
    assert np.average(thin_x, weights=None) == pytest.approx(x.mean(), rel=0.01)
    assert thin(x[:5], y[:5])[0].tolist() == x[:5].tolist()
