"""Probability samples of a map's pixels: simple random, stratified by class, and by clusters."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from multimae_eo.errors import ConfigError, DataError, did_you_mean
from multimae_eo.evaluation.class_map_file import NO_CLASS, ClassMapRaster, Ids
from multimae_eo.metrics.design_based import Allocation, allocate, sample_size
from multimae_eo.scenes.vector_output import VectorLayer

Design = Literal["srs", "stratified", "cluster"]
Units = Literal["points", "pixels"]

LABEL_COLUMN = "label"
"""Column of a sample that its labeller fills in."""
SAMPLE_LAYER = "sample"
"""Name of a sample's layer."""
EXPECTED_ACCURACY = 0.8
"""User's accuracy that a design expects of a class, where none is given."""


@dataclass(frozen=True, kw_only=True)
class SamplePlan:
    """How a sample is drawn.

    ``total``: units, or clusters; None where ``standard_error`` of overall accuracy decides it.
    ``expected``: user's accuracy by class id. ``least``: units of any stratum. ``block``: side of
    a cluster in pixels.
    """

    design: Design = "stratified"
    total: int | None = None
    standard_error: float | None = None
    allocation: Allocation = "neyman"
    expected: Mapping[int, float]
    least: int = 10
    block: int = 3
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class DrawnSample:
    """Sampled pixels of a map, (n,) each, in random order of their strata or clusters.

    ``stratum_sizes``: pixels, or clusters, of each whole stratum. ``cluster``: None where pixels
    were drawn one by one.
    """

    design: Design
    rows: Ids
    cols: Ids
    map_class: Ids
    stratum: Ids
    stratum_sizes: Mapping[int, int]
    cluster: Ids | None = None

    def __len__(self) -> int:
        return len(self.rows)


def expected_accuracies(text: str, target: ClassMapRaster) -> dict[int, float]:
    """``0.85``, or ``wheat=0.9,maize=0.7``, as user's accuracy by class id.

    Classes that are not named have EXPECTED_ACCURACY. Raises ConfigError.
    """
    ids = list(target.counts)
    if not text:
        return dict.fromkeys(ids, EXPECTED_ACCURACY)
    if "=" not in text:
        return dict.fromkeys(ids, _accuracy(text))
    named = {target.name(i): i for i in ids} | {str(i): i for i in ids}
    expected = dict.fromkeys(ids, EXPECTED_ACCURACY)
    for part in text.split(","):
        name, _, value = (p.strip() for p in part.partition("="))
        if name not in named:
            raise ConfigError(f"expected: no class {name!r}; {did_you_mean(name, named)}")
        expected[named[name]] = _accuracy(value)
    return expected


def draw_sample(target: ClassMapRaster, plan: SamplePlan) -> DrawnSample:
    """Draw a sample of a map's pixels, without replacement and repeatable by its seed.

    Raises ConfigError for a plan without a size, DataError for one that does not fit the map.
    """
    rng = np.random.default_rng(plan.seed)
    if plan.design == "cluster":
        return _clusters(target, plan, rng)
    counts = target.counts
    if plan.design == "srs":
        pixels = sum(counts.values())
        total = _total(plan, {0: 1.0}, {0: _mean_accuracy(plan, counts)})
        sizes = {0: pixels}
        units = {0: min(total, pixels)}
    else:
        sizes = dict(counts)
        units = _allocated(plan, counts)
    ranks = {h: np.sort(rng.choice(sizes[h], size=n, replace=False)) for h, n in units.items()}
    rows, cols, ids = _pixels_at(target, ranks, stratified=plan.design == "stratified")
    order = rng.permutation(len(rows))
    rows, cols, ids = rows[order], cols[order], ids[order]
    stratum = ids if plan.design == "stratified" else np.zeros_like(ids)
    return DrawnSample(
        design=plan.design,
        rows=rows,
        cols=cols,
        map_class=ids,
        stratum=stratum,
        stratum_sizes=sizes,
    )


