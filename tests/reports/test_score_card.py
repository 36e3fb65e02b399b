"""Cards say what the predictions say, for every kind of task, and are whole or not there."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from multimae_eo.class_colors import class_colors
from multimae_eo.errors import DataError, OutputError
from multimae_eo.metrics.task_metrics import Predictions, values_of
from multimae_eo.reports.chip_pictures import chosen_chips, painted
from multimae_eo.reports.score_card import Cost, card
from multimae_eo.reports.tables import markdown_table
from multimae_eo.sources.synthetic import SyntheticSource
from tests.support.marks import mostly_slow


@pytest.fixture(scope="module")
def source() -> SyntheticSource:
    return SyntheticSource(chips=30, size=16, seed=0)


def classified(source: SyntheticSource, chips: int = 20) -> Predictions:
    rng = np.random.default_rng(0)
    names = source.class_names
    truth = rng.integers(0, 3, chips)
    probability = rng.dirichlet(np.full(len(names), 0.3), chips)
    return Predictions(
        kind="classification",
        keys=tuple(source.keys[:chips]),
        truth=truth,
        predicted=probability.argmax(axis=1),
        class_names=names,
        probability=probability,
    )


def of_kind(kind: str, source: SyntheticSource) -> Predictions:
    rng = np.random.default_rng(0)
    keys, probability = tuple(source.keys[:9]), None
    names: tuple[str, ...] = ("land", "water & <ice>")
    truth: np.ndarray
    predicted: np.ndarray
    if kind == "multilabel":
        truth, probability = rng.integers(0, 2, (9, 2)), rng.random((9, 2))
        predicted = (probability > 0.5).astype(int)
    elif kind == "segmentation":
        truth, predicted = rng.integers(-1, 2, (9, 16, 16)), rng.integers(0, 2, (9, 16, 16))
        probability = rng.random((9, 16, 16))
    else:
        truth, predicted, names = rng.random(9), rng.random(9), ()
    return Predictions(
        kind=kind,  # type: ignore[arg-type]
        keys=keys,
        truth=truth,
        predicted=predicted,
        class_names=names,
        probability=probability,
    )


def test_a_card_holds_scores_beside_baselines_and_cost(source, tmp_path):
    told = classified(source)
    flat = Predictions(kind="classification", keys=told.keys, truth=told.truth,
                       predicted=np.zeros(20, int), class_names=told.class_names)  # fmt: skip
    page = card(
        told,
        tmp_path,
        title="A card",
        baselines=[("one class", flat)],
        source=source,
        cost=Cost(parameters=1000, seconds=0.5, chips=20),
    )
    text = (tmp_path / "card.md").read_text(encoding="utf-8")
    for name, shown in (("this model", told), ("one class", flat)):
        line = next(row for row in text.splitlines() if name in row)
        value, low, high = (
            float(v) for v in re.findall(r"(\d\.\d+) \[(\d\.\d+), (\d\.\d+)\]", line)[0]
        )
        assert value == pytest.approx(values_of(shown)["accuracy"], abs=5e-4)
        assert low <= value <= high
    assert "chips/s: 40" in text
    html = page.read_text(encoding="utf-8")
    assert "water" in html
    assert html.count("<img") == 4, "classes, confusion, reliability, examples"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["card.md", "report.html"]


@pytest.mark.parametrize(
    "kind",
    mostly_slow(["multilabel", "segmentation", "regression"], fast=["multilabel", "regression"]),
)
def test_every_kind_has_a_card(source, tmp_path, kind):
    told = of_kind(kind, source)
    html = card(told, tmp_path, title=f"{kind} <1>", source=source).read_text(encoding="utf-8")
    assert "&lt;1&gt;" in html
    assert "<ice>" not in re.sub(r"<img[^>]*>", "", html)
    text = (tmp_path / "card.md").read_text(encoding="utf-8")
    first = next(iter(values_of(told)))
    assert f"| {first} |" in text
    assert ("IoU" in text) == (kind != "regression")


def test_a_card_without_source_or_probability_is_smaller(tmp_path, source):
    told = classified(source)
    bare = Predictions(
        kind="classification", keys=told.keys, truth=told.truth, predicted=told.predicted
    )
    html = card(bare, tmp_path, title="bare").read_text(encoding="utf-8")
    assert html.count("<img") == 2
    assert "calibration" not in html


def test_examples_are_the_best_and_the_worst(source):
    told = classified(source)
    easy = np.where(np.arange(20) % 2, told.truth, told.predicted)
    told = replace(told, truth=easy)
    rows = chosen_chips(told, 6)
    right = told.truth == told.predicted
    assert right[rows].tolist() == [True] * 3 + [False] * 3
    sure = told.probability.max(axis=1)
    assert sure[rows[0]] == sure[right].max()
    assert sure[rows[3]] == sure[~right].max()
    assert sorted(chosen_chips(told, 100)) == list(range(20))


def test_ignored_pixels_are_painted_apart():
    image = painted(np.array([[-1, 0], [1, 1]]), class_colors(["water", "forest"]))
    assert image.shape == (2, 2, 3)
    assert len({tuple(c) for c in image.reshape(-1, 3)}) == 3


def test_a_chip_that_the_source_lacks_is_told(source, tmp_path):
    told = Predictions(
        kind="classification",
        keys=("chip-99999",),
        truth=np.zeros(1, int),
        predicted=np.zeros(1, int),
    )
    with pytest.raises(DataError, match="no chip 'chip-99999'"):
        card(told, tmp_path / "out", title="x", source=source)
    assert not (tmp_path / "out").exists()


def test_a_card_that_cannot_be_written_is_told(source, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        card(classified(source), Path(blocked) / "card", title="x")


def test_markdown_tables_keep_bars_in_their_cells():
    assert markdown_table([{"a": "x|y", "b": 1.5}]) == ["| a | b |", "|---|---|", "| x\\|y | 1.5 |"]
    assert markdown_table([]) == []


def test_the_best_maps_show_several_classes_where_there_are_any():
    truth = np.zeros((6, 4, 4), int)
    truth[2:4, :2] = 1
    predicted = np.where(np.arange(6)[:, None, None] >= 4, 1, truth)
    told = Predictions(kind="segmentation", keys=tuple("abcdef"), truth=truth, predicted=predicted)
    assert chosen_chips(told, 4) == [2, 3, 4, 5]
