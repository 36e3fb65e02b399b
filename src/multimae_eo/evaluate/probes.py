"""kNN and linear probes on frozen features, beside baselines, with confidence intervals.

Hyper-parameters (k, the strength of regularisation) are chosen on the validation split only; test
chips are looked at once. Classifiers are scikit-learn's.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from multimae_eo.errors import ConfigError, did_you_mean
from multimae_eo.evaluate.baselines import image_statistics
from multimae_eo.evaluate.features import FeatureTable, encoder_features, extract
from multimae_eo.model.multimae import MultiMAE
from multimae_eo.report import write_whole
from multimae_eo.sources.base import Source

NEIGHBOURS = (1, 3, 5, 10, 20)
STRENGTHS = tuple(float(c) for c in 10.0 ** np.arange(-4, 3))
RESAMPLES = 1000

Tables = dict[str, FeatureTable]


def knn_classifier(neighbours: int) -> Any:
    """k nearest neighbours by cosine similarity on standardised features, weighted by it."""
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(
        StandardScaler(), KNeighborsClassifier(neighbours, metric="cosine", weights="distance")
    )


def linear_classifier(strength: float) -> Any:
    """Logistic regression (C = ``strength``) on standardised features."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=2000))


METHODS: dict[str, tuple[Callable[[Any], Any], tuple[Any, ...]]] = {
    "knn": (knn_classifier, NEIGHBOURS),
    "linear": (linear_classifier, STRENGTHS),
}


def probe(
    model: MultiMAE,
    source: Source,
    *,
    out: Path,
    inputs: Sequence[str] | None = None,
    methods: Sequence[str] = ("knn", "linear"),
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Probe the model, a random encoder and per-band image statistics on the same chips.

    Writes ``results.csv`` and ``results.md`` into ``out`` and returns their rows: features, method,
    the value chosen on validation, accuracy and macro F1 on the test split with 95 % bootstrap
    intervals.

    Raises:
        ConfigError: an unknown method or input. DataError: no labels. SplitError: no train or test
        split.
    """
    for method in methods:
        if method not in METHODS:
            raise ConfigError(f"no method {method!r}; {did_you_mean(method, METHODS)}")
    shared = [n for n in source.modalities if n in model.modalities]
    for name in inputs or ():
        if name not in shared:
            raise ConfigError(f"inputs: no {name!r} in both; {did_you_mean(name, shared)}")
    names = list(inputs or shared)
    compared = {
        "pre-trained": encoder_features(model, names),
        "random encoder": encoder_features(model.reinitialised(seed).eval(), names),
        "image statistics": image_statistics(names),
    }
    rows = []
    for features, compute in compared.items():
        tables = _tables(source, compute, names, seed)
        rows += [{"features": features, **_score(m, tables, seed)} for m in methods]
    _write(out, rows)
    return rows


def _tables(source: Source, compute: Any, names: list[str], seed: int) -> Tables:
    """Features of train, val and test; a fifth of train serves as val where there is none."""
    indices = {"train": source.split("train"), "test": source.split("test")}
    if "val" in source.splits:
        indices["val"] = source.split("val")
    else:
        order = np.random.default_rng(seed).permutation(indices["train"])
        cut = max(1, len(order) // 5)
        indices |= {"val": order[:cut], "train": order[cut:]}
    return {
        split: extract(source, chosen, compute, modalities=names)
        for split, chosen in indices.items()
    }


def _score(method: str, tables: Tables, seed: int) -> dict[str, Any]:
    from sklearn.metrics import f1_score

    build, grid = METHODS[method]
    train, val, test = (tables[s] for s in ("train", "val", "test"))
    grid = tuple(g for g in grid if method != "knn" or g <= len(train.labels))
    found = [
        (
            float(
                (
                    build(g).fit(train.features, train.labels).predict(val.features) == val.labels
                ).mean()
            ),
            g,
        )
        for g in grid
    ]
    # The first best: the smallest k, the strongest regularisation.
    best = max(found, key=lambda pair: pair[0])[1]
    guess = build(best).fit(train.features, train.labels).predict(test.features)
    classes = np.unique(np.concatenate([train.labels, test.labels]))

    def macro_f1(truth: Any, said: Any) -> float:
        return float(f1_score(truth, said, labels=classes, average="macro", zero_division=0))

    def accuracy(truth: Any, said: Any) -> float:
        return float((truth == said).mean())

    row: dict[str, Any] = {"method": method, "chosen": best, "test chips": len(test.labels)}
    for name, metric in (("accuracy", accuracy), ("macro F1", macro_f1)):
        low, high = bootstrap_interval(metric, test.labels, guess, seed=seed)
        row |= {name: metric(test.labels, guess), f"{name} low": low, f"{name} high": high}
    return row


def bootstrap_interval(
    metric: Callable[[Any, Any], float],
    truth: npt.NDArray[Any],
    guess: npt.NDArray[Any],
    *,
    seed: int,
    resamples: int = RESAMPLES,
) -> tuple[float, float]:
    """95 % percentile interval of a metric over resampled test chips."""
    rng = np.random.default_rng(seed)
    picks = rng.integers(len(truth), size=(resamples, len(truth)))
    values = [metric(truth[p], guess[p]) for p in picks]
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def _write(out: Path, rows: list[dict[str, Any]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(out / "results.csv", text.getvalue().encode())
    lines = [
        "| features | method | accuracy | macro F1 |",
        "|---|---|---|---|",
        *(
            f"| {r['features']} | {r['method']} | {_shown(r, 'accuracy')} | "
            f"{_shown(r, 'macro F1')} |"
            for r in rows
        ),
        "",
        f"Test chips: {rows[0]['test chips']}. Brackets: 95 % bootstrap intervals.",
    ]
    write_whole(out / "results.md", ("\n".join(lines) + "\n").encode())


def _shown(row: dict[str, Any], name: str) -> str:
    return f"{row[name]:.3f} [{row[f'{name} low']:.3f}, {row[f'{name} high']:.3f}]"