def expected_errors(
    drawn: DrawnSample, plan: SamplePlan, target: ClassMapRaster
) -> dict[str, object]:
    """Standard errors that a sample has where the expected accuracies are true.

    ``overall``, and ``users`` by class name (None where one unit or none is drawn). Of clusters,
    the largest that overall accuracy can have: as if all pixels of a cluster were alike.
    """
    counts = target.counts
    pixels = sum(counts.values())
    units = {i: int((drawn.map_class == i).sum()) for i in counts}
    users = {
        target.name(i): _standard_error(plan.expected[i], n) if n > 1 else None
        for i, n in units.items()
    }
    if drawn.design == "stratified":
        variance = sum(
            (counts[i] / pixels) ** 2 * (_standard_error(plan.expected[i], n) or 0.0) ** 2
            for i, n in units.items()
            if n > 1
        )
        overall = math.sqrt(variance)
    else:
        number = len(drawn) if drawn.cluster is None else len(np.unique(drawn.cluster))
        overall = _standard_error(_mean_accuracy(plan, counts), number)
    return {"overall": overall, "users": users}


def sample_layer(
    drawn: DrawnSample,
    target: ClassMapRaster,
    *,
    units: Units = "points",
    labels: npt.NDArray[np.object_] | None = None,
) -> VectorLayer:
    """The sample as features to be labelled: points at pixels' centres, or the pixels' squares.

    Columns: id, map_class, map_name, stratum, stratum_size, cluster (of clusters), label.
    """
    import shapely

    transform = target.grid.transform
    left, top = transform @ (drawn.cols, drawn.rows)
    right, bottom = transform @ (drawn.cols + 1, drawn.rows + 1)
    if units == "points":
        shapes = shapely.points((left + right) / 2, (top + bottom) / 2)
    else:
        shapes = shapely.box(left, bottom, right, top)
    columns: dict[str, npt.NDArray[np.generic]] = {
        "id": np.arange(1, len(drawn) + 1),
        "map_class": drawn.map_class,
        "map_name": np.array([target.name(i) for i in drawn.map_class.tolist()], dtype=object),
        "stratum": drawn.stratum,
        "stratum_size": np.array([drawn.stratum_sizes[s] for s in drawn.stratum.tolist()]),
    }
    if drawn.cluster is not None:
        columns["cluster"] = drawn.cluster
    empty = np.array([None] * len(drawn), dtype=object)
    columns[LABEL_COLUMN] = empty if labels is None else labels
    return VectorLayer(
        name=SAMPLE_LAYER,
        kind="Point" if units == "points" else "Polygon",
        crs=target.grid.crs,
        shapes=np.asarray(shapes, dtype=object),
        columns=columns,
        classes=target.classes(target.counts),
        class_column="map_class",
    )


