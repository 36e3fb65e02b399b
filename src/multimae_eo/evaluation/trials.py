"""Trials: one configuration at one label fraction, what it predicted, and how trials compare.

A trial is kept in one file, which is there whole or not at all: what an interrupted study or
benchmark finished is not done again.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from multimae_eo.errors import FormatError
from multimae_eo.files import write_file
from multimae_eo.metrics.intervals import (
    hierarchical_interval,
    holm,
    paired_interval,
    permutation_test,
)
from multimae_eo.metrics.task_metrics import (
    Counts,
    Judged,
    MapCounts,
    Predictions,
    all_scores,
    chip_outcomes,
    scores_of,
)
from multimae_eo.network.config import FORMER_POOLS
from multimae_eo.reports.tables import interval_rows

PRETRAINED = "pre-trained"
FINETUNING = "fine-tuning"
RANDOM_INITIALISATION = "random initialisation"

# Arrays of a cell's file, by the field of Counts: names of the format.
_COUNTS = {"hit": "hit", "true": "true", "guessed": "predicted"}
# Names of features in records of versions before 0.2.
_FORMER_FEATURES = {"from scratch": RANDOM_INITIALISATION}
FORMER_NAMES: Mapping[str, str] = {"scratch": "random-init", **FORMER_POOLS}
"""Names of methods and features before 0.2, which options and finished trials may have."""
_NAMES_IN_FILES = {new: old for old, new in FORMER_NAMES.items()}


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One configuration at one label fraction: predictions of the test chips, one per seed."""

    inputs: str
    features: str
    method: str
    percent: float
    train_chips: int
    chosen: tuple[float | str, ...]
    predictions: tuple[Judged, ...]
    seconds: float
    """What encoding (or predicting) the test chips took."""
    validation: tuple[float, ...] = ()
    """The first score on the validation split, one per seed, where it was kept."""

    @property
    def score(self) -> str:
        """Name of the score that matters first."""
        return next(iter(scores_of(self.predictions[0])))

    def row(self, seed: int) -> dict[str, Any]:
        """Its scores, means over seeds, with 95 % intervals over seeds and chips."""
        chips = len(self.predictions[0])
        by_seed = [all_scores(p) for p in self.predictions]
        picked = list(dict.fromkeys(self.chosen))
        return {
            "inputs": self.inputs,
            "features": self.features,
            "method": self.method,
            "labels %": self.percent,
            "train chips": self.train_chips,
            "seeds": len(self.predictions),
            "chosen": picked[0] if len(picked) == 1 else ", ".join(map(_short, picked)),
            "test chips": chips,
            **interval_rows(
                {
                    name: hierarchical_interval([s[name] for s in by_seed], chips, seed=seed)
                    # A class that no pixel has may be predicted with one seed and not with another.
                    for name in by_seed[0]
                    if all(name in s for s in by_seed)
                }
            ),
        }


def merged(trials: Sequence[Trial]) -> Trial:
    """Trials of the same configuration with other seeds, as one."""
    return replace(
        trials[0],
        chosen=tuple(c for t in trials for c in t.chosen),
        predictions=tuple(p for t in trials for p in t.predictions),
        validation=tuple(v for t in trials for v in t.validation),
    )


class TrialFiles:
    """Finished trials in a folder, by what names them; None keeps nothing."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def get(self, *names: str) -> Trial | None:
        """The trial of these names, if it is finished; FormatError for a damaged file."""
        path = None if self.folder is None else self._path(self.folder, names)
        return None if path is None or not path.exists() else read_trial(path)

    def _path(self, folder: Path, names: Sequence[str]) -> Path:
        return folder / f"{slug(*(_NAMES_IN_FILES.get(n, n) for n in names))}.npz"

    def put(self, trial: Trial, *names: str) -> Trial:
        """Keep a trial; raises OutputError."""
        if self.folder is not None:
            held = io.BytesIO()
            np.savez_compressed(held, **_packed(trial))
            write_file(self._path(self.folder, names), held.getvalue())
        return trial


def read_trial(path: Path) -> Trial:
    """The trial in a file of ``TrialFiles``; FormatError where it is damaged."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return _unpacked(arrays)
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise FormatError(f"{path}: damaged; delete it to compute it again") from error


