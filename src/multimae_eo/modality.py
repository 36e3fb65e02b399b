"""What a modality is: types only. Where its pixels lie is a reader's business (``sources``),
how they are scaled is the statistics', and which are used is the recipe's.

Values are *raw* as stored by the source, or *physical*: ``physical = raw * scale + offset``
(the GDAL and CF convention), in the modality's ``unit``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from multimae_eo.errors import ConfigError, did_you_mean

Kind = Literal["continuous", "categorical"]
LossName = Literal["mse", "l1", "huber", "cross_entropy", "info_nce"]
PROJECTION_WIDTH = 64
"""Values per patch of a random projection, the target of the loss ``info_nce``."""
SAME_WAVELENGTH = 0.02
"""Centre wavelengths of one band differ by at most this share: Sentinel-2A's and 2B's do."""


def class_ids(names: Sequence[str], ids: Sequence[int] = ()) -> tuple[int, ...]:
    """The ids that stand for classes in outputs: ``ids`` where given, the names where all are
    distinct whole numbers, else positions from 0.

    >>> class_ids(["3", "7"]), class_ids(["land", "water"])
    ((3, 7), (0, 1))
    """
    if ids:
        return tuple(ids)
    if names and all(n.isascii() and n.isdigit() for n in names):
        numbers = tuple(int(n) for n in names)
        if len(set(numbers)) == len(numbers):
            return numbers
    return tuple(range(len(names)))


@dataclass(frozen=True, kw_only=True)
class Band:
    """One measured channel.

    ``wavelength_um`` is the centre wavelength in micrometres (None where that has no meaning),
    ``bandwidth_um`` the full width at half maximum (None where it is not known); bands that differ
    in nothing else are equal, since stores and models of before 0.2 do not have it.
    ``physical_range`` bounds plausible values in the modality's unit, for the data doctor.
    """

    name: str
    wavelength_um: float | None = None
    bandwidth_um: float | None = field(default=None, compare=False)
    aliases: tuple[str, ...] = ()
    gsd_m: float | None = None
    physical_range: tuple[float, float] | None = None

    def matches(self, name: str) -> bool:
        """Whether ``name`` is this band's name or alias, ignoring case, ``_-`` and zero padding."""
        return canonical(name) in {canonical(n) for n in (self.name, *self.aliases)}

    def wavelength_offset(self, other: Band) -> float | None:
        """Distance to the other's centre wavelength, a share of this one's; None without both."""
        if self.wavelength_um is None or other.wavelength_um is None:
            return None
        return abs(other.wavelength_um - self.wavelength_um) / self.wavelength_um


