"""The accuracy and areas of a map, as ``assess`` and ``map`` record them, for the page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from multimae_eo.errors import FormatError
from multimae_eo.files import read_json

_REMEDY = "give the accuracy.json of `assess`, or the record.json of `map`"


def read_accuracy(path: Path) -> dict[str, Any]:
    """What the page shows of a record of ``assess`` or ``map``.

    ``overall``: the estimate of overall accuracy; ``by``: how it was found; ``classes``: per class
    ``name``, ``mapped_ha``, and the estimates ``area_ha``, ``users`` and ``producers``. An estimate
    has value, low and high (95 %), None where undefined. Raises FormatError for another file.
    """
    if path.is_dir():
        path = next(
            (f for n in ("accuracy.json", "record.json") if (f := path / n).is_file()), path
        )
    record = read_json(path, FormatError, remedy=_REMEDY)
    try:
        by_folds = record.get("cross_validation")
        overall = by_folds["overall"] if by_folds else record["overall"]
        return {
            "overall": _estimate(overall),
            "by": f"cross-validation in {int(by_folds['folds'])} folds of labels"
            if by_folds
            else f"{Path(record['reference']).name}, design: {record['design']}",
            "classes": [_class(c, float(record["area_ha"])) for c in record["classes"]],
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise FormatError(f"{path}: is no record of a map's accuracy; {_REMEDY}") from error


def _class(record: Mapping[str, Any], hectares: float) -> dict[str, Any]:
    estimates = {n: _estimate(record[n]) for n in ("area_ha", "users", "producers")}
    mapped = hectares * float(record["mapped_share"])
    return {"name": str(record["name"]), "mapped_ha": mapped, **estimates}


def _estimate(record: Mapping[str, Any]) -> dict[str, float | None]:
    return {n: None if record[n] is None else float(record[n]) for n in ("value", "low", "high")}
