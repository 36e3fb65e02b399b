"""How an area is cut into chips: the ``chips:`` section of scene and STAC files.

Chips lie on a regular grid from the area's upper left corner. Those at the right and bottom edges
reach over them and are padded with invalid pixels: nothing is left out, and no chip is moved.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from multimae_eo.errors import SplitError, did_you_mean
from multimae_eo.geo import Window
from multimae_eo.modality import ModalitySet
from multimae_eo.sources.base import hashed_fraction
from multimae_eo.sources.yaml_section import Section, as_number

CHIP_KEYS = ("size", "stride", "min_valid", "cloud", "split", "label", "columns")
CLOUD_KEYS = ("modality", "path", "classes", "max_fraction")


@dataclass(frozen=True, kw_only=True)
class CloudRule:
    """Chips with more than ``max_fraction`` of their valid pixels in ``classes`` are skipped.

    The class layer is a ``modality``, or rasters at ``paths``.
    """

    modality: str = ""
    paths: tuple[str, ...] = ()
    classes: tuple[int, ...]
    max_fraction: float


@dataclass(frozen=True, kw_only=True)
class SplitRule:
    """Splits by square blocks of ``block`` × ``block`` chips. ``shares``: of the blocks, by split;
    the rest is train.

    Of scenes with vector labels: ``polygons``: by polygon instead. ``folds``: equal parts, of which
    number ``fold``, from 0, is the test split.
    """

    block: int = 0
    shares: Mapping[str, float] = field(default_factory=dict)
    polygons: bool = False
    folds: int = 0
    fold: int = 0


@dataclass(frozen=True, kw_only=True)
class ChipRule:
    """Side and distance of chips in pixels of the area's grid, and which are kept.

    ``min_valid``: by modality, the least fraction of valid pixels, above 0 in any case.
    ``label``: the class map that is the chips' label rather than an input, "" for none.
    ``columns``: first and last share of the area's width that chips may touch.
    """

    size: int
    stride: int
    min_valid: Mapping[str, float] = field(default_factory=dict)
    cloud: CloudRule | None = None
    split: SplitRule | None = None
    label: str = ""
    columns: tuple[float, float] = (0.0, 1.0)

    def windows(self, height: int, width: int) -> Iterator[Window]:
        """All chips of a grid, row by row, covering it where the stride is not above the size."""
        first, last = (share * width for share in self.columns)
        for row in range(0, height, self.stride):
            for col in range(0, width, self.stride):
                if col < first or (last < width and col + self.size > last):
                    continue
                # The chip before may have covered the rest.
                if _needed(row, height, self) and _needed(col, width, self):
                    yield Window(row=row, col=col, height=self.size, width=self.size)


def _needed(start: int, length: int, rule: ChipRule) -> bool:
    return start == 0 or start - rule.stride + rule.size < length


def chip_rule(top: Section, modalities: ModalitySet) -> ChipRule | None:
    """Read the ``chips:`` section, None where there is none; ConfigError names the invalid key."""
    if "chips" not in top:
        return None
    section = Section.of(f"{top.where}: chips", top.get("chips"), CHIP_KEYS)
    size = _count(section, "size")
    return ChipRule(
        size=size,
        stride=_count(section, "stride", size),
        min_valid=_min_valid(section, modalities),
        cloud=_cloud(section, modalities) if "cloud" in section else None,
        split=_split(section, vector="labels" in top) if "split" in section else None,
        label=_label(section, modalities),
        columns=_columns(section),
    )


def _label(section: Section, modalities: ModalitySet) -> str:
    name = section.text("label")
    if not name:
        return ""
    maps = [n for n, m in modalities.items() if m.categorical]
    if name not in maps:
        raise section.error("label", f"no class map {name!r}; {did_you_mean(name, maps)}")
    if len(modalities) == 1:
        raise section.error("label", "the scene has no other modality to predict it from")
    return name


def _columns(section: Section) -> tuple[float, float]:
    value = section.get("columns", [0, 1])
    ends = [as_number(v) for v in value] if isinstance(value, list) else []
    if len(ends) == 2 and ends[0] is not None and ends[1] is not None:
        first, last = ends[0], ends[1]
        if 0 <= first < last <= 1:
            return first, last
    raise section.error("columns", "expected two shares of the width, such as [0, 0.5]")


def _count(section: Section, key: str, default: int | None = None) -> int:
    value = section.get(key, default)
    if type(value) is not int or value < 1:
        raise section.error(key, "expected a number of pixels (or chips), from 1")
    return int(value)


def _min_valid(section: Section, modalities: ModalitySet) -> dict[str, float]:
    value = section.get("min_valid", 0.0)
    given = value if isinstance(value, Mapping) else {modalities.names[0]: value}
    return {str(n): _share(section, "min_valid", s, str(n), modalities) for n, s in given.items()}


def _share(section: Section, key: str, value: object, name: str, modalities: ModalitySet) -> float:
    if name not in modalities:
        raise section.error(key, f"no modality {name!r}; {did_you_mean(name, modalities)}")
    share = as_number(value)
    if share is None or not 0 <= share <= 1:
        raise section.error(key, "expected a fraction from 0 to 1, or one per modality")
    return share


def _cloud(section: Section, modalities: ModalitySet) -> CloudRule:
    inner = Section.of(f"{section.where}: cloud", section.get("cloud"), CLOUD_KEYS)
    name, value = inner.text("modality"), inner.get("path", [])
    paths = tuple(value if isinstance(value, list) else [value])
    if bool(name) == bool(paths) or not all(isinstance(p, str) and p for p in paths):
        raise inner.error("modality", "name a class `modality`, or a `path:` of class rasters")
    if name and not (name in modalities and modalities[name].categorical):
        maps = [n for n, m in modalities.items() if m.categorical]
        raise inner.error("modality", f"no class map; {did_you_mean(name, maps)}")
    listed = inner.numbers("classes")
    if not listed or not all(c.is_integer() for c in listed):
        raise inner.error("classes", "expected the class ids that mean cloud")
    most = inner.number("max_fraction")
    if most is None or not 0 <= most <= 1:
        raise inner.error("max_fraction", "expected a fraction from 0 to 1")
    return CloudRule(
        modality=name, paths=paths, classes=tuple(int(c) for c in listed), max_fraction=most
    )


_FEATURE_KEYS = ("polygons", "folds", "fold")
"""Keys of ``split:`` that scenes with vector labels have."""


def _split(section: Section, *, vector: bool) -> SplitRule:
    value = section.get("split")
    reserved = ("block", *_FEATURE_KEYS) if vector else ("block",)
    form = "{block: CHIPS, val: SHARE, test: SHARE}"
    if not isinstance(value, Mapping) or "train" in value:
        raise section.error("split", f"expected {form}")
    if not vector and any(k in value for k in _FEATURE_KEYS):
        raise section.error("split", "polygons and folds are those of vector `labels:`")
    options = Section(f"{section.where}: split", value)
    polygons = options.flag("polygons") if vector else False
    if polygons == ("block" in options):
        raise section.error("split", f"expected {form}")
    shares = {str(n): as_number(s) for n, s in value.items() if n not in reserved}
    valid = {n: s for n, s in shares.items() if s is not None and 0 < s < 1}
    folds = _count(options, "folds") if vector and "folds" in options else 0
    if len(valid) < len(shares) or sum(valid.values()) >= 1 or not (valid or folds):
        raise section.error("split", "shares lie between 0 and 1 and leave some blocks for train")
    if folds == 1 or (folds and "test" in valid):
        raise section.error("split", "folds are two or more; one of them is the test split")
    fold = options.get("fold", 0)
    if type(fold) is not int or not 0 <= fold < max(folds, 1):
        raise options.error("fold", "expected the number of a fold, from 0")
    return SplitRule(
        block=0 if polygons else _count(options, "block"),
        shares=valid,
        polygons=polygons,
        folds=folds,
        fold=fold,
    )


def split_by_blocks(windows: Sequence[Window], rule: ChipRule, name: str) -> list[str | None]:
    """The split of each chip; None for one that reaches over into a block of another split.

    Blocks are drawn by a hash of ``name`` and their position, so that the draw is repeatable; every
    split gets its share of the blocks, one at least. SplitError when there are too few blocks.
    """
    if rule.split is None:
        return [""] * len(windows)
    side = rule.split.block * max(rule.size, rule.stride)
    touched = [_blocks(w, side) for w in windows]
    # A chip belongs to the block of its upper left corner, the first of those it touches.
    blocks = sorted({t[0] for t in touched}, key=lambda b: hashed_fraction(f"{name}:{b}"))
    drawn: dict[tuple[int, int], str] = {}
    for split, share in rule.split.shares.items():
        for block in blocks[len(drawn) :][: max(1, round(share * len(blocks)))]:
            drawn[block] = split
    if len(drawn) >= len(blocks) or set(drawn.values()) < set(rule.split.shares):
        raise SplitError(
            f"{name}: {len(blocks)} block(s) of {rule.split.block} × {rule.split.block} chips are "
            f"too few for train, {', '.join(rule.split.shares)}; make `block` smaller"
        )
    split_of: list[str | None] = []
    for mine in touched:
        of_blocks = {drawn.get(b, "train") for b in mine}
        split_of.append(of_blocks.pop() if len(of_blocks) == 1 else None)
    return split_of


def _blocks(window: Window, side: int) -> list[tuple[int, int]]:
    rows = range(window.row // side, (window.row + window.height - 1) // side + 1)
    cols = range(window.col // side, (window.col + window.width - 1) // side + 1)
    return [(r, c) for r in rows for c in cols]