@dataclass(frozen=True, kw_only=True)
class ClassMapEntry:
    """One class of a categorical modality: the id stored in files, its name and sRGB colour."""

    id: int
    name: str
    color: tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class Modality:
    """Bands that share sensor, GSD and kind.

    A categorical modality has one band and a class map (``classes``). ``nodata`` lists the raw
    values that mean "never observed"; readers turn them into ``valid = False`` and no sentinel
    travels further. ``levels`` names the product levels that need statistics of their own
    (Sentinel-2: ``l1c``, ``l2a``); empty where there is only one.
    """

    name: str
    bands: tuple[Band, ...]
    kind: Kind = "continuous"
    sensor: str = ""
    gsd_m: float | None = None
    unit: str = ""
    scale: float = 1.0
    offset: float = 0.0
    classes: tuple[ClassMapEntry, ...] = ()
    nodata: tuple[float, ...] = ()
    levels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.name:
            raise ConfigError("a modality needs a name")
        if not self.bands:
            raise ConfigError(f"modality {self.name!r}: needs at least one band")
        names = [b.name for b in self.bands]
        if len(set(names)) != len(names):
            raise ConfigError(f"modality {self.name!r}: duplicate bands in {names}")
        if self.kind == "categorical":
            if len(self.bands) != 1:
                raise ConfigError(f"modality {self.name!r}: a categorical modality has one band")
            if len(self.classes) < 2:
                raise ConfigError(f"modality {self.name!r}: a class map needs at least two classes")
            ids = self.class_ids
            if len(set(ids)) != len(ids):
                raise ConfigError(f"modality {self.name!r}: duplicate class ids in {ids}")
            if self.scale != 1.0 or self.offset != 0.0:
                raise ConfigError(f"modality {self.name!r}: class ids have no scale or offset")
        elif self.classes:
            raise ConfigError(f"modality {self.name!r}: only a categorical modality has classes")
        if self.scale == 0.0:
            raise ConfigError(f"modality {self.name!r}: scale must not be 0")

    @property
    def categorical(self) -> bool:
        """Whether the pixels are class ids: resampled by nearest only, never averaged."""
        return self.kind == "categorical"

    @property
    def channels(self) -> int:
        """Number of bands."""
        return len(self.bands)

    @property
    def band_names(self) -> tuple[str, ...]:
        """The bands' names, in order."""
        return tuple(b.name for b in self.bands)

    @property
    def class_ids(self) -> tuple[int, ...]:
        """Ids as stored in files, in the class map's order."""
        return tuple(c.id for c in self.classes)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class names, in the class map's order."""
        return tuple(c.name for c in self.classes)

    @property
    def default_loss(self) -> LossName:
        """Cross-entropy for class maps, mean squared error otherwise."""
        return "cross_entropy" if self.categorical else "mse"

    def level_index(self, level: str) -> int:
        """Index of a product level in ``levels``; raises ConfigError for an unknown one."""
        if not self.levels:
            return 0
        if level in self.levels:
            return self.levels.index(level)
        got = repr(level) if level else "none"
        raise ConfigError(
            f"modality {self.name!r}: product level: got {got}; declare one of "
            f"{', '.join(self.levels)} (dataset file: `level:`)"
        )

    def meaning(self) -> dict[str, object]:
        """What must agree between data and model: everything but how a source stores it."""
        return {
            "name": self.name,
            "kind": self.kind,
            "sensor": self.sensor,
            "bands": list(self.band_names),
            "unit": self.unit,
            "class_ids": list(self.class_ids),
            "levels": list(self.levels),
        }

    def differences(self, other: Modality) -> dict[str, tuple[object, object]]:
        """By what the two mean different things: (this one's, the other's) by name.

        That of ``meaning``, and wavelengths where both have them, more than 2 % apart.
        """
        mine, theirs = self.meaning(), other.meaning()
        differs = {key: (mine[key], theirs[key]) for key in mine if mine[key] != theirs[key]}
        if "bands" not in differs:
            pairs = zip(self.bands, other.bands, strict=True)
            if any((a.wavelength_offset(b) or 0.0) > SAME_WAVELENGTH for a, b in pairs):
                ours, waves = ([b.wavelength_um for b in m.bands] for m in (self, other))
                differs["wavelengths"] = (ours, waves)
        return differs

    def to_dict(self) -> dict[str, object]:
        """A JSON-ready dictionary; ``from_dict`` is its inverse."""
        return asdict(self)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Modality:
        """Rebuild a modality written by ``to_dict``."""
        fields = dict(record)
        fields["bands"] = tuple(_band(b) for b in record["bands"])
        fields["classes"] = tuple(
            ClassMapEntry(id=c["id"], name=c["name"], color=tuple(c["color"]))
            for c in record.get("classes", ())
        )
        for key in ("nodata", "levels"):
            fields[key] = tuple(record.get(key, ()))
        return cls(**fields)


