"""What a model's makers state of it: licence, data and scores, for its card and STAC item."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Score:
    """A score that was measured. ``metric``: its name, such as ``miou``."""

    metric: str
    value: float
    dataset: str
    split: str = "validation"


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What a model cannot state of itself.

    ``license``: SPDX identifier of the weights, "" where it is not declared. ``datasets``: names of
    the training data. ``scores``: as measured.
    """

    license: str = ""
    datasets: tuple[str, ...] = ()
    scores: tuple[Score, ...] = ()
