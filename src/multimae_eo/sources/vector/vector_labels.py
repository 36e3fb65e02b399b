"""Labels of chips from a vector file: ``labels: {vector: fields.gpkg, column: crop}``.

Features are drawn on a chip's grid; pixels without a feature, and those of features of different
classes, are ignored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from multimae_eo.errors import ClassMapError, DataError, did_you_mean
from multimae_eo.geo import Geometry
from multimae_eo.modality import class_ids
from multimae_eo.sources.dataset.label_texts import integer_text, number_of, sorted_classes
from multimae_eo.sources.file_names import composed, existing_path
from multimae_eo.sources.raster.grid import Bounds
from multimae_eo.sources.vector.rasterize import Indices, rasterize_indices
from multimae_eo.sources.vector.vector_file import VectorFeatures, on_crs, read_features
from multimae_eo.sources.yaml_section import Section

if TYPE_CHECKING:
    from shapely import STRtree

VECTOR_KEYS = (
    "vector", "column", "layer", "crs", "names", "classes", "ids", "numeric", "ignore", "only",
    "rename", "all_touched",
)  # fmt: skip
_IGNORED = -1
_MOST_PAIRS = 100_000


@dataclass(frozen=True, kw_only=True)
class VectorSpec:
    """Where vector labels are.

    ``column``: of classes (names or ids) or, if ``numeric``, of values. ``names``: the column of
    the names of class ids. ``classes``: names, in order; () for those in the column. ``ids``: raw
    value → class. ``ignore``: raw values that are no label. ``rename``, ``only``: as for other
    labels. ``crs``: in place of the file's. ``all_touched``: draw all pixels a polygon touches.
    """

    path: Path
    column: str
    layer: str = ""
    crs: str = ""
    names: str = ""
    classes: tuple[str, ...] = ()
    ids: Mapping[str, str] = field(default_factory=dict)
    numeric: bool = False
    ignore: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    rename: Mapping[str, str] = field(default_factory=dict)
    all_touched: bool = False


def vector_spec(where: str, record: object, root: Path) -> VectorSpec:
    """Read a ``labels:`` section with ``vector:``; ConfigError."""
    section = Section.of(where, record, VECTOR_KEYS)
    path, column = section.text("vector"), section.text("column")
    if not path:
        raise section.error("vector", "name a vector file")
    if not column:
        raise section.error("column", "name the column of the classes or values")
    numeric = section.flag("numeric")
    if numeric and any(k in section for k in ("names", "classes", "ids", "only", "rename")):
        raise section.error("numeric", "values have no classes")
    ids = section.get("ids", {})
    if not isinstance(ids, Mapping) or ("ids" in section and "names" in section):
        raise section.error("ids", "expected {value: class}, and no column of `names:` beside it")
    rename = section.get("rename", {})
    if not isinstance(rename, Mapping):
        raise section.error("rename", "expected {old: new}")
    return VectorSpec(
        path=existing_path(root, path),
        column=column,
        layer=section.text("layer"),
        crs=section.text("crs"),
        names=section.text("names"),
        classes=section.names("classes") or (),
        ids={composed(str(k)): composed(str(v)) for k, v in ids.items()},
        numeric=numeric,
        ignore=section.names("ignore") or (),
        only=section.names("only") or (),
        rename={composed(str(k)): composed(str(v)) for k, v in rename.items()},
        all_touched=section.flag("all_touched"),
    )


class VectorLabels:
    """Labels drawn from features.

    ``classes``: names; empty where labels are values. ``class_ids``: their ids. ``features``: those
    with a label. ``indices``: the class of each, or the position of its value in ``values``.
    ``notes``: what was left out, a line each.

    Raises ConfigError, FormatError and DataError as ``read_features``; ClassMapError for a class
    that is not declared.
    """

    def __init__(self, spec: VectorSpec) -> None:
        self.spec = spec
        columns = [spec.column, *([spec.names] if spec.names else [])]
        features = read_features(spec.path, columns=columns, layer=spec.layer, crs=spec.crs)
        self.classes: tuple[str, ...] = ()
        self.class_ids: tuple[int, ...] = ()
        self.values: npt.NDArray[np.float32] = np.zeros(0, dtype=np.float32)
        indices = self._values(features) if spec.numeric else self._classes(features)
        kept = indices != _IGNORED
        if not kept.any():
            raise DataError(f"{spec.path}: no feature has a label in column {spec.column!r}")
        self.features, self.indices = features.take(kept), indices[kept]
        self._on_crs: dict[str, tuple[VectorFeatures, STRtree]] = {}
        self.notes = tuple(self._notes(features, int((~kept).sum())))

    def on(self, crs: str, bounds: Bounds, area: str) -> VectorFeatures:
        """The features in another CRS; DataError where none lies in the area. See ``on_crs``."""
        import shapely

        moved = on_crs(self.features, crs, bounds, area)
        self._on_crs[crs] = moved, shapely.STRtree(moved.shapes)
        return moved

    def touching(self, geometry: Geometry) -> Indices:
        """Positions of the features that a footprint's box touches, ascending."""
        import shapely

        if geometry.crs not in self._on_crs:
            moved = on_crs(self.features, geometry.crs, None, "the chips")
            self._on_crs[geometry.crs] = moved, shapely.STRtree(moved.shapes)
        _, tree = self._on_crs[geometry.crs]
        rows: Indices = np.sort(tree.query(shapely.box(*geometry.bounds), predicate="intersects"))
        return rows

    def read(
        self,
        geometry: Geometry,
        shape: tuple[int, int],
        chosen: npt.NDArray[np.bool_] | None = None,
    ) -> npt.NDArray[np.generic]:
        """The label of a chip, (H, W): class indices, -1 where ignored, or values with NaN.

        ``chosen``: the features (n,) that count; what others cover is ignored.
        """
        rows = self.touching(geometry)
        highest, lowest = self._drawn(geometry, shape, rows, self.indices[rows])
        index = np.where(highest == lowest, highest, _IGNORED)
        if chosen is not None and not chosen[rows].all():
            others = rows[~chosen[rows]]
            covered, _ = self._drawn(geometry, shape, others, self.indices[others])
            index[covered >= 0] = _IGNORED
        if self.spec.numeric:
            values = np.append(self.values, np.float32(np.nan))
            return np.asarray(values[index], dtype=np.float32)
        return index

    def features_at(self, geometry: Geometry, shape: tuple[int, int]) -> Indices:
        """The position of the feature at each pixel, (H, W), -1 where there is none."""
        rows = self.touching(geometry)
        highest, _ = self._drawn(geometry, shape, rows, rows)
        return highest

    def _drawn(
        self, geometry: Geometry, shape: tuple[int, int], rows: Indices, indices: Indices
    ) -> tuple[Indices, Indices]:
        from affine import Affine

        moved, _ = self._on_crs[geometry.crs]
        left, bottom, right, top = geometry.bounds
        height, width = shape
        transform = Affine((right - left) / width, 0, left, 0, (bottom - top) / height, top)
        return rasterize_indices(
            moved.shapes[rows], indices, transform, shape, all_touched=self.spec.all_touched
        )

    def _values(self, features: VectorFeatures) -> Indices:
        spec, where = self.spec, f"{self.spec.path}: {self.spec.column}"
        numbers = np.full(len(features), np.nan)
        for row, value in enumerate(features.columns[spec.column]):
            text = _text(value)
            if not text or text in spec.ignore:
                continue
            number = number_of(text)
            if number is None:
                raise ClassMapError(f"{where}: {text!r} is not a number; leave out `numeric: true`")
            numbers[row] = number
        labelled = np.isfinite(numbers)
        values, inverse = np.unique(numbers[labelled], return_inverse=True)
        self.values = values.astype(np.float32)
        indices = np.full(len(features), _IGNORED, dtype=np.int64)
        indices[labelled] = inverse
        return indices

    def _classes(self, features: VectorFeatures) -> Indices:
        spec, where = self.spec, f"{self.spec.path}: {self.spec.column}"
        texts = [_text(v) for v in features.columns[spec.column]]
        texts = ["" if t in spec.ignore else t for t in texts]
        names = dict(spec.ids) if spec.ids else self._named(features, texts)
        if names:
            declared = list(dict.fromkeys(names.values()))
        else:
            declared = list(spec.classes or sorted_classes([t for t in texts if t], where))
            names = {name: name for name in declared}
        for text in texts:
            if text and text not in names:
                raise ClassMapError(
                    f"{where}: no class {text!r}; {did_you_mean(text, names)}; add it, or list it "
                    "under `ignore:`"
                )
        kept = self._kept(declared, where)
        position = {name: i for i, name in enumerate(kept)}
        renamed = {raw: spec.rename.get(name, name) for raw, name in names.items()}
        self.classes = kept
        self.class_ids = self._ids_of(kept, renamed, carried=bool(spec.ids or spec.names))
        return np.array([position.get(renamed.get(t, ""), _IGNORED) for t in texts], dtype=np.int64)

    def _named(self, features: VectorFeatures, texts: Sequence[str]) -> dict[str, str]:
        """The class of each raw id, from the column of names."""
        spec = self.spec
        if not spec.names:
            return {}
        names: dict[str, str] = {}
        for raw, value in zip(texts, features.columns[spec.names], strict=True):
            name = _text(value) or raw
            if raw and names.setdefault(raw, name) != name:
                raise ClassMapError(
                    f"{spec.path}: {spec.column} {raw} is {names[raw]!r} and {name!r} in column "
                    f"{spec.names!r}; write one"
                )
        return dict(sorted(names.items(), key=lambda pair: (len(pair[0]), pair[0])))

    def _kept(self, declared: Sequence[str], where: str) -> tuple[str, ...]:
        spec = self.spec
        for old in spec.rename:
            if old not in declared:
                raise ClassMapError(
                    f"{where}: rename: no class {old!r}; {did_you_mean(old, declared)}"
                )
        renamed = tuple(dict.fromkeys(spec.rename.get(n, n) for n in declared))
        for name in spec.only:
            if name not in renamed:
                raise ClassMapError(
                    f"{where}: only: no class {name!r}; {did_you_mean(name, renamed)}"
                )
        return spec.only or renamed

    def _ids_of(
        self, kept: Sequence[str], names: Mapping[str, str], *, carried: bool
    ) -> tuple[int, ...]:
        """The user's id of each class: the least raw one, where raw values are ids."""
        if not carried:
            return class_ids(kept)
        raw = {n: [r for r, name in names.items() if name == n] for n in kept}
        if not all(r.isascii() and r.isdigit() for listed in raw.values() for r in listed):
            return class_ids(kept)
        return tuple(min(map(int, raw[name])) for name in kept)

    def _notes(self, features: VectorFeatures, unlabelled: int) -> list[str]:
        notes = []
        path = self.spec.path.name
        if features.empty:
            notes.append(f"{path}: {features.empty} features without a geometry are left out")
        if unlabelled:
            notes.append(f"{path}: {unlabelled} features without a label are left out")
        if overlapping := self._overlaps():
            notes.append(
                f"{path}: {overlapping} pairs of features of different "
                f"{'values' if self.spec.numeric else 'classes'} overlap; their common pixels are "
                "ignored"
            )
        lacking = [n for i, n in enumerate(self.classes) if i not in self.indices]
        if lacking:
            notes.append(f"{path}: classes without a geometry: {', '.join(lacking)}")
        return notes

    def _overlaps(self) -> int:
        """Pairs of polygons of different classes that share an area."""
        import shapely

        shapes = self.features.shapes
        first, second = shapely.STRtree(shapes).query(shapes, predicate="intersects")
        pairs = (first < second) & (self.indices[first] != self.indices[second])
        first, second = first[pairs][:_MOST_PAIRS], second[pairs][:_MOST_PAIRS]
        common = shapely.intersection(shapes[first], shapes[second])
        return int((shapely.area(common) > 0).sum())


def _text(value: object) -> str:
    return "" if value is None else integer_text(composed(str(value).strip()))
