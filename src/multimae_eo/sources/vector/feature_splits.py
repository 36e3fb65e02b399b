"""Splits of features: groups of them are dealt out so that every split has its share of a class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from multimae_eo.errors import SplitError
from multimae_eo.sources.base import hashed_fraction


def deal(
    groups: Sequence[str],
    classes: npt.NDArray[np.int64],
    weights: npt.NDArray[np.float64],
    shares: Mapping[str, float],
    *,
    where: str,
) -> list[str]:
    """The split of each feature; those of one group have the same.

    The largest groups first, each goes where its classes are the furthest below their share. Equal
    ones are ordered by a hash, so that the result is repeatable.

    Args:
        groups: Name of each feature's group, (n,).
        classes: Class index of each, (n,).
        weights: Area of each, or 1, (n,).
        shares: Of the whole, by split; they sum to 1.
        where: For messages.

    Raises:
        SplitError: fewer groups than splits.
    """
    names, member = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    if len(names) < len(shares):
        raise SplitError(
            f"{where}: {len(names)} group(s) of features are too few for {', '.join(shares)}; "
            "draw more polygons, make `block` smaller, or use `polygons: true`"
        )
    count = int(classes.max()) + 1
    content = np.zeros((len(names), count))
    np.add.at(content, (member.reshape(-1), classes), weights)
    content /= np.maximum(content.sum(axis=0), 1e-12)
    order = sorted(
        range(len(names)), key=lambda g: (-content[g].sum(), hashed_fraction(f"{where}:{names[g]}"))
    )
    splits = list(shares)
    share = np.array([shares[s] for s in splits])
    filled = np.zeros((len(splits), count))
    chosen = np.zeros(len(names), dtype=np.int64)
    for rank, group in enumerate(order):
        load = ((filled + content[group]) / share[:, None] * content[group]).sum(axis=1)
        lacking = [i for i in range(len(splits)) if not filled[i].any()]
        if len(order) - rank <= len(lacking):
            load[[i for i in range(len(splits)) if i not in lacking]] = np.inf
        chosen[group] = int(load.argmin())
        filled[chosen[group]] += content[group]
    return [splits[chosen[g]] for g in member.reshape(-1).tolist()]
