"""Faults of dates, planted in synthetic series: the doctor names them, and only then."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from multimae_eo.doctor import Finding, inspect
from multimae_eo.sources.base import Source
from multimae_eo.sources.phenology import SeriesOptions, SyntheticSeries

CHECKS = ("repeated-dates", "date-gaps", "seasons", "dates")


class Edited(Source):
    """The chips of a farmland after ``edit``: (sample, index) → sample."""

    def __init__(self, edit) -> None:
        self.inner, self.edit = SyntheticSeries(30, 6, options=SeriesOptions(dates=18)), edit
        self.name, self.modalities = self.inner.name, self.inner.modalities
        self.keys, self.split_of = self.inner.keys, self.inner.split_of
        self.class_names = self.inner.class_names

    def read(self, index, names=None):
        return self.edit(self.inner.read(index, names), index)


def checks(edit) -> dict[str, Finding]:
    return {f.check: f for f in inspect(Edited(edit)).findings if f.check in CHECKS}


def test_regular_series_have_no_finding():
    assert checks(lambda sample, i: sample) == {}


def test_two_acquisitions_within_an_hour():
    def edit(sample, i):
        dates = sample.dates["s2"].copy()
        dates[1] = dates[0] + 0.01
        return replace(sample, dates={"s2": dates}) if i < 3 else sample

    finding = checks(edit)["repeated-dates"]
    assert finding.evidence["chips"] == 3
    assert finding.where == "s2"


def test_long_gaps():
    def edit(sample, i):
        keep = np.ones(18, bool)
        keep[4:12] = i != 7
        return sample.at_dates({"s2": keep})

    finding = checks(edit)["date-gaps"]
    assert finding.evidence["chips"] == 1
    assert finding.chips == ("farm-00007",)


def test_test_dates_in_months_without_training_dates():
    def edit(sample, i):
        early = np.arange(18) < 9
        test = i >= 21
        return sample.at_dates({"s2": ~early if test else early})

    finding = checks(edit)["seasons"]
    assert "test" in finding.what


def test_images_among_series():
    finding = checks(lambda sample, i: sample.clearest() if i < 4 else sample)["dates"]
    assert finding.evidence == {"chips": 4, "series": 26}
