"""Splits drawn on request: by a hash of the id, stratified by class, and whole groups at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from multimae_eo.errors import SplitError
from multimae_eo.sources.base import hashed_fraction


@dataclass(frozen=True, kw_only=True)
class SplitDraw:
    """How splits are drawn. ``shares``: by split, of all chips; the rest is train.

    ``stratify``: every class has these shares. ``group``: column of the table (or ``folder``) whose
    chips of one value stay together. ``seed``: another number is another draw.
    """

    shares: Mapping[str, float]
    stratify: bool = False
    group: str = ""
    seed: int = 0


def draw_splits(
    keys: Sequence[str],
    draw: SplitDraw,
    *,
    where: str,
    classes: Mapping[str, str] | None = None,
    groups: Mapping[str, str] | None = None,
) -> list[str]:
    """The split of each chip.

    ``classes``, ``groups``: of each chip. A plain draw, or one of groups, depends on each id (or
    group) alone and stays when chips are added; a stratified one takes exact shares of each class.
    Raises SplitError where classes are not known, or a split would stay empty.
    """
    group_of = {key: groups.get(key, key) if groups else key for key in keys}
    if draw.stratify:
        if not classes:
            raise SplitError(
                f"{where}: stratify: needs a class per chip (`labels:` column, folder)"
            )
        split_of = _stratified(group_of, classes, draw)
    else:
        split_of = {g: _by_fraction(_fraction(g, draw), draw.shares) for g in group_of.values()}
    splits = [split_of[group_of[key]] for key in keys]
    if groups and (empty := [s for s in ("train", *draw.shares) if s not in splits]):
        raise SplitError(
            f"{where}: {len(set(group_of.values()))} groups leave {', '.join(empty)} empty; "
            "use larger shares, another `seed:`, or a split table"
        )
    return splits


def _stratified(
    group_of: Mapping[str, str], classes: Mapping[str, str], draw: SplitDraw
) -> dict[str, str]:
    """The split of each group: in every class, the first of a shuffled order up to each share."""
    members: dict[str, Counter[str]] = {}
    for key, group in group_of.items():
        members.setdefault(group, Counter())[classes.get(key, "")] += 1
    strata: dict[str, list[str]] = {}
    for group, counts in members.items():
        most = min(counts, key=lambda c: (-counts[c], c))
        strata.setdefault(most, []).append(group)
    split_of: dict[str, str] = {}
    for stratum in strata.values():
        order = sorted(stratum, key=lambda g: _fraction(g, draw))
        total = sum(members[g].total() for g in order)
        before = 0
        for group in order:
            # The middle of the group's chips decides, so that every split gets its share.
            middle = (before + members[group].total() / 2) / total
            split_of[group] = _by_fraction(middle, draw.shares)
            before += members[group].total()
    return split_of


def _fraction(name: str, draw: SplitDraw) -> float:
    return hashed_fraction(name if draw.seed == 0 else f"{draw.seed}:{name}")


def _by_fraction(fraction: float, shares: Mapping[str, float]) -> str:
    reached = 0.0
    for name, share in shares.items():
        reached += share
        if fraction < reached:
            return name
    return "train"