class ModalitySet(Mapping[str, Modality]):
    """An ordered, duplicate-free set of modalities, looked up by name, with a fingerprint."""

    def __init__(self, modalities: Iterable[Modality]) -> None:
        self._items: dict[str, Modality] = {}
        for modality in modalities:
            if modality.name in self._items:
                raise ConfigError(f"modality {modality.name!r} is declared twice")
            self._items[modality.name] = modality
        if not self._items:
            raise ConfigError("a modality set needs at least one modality")

    def __getitem__(self, name: str) -> Modality:
        if name not in self._items:
            raise ConfigError(f"no modality {name!r}; {did_you_mean(name, self._items)}")
        return self._items[name]

    def __contains__(self, name: object) -> bool:
        return name in self._items

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __repr__(self) -> str:
        inside = ", ".join(f"{m.name}[{','.join(m.band_names)}]" for m in self.values())
        return f"ModalitySet({inside})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ModalitySet) and list(self.values()) == list(other.values())

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def has(self, modality: Modality) -> bool:
        """Whether there is one of the same name that means the same."""
        return modality.name in self and not self[modality.name].differences(modality)

    @property
    def names(self) -> tuple[str, ...]:
        """Names in order."""
        return tuple(self._items)

    def index(self, name: str) -> int:
        """Position of a modality; its row in every ``(B, M)`` tensor."""
        self[name]
        return self.names.index(name)

    def select(self, names: Iterable[str]) -> ModalitySet:
        """The named modalities, in the order given."""
        return ModalitySet(self[n] for n in names)

    def union(self, other: ModalitySet) -> ModalitySet:
        """These and the other's new ones; ConfigError where one name has two meanings."""
        merged = dict(self._items)
        for name, theirs in other.items():
            ours = merged.setdefault(name, theirs)
            if differences := ours.differences(theirs):
                differs = ", ".join(f"{k}: {a} and {b}" for k, (a, b) in differences.items())
                raise ConfigError(
                    f"modality {name!r} means two things ({differs}); "
                    "rename one, or make them agree"
                )
        return ModalitySet(merged.values())

    @property
    def fingerprint(self) -> str:
        """16 hex digits of the SHA-256 over every modality's ``meaning``, in order."""
        text = json.dumps([m.meaning() for m in self.values()], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_list(self) -> list[dict[str, object]]:
        """JSON-ready records in order."""
        return [m.to_dict() for m in self.values()]

    @classmethod
    def from_list(cls, records: Iterable[Mapping[str, object]]) -> ModalitySet:
        """Inverse of ``to_list``."""
        return cls(Modality.from_dict(r) for r in records)


@dataclass(frozen=True, kw_only=True)
class Task:
    """A predicted output. Raw and patch-normalised RGB are two tasks on one modality.

    ``patch_normalise``: the target is standardised within each patch (He et al. 2022, section 4).
    ``loss``: with ``info_nce`` the target is a fixed random projection of the patch, which is to
    be distinguished from those of the sample's other patches. ``decoder``: the task whose decoder
    predicts this one as well, by a further output (empty: a decoder for this task).
    """

    name: str
    modality: str
    loss: LossName = "mse"
    weight: float = 1.0
    patch_normalise: bool = False
    decoder: str = ""

    @property
    def reconstructs(self) -> bool:
        """Whether pixels in their own units, or classes, are predicted."""
        return not self.patch_normalise and self.loss != "info_nce"

    @property
    def decoded_by(self) -> str:
        """Name of the task whose decoder predicts this one."""
        return self.decoder or self.name

    def __post_init__(self) -> None:
        if self.weight < 0:
            raise ConfigError(f"task {self.name!r}: weight must be ≥ 0, got {self.weight}")
        if self.patch_normalise and self.loss == "cross_entropy":
            raise ConfigError(f"task {self.name!r}: class maps cannot be patch-normalised")
        if self.patch_normalise and self.loss == "info_nce":
            raise ConfigError(
                f"task {self.name!r}: random projections are of values that are not "
                "patch-normalised; leave out patch_normalise"
            )


def validate_tasks(tasks: Iterable[Task], modalities: ModalitySet) -> tuple[Task, ...]:
    """Check names and losses of ``tasks`` against ``modalities``; raises ConfigError."""
    checked = tuple(tasks)
    names = [t.name for t in checked]
    if len(set(names)) != len(names):
        raise ConfigError(f"duplicate tasks in {names}")
    for task in checked:
        modality = modalities[task.modality]
        if modality.categorical != (task.loss == "cross_entropy"):
            raise ConfigError(
                f"task {task.name!r}: loss {task.loss!r} does not suit the {modality.kind} "
                f"modality {modality.name!r}; use {modality.default_loss!r}"
            )
        shared = next((t for t in checked if t.name == task.decoded_by), None)
        if shared is None:
            raise ConfigError(
                f"task {task.name!r}: decoder: no task {task.decoder!r}; "
                f"{did_you_mean(task.decoder, names)}"
            )
        if shared.modality != task.modality or shared.decoded_by != shared.name:
            raise ConfigError(
                f"task {task.name!r}: decoder: {task.decoder!r} must be a task of the modality "
                f"{task.modality!r} with a decoder; it is of {shared.modality!r}"
            )
    return checked


def _band(record: Mapping[str, Any]) -> Band:
    fields = dict(record)
    fields["aliases"] = tuple(fields.get("aliases", ()))
    if fields.get("physical_range") is not None:
        fields["physical_range"] = tuple(fields["physical_range"])
    return Band(**fields)


def rename(modality: Modality, name: str) -> Modality:
    """The same modality under another name."""
    return replace(modality, name=name)


def canonical(name: str) -> str:
    """A band name without case, separators and zero padding: ``B_02`` and ``b2`` are one."""
    text = "".join(ch for ch in name.lower() if ch not in " _-.")
    if len(text) > 1 and text[0] == "b" and text[1] == "0":
        text = "b" + (text[1:].lstrip("0") or "0")
    return text