def _accuracy(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < 1:
        raise ConfigError(f"expected: {text!r} is no accuracy between 0 and 1")
    return value


def _mean_accuracy(plan: SamplePlan, counts: Mapping[int, int]) -> float:
    return sum(plan.expected[i] * n for i, n in counts.items()) / sum(counts.values())


def _standard_error(accuracy: float, units: int) -> float:
    return math.sqrt(accuracy * (1 - accuracy) / max(units - 1, 1))


def _total(plan: SamplePlan, weights: Mapping[int, float], users: Mapping[int, float]) -> int:
    if plan.total is not None:
        if plan.total < 2:
            raise ConfigError(f"draw: a sample has two units or more, got {plan.total}")
        return plan.total
    if plan.standard_error is None or not 0 < plan.standard_error < 1:
        raise ConfigError("draw: give the number of units, or the standard error of the accuracy")
    return sample_size(weights, expected_users=users, standard_error=plan.standard_error)


def _allocated(plan: SamplePlan, counts: Mapping[int, int]) -> dict[int, int]:
    """Units of each stratum, at most its pixels."""
    pixels = sum(counts.values())
    weights = {i: n / pixels for i, n in counts.items()}
    total = _total(plan, weights, plan.expected)
    least = min(plan.least, total // len(counts))
    small = [i for i, n in counts.items() if n < 2]
    if small or least < 2:
        raise DataError(
            f"a sample of {total} is too small for {len(counts)} strata"
            if not small
            else f"class {small[0]} has {counts[small[0]]} pixel; a stratum needs at least two"
        )
    units = allocate(
        total, weights, allocation=plan.allocation, expected_users=plan.expected, least=least
    )
    return {i: min(n, counts[i]) for i, n in units.items()}


def _pixels_at(
    target: ClassMapRaster, ranks: Mapping[int, Ids], *, stratified: bool
) -> tuple[Ids, Ids, Ids]:
    """Rows, columns and ids of the pixels with these ranks among their class, or among all."""
    seen = dict.fromkeys(ranks, 0)
    parts: list[tuple[Ids, Ids, Ids]] = []
    for top, ids in target.blocks():
        for stratum, listed in ranks.items():
            member = ids == stratum if stratified else ids != NO_CLASS
            positions = np.flatnonzero(member)
            first = seen[stratum]
            start, stop = np.searchsorted(listed, (first, first + len(positions)))
            chosen = positions[listed[start:stop] - first]
            seen[stratum] += len(positions)
            rows, cols = np.divmod(chosen, ids.shape[1])
            parts.append((rows + top, cols, ids[rows, cols]))
    rows, cols, classes = (np.concatenate(column) for column in zip(*parts, strict=True))
    return rows, cols, classes


def _clusters(target: ClassMapRaster, plan: SamplePlan, rng: np.random.Generator) -> DrawnSample:
    """All pixels of randomly drawn squares of ``plan.block`` pixels a side."""
    side = plan.block
    if side < 1:
        raise ConfigError(f"block: a cluster has one pixel or more a side, got {side}")
    step = max(1, target.block_rows // side) * side
    total = _total(plan, {0: 1.0}, {0: _mean_accuracy(plan, target.counts)})
    population = sum(int(_occupied(ids, side).sum()) for _, ids in target.blocks(step))
    chosen = np.sort(rng.choice(population, size=min(total, population), replace=False))
    seen = 0
    parts: list[tuple[Ids, Ids, Ids, Ids]] = []
    for top, ids in target.blocks(step):
        occupied = np.flatnonzero(_occupied(ids, side))
        start, stop = np.searchsorted(chosen, (seen, seen + len(occupied)))
        across = -(-ids.shape[1] // side)
        for rank in chosen[start:stop].tolist():
            row, col = (int(n) * side for n in divmod(occupied[rank - seen], across))
            block = ids[row : row + side, col : col + side]
            rows, cols = np.nonzero(block != NO_CLASS)
            number = np.full(len(rows), rank, dtype=np.int64)
            parts.append((rows + row + top, cols + col, block[rows, cols], number))
        seen += len(occupied)
    rows, cols, ids, cluster = (np.concatenate(column) for column in zip(*parts, strict=True))
    return DrawnSample(
        design="cluster",
        rows=rows,
        cols=cols,
        map_class=ids,
        stratum=np.zeros_like(ids),
        stratum_sizes={0: population},
        cluster=cluster,
    )


def _occupied(ids: Ids, side: int) -> npt.NDArray[np.bool_]:
    """Which squares of a block of rows hold a pixel with a class."""
    height, width = (-(-length // side) * side for length in ids.shape)
    padded = np.full((height, width), NO_CLASS, dtype=np.int64)
    padded[: ids.shape[0], : ids.shape[1]] = ids
    squares = padded.reshape(height // side, side, width // side, side)
    occupied: npt.NDArray[np.bool_] = (squares != NO_CLASS).any(axis=(1, 3))
    return occupied