def slug(*names: str) -> str:
    """A file name that is readable and, by a digest, unique."""
    text = re.sub(r"[^A-Za-z0-9.=+-]+", "_", " ".join(names))[:80].strip("_.")
    digest = hashlib.blake2b("\0".join(names).encode(), digest_size=4).hexdigest()
    return f"{text}-{digest}"


def _packed(trial: Trial) -> dict[str, Any]:
    first = trial.predictions[0]
    record = {
        **{
            name: getattr(trial, name)
            for name in ("inputs", "features", "method", "percent", "train_chips", "chosen",
                         "seconds", "validation")
        },
        "kind": first.kind,
        "class_names": first.class_names,
        "seeds": len(trial.predictions),
    }  # fmt: skip
    arrays: dict[str, object] = {
        "record": np.array(json.dumps(record)),
        "keys": np.array(first.keys),
    }
    for i, prediction_set in enumerate(trial.predictions):
        if isinstance(prediction_set, MapCounts) or prediction_set.kind == "segmentation":
            for name, field in _COUNTS.items():
                arrays[f"{name}{i}"] = getattr(prediction_set.counts, field)
            continue
        arrays[f"truth{i}"], arrays[f"guess{i}"] = prediction_set.truth, prediction_set.predicted
        if prediction_set.probability is not None:
            arrays[f"probability{i}"] = prediction_set.probability
    return arrays


def _unpacked(arrays: Any) -> Trial:
    record = json.loads(str(arrays["record"]))
    record["features"] = _FORMER_FEATURES.get(record["features"], record["features"])
    kind, names = record.pop("kind"), tuple(record.pop("class_names"))
    keys = tuple(arrays["keys"].tolist())
    predictions: list[Judged] = []
    for i in range(record.pop("seeds")):
        if kind == "segmentation":
            counts = Counts(*(arrays[f"{name}{i}"] for name in _COUNTS))
            predictions.append(MapCounts(kind=kind, keys=keys, counts=counts, class_names=names))
            continue
        predictions.append(
            Predictions(
                kind=kind,
                keys=keys,
                truth=arrays[f"truth{i}"],
                predicted=arrays[f"guess{i}"],
                class_names=names,
                probability=arrays.get(f"probability{i}"),
            )
        )
    lists = {name: tuple(record[name]) for name in ("chosen", "validation")}
    return Trial(**{**record, **lists}, predictions=tuple(predictions))


def comparisons(trials: Sequence[Trial], seed: int) -> list[dict[str, Any]]:
    """The model against each baseline, and its input sets against one another, chip by chip.

    A fine-tuned model is also compared with linear probes on the same inputs. Differences of the
    first score with 95 % intervals over seeds and chips, and p-values of the permutation test on
    the chips' outcomes (means over seeds), as they are and after Holm.
    """
    pairs = [
        (a, b)
        for a, b in combinations(trials, 2)
        if a.percent == b.percent and a.features == PRETRAINED and _comparable(a, b)
    ]
    rows = [_compare(a, b, seed) for a, b in pairs]
    corrected = holm([row["p"] for row in rows])
    return [{**row, "p (Holm)": p} for row, p in zip(rows, corrected, strict=True)]


def _comparable(first: Trial, second: Trial) -> bool:
    if first.method != second.method:
        tuned = first.method == FINETUNING and second.method == "linear"
        return tuned and first.inputs == second.inputs
    return first.inputs == second.inputs or second.features == PRETRAINED


def _compare(first: Trial, second: Trial, seed: int) -> dict[str, Any]:
    scored = [[scores_of(p) for p in t.predictions] for t in (first, second)]
    name = first.score
    a, b = ([s[name] for s in by_seed] for by_seed in scored)
    difference = paired_interval(a, b, len(first.predictions[0]), seed=seed)
    outcomes = [np.mean([chip_outcomes(p) for p in t.predictions], axis=0) for t in (first, second)]
    defined = np.isfinite(outcomes[0]) & np.isfinite(outcomes[1])
    p = (
        permutation_test(outcomes[0][defined], outcomes[1][defined], seed=seed)
        if defined.any()
        else 1.0
    )
    return {
        "first": f"{first.features} ({first.inputs})",
        "second": f"{second.features} ({second.inputs})",
        "method": " / ".join(dict.fromkeys((first.method, second.method))),
        "labels %": first.percent,
        **interval_rows({f"{name}, difference": difference}),
        "p": p,
    }


def _short(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:g}"
