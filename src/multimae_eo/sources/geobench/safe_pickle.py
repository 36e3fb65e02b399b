"""Reads the pickles of published data sets without running anything that they name.

A pickle is a small program whose only door to Python is the lookup of a name. Here that door leads
to ``OpaqueObject`` in place of the classes that GEO-Bench writes, to dates, and to numbers decoded
from their bytes; every other name is refused. No class of another library is looked up, called or
filled with a pickle's state, so the libraries that wrote a file need not be installed either.
"""

from __future__ import annotations

import ast
import datetime
import io
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from multimae_eo.errors import FormatError

LARGEST = 16 * 2**20
"""Bytes of a pickle, 100 times the largest that is published."""

_BYTES_LITERAL = re.compile(r"""b(['"])(?:(?!\1)[^\\\n]|\\.)*\1""", re.DOTALL)
_NUMBERS = re.compile(r"[<>=|](b1|[iu][1248]|f[248])")


class OpaqueObject:
    """A stand-in for an object of a class that is not loaded: what it was made of, and no more.

    ``arguments``: those of its constructor. ``state``: its attributes, or whatever it stored.
    """

    arguments: tuple[Any, ...]
    state: object

    def __new__(cls, *arguments: object) -> OpaqueObject:
        """Keep the arguments; pickles may skip ``__init__``."""
        made = super().__new__(cls)
        made.arguments, made.state = arguments, {}
        return made

    def __setstate__(self, state: object) -> None:
        self.state = state


class StoredArray:
    """A NumPy array decoded from its bytes: ``values``."""

    values: npt.NDArray[np.generic] = np.zeros(0)

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        self.values = _decode(data, dtype, shape, "F" if fortran else "C")


class _NumberType:
    """A NumPy dtype: its name, and the byte order that the pickle sets afterwards."""

    def __init__(self, name: str, *_: object) -> None:
        self.name, self.order = name, "<"

    def __setstate__(self, state: Any) -> None:
        self.order = state[1]

    @property
    def dtype(self) -> np.dtype[np.generic]:
        name = f"{self.order}{self.name}"
        if not _NUMBERS.fullmatch(name):
            raise pickle.UnpicklingError(f"the NumPy type {name!r} is no number")
        return np.dtype(name)


def _decode(data: object, dtype: object, shape: Any, order: object) -> npt.NDArray[np.generic]:
    if not isinstance(dtype, _NumberType) or not isinstance(data, bytes | bytearray):
        raise pickle.UnpicklingError("a NumPy array of other things than numbers")
    flat = np.frombuffer(bytes(data), dtype.dtype)
    values: npt.NDArray[np.generic] = flat.reshape(shape, order="F" if order == "F" else "C")
    return values


class _Scalar:
    """Makes a Python number. A class, as all that is reachable: functions could be written to."""

    def __new__(cls, dtype: object, data: object) -> Any:
        return _decode(data, dtype, (), "C").item()

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("a number has no state")


class _FromBuffer(StoredArray):
    """An array as protocol 5 stores it."""

    def __init__(self, data: object, dtype: object, shape: object, order: object) -> None:
        self.values = _decode(data, dtype, shape, order)


class _Ordered(OrderedDict[object, object]):
    """An OrderedDict that is filled item by item only, as Python pickles it."""

    def __init__(self, *arguments: object) -> None:
        if arguments:
            raise pickle.UnpicklingError("an OrderedDict with arguments")
        super().__init__()


def _allowed() -> Mapping[tuple[str, str], type]:
    classes: dict[tuple[str, str], type] = {
        ("numpy", "dtype"): _NumberType,
        ("numpy", "ndarray"): StoredArray,
        ("affine", "Affine"): OpaqueObject,
        ("rasterio.crs", "CRS"): OpaqueObject,
        ("collections", "OrderedDict"): _Ordered,
    }
    for name in ("date", "datetime", "timedelta", "timezone"):
        classes["datetime", name] = getattr(datetime, name)
    for core in ("numpy.core", "numpy._core"):
        classes[f"{core}.multiarray", "scalar"] = _Scalar
        classes[f"{core}.multiarray", "_reconstruct"] = StoredArray
        classes[f"{core}.numeric", "_frombuffer"] = _FromBuffer
    # GEO-Bench's own classes, under the names that its modules have had.
    bands = ("BandInfo SpectralBand Sentinel1 Sentinel2 Landsat8 Mask ElevationBand MultiBand "
             "HyperSpectralBands CloudProbability SegmentationClasses")  # fmt: skip
    labels = ("LabelType Classification SemanticSegmentation MultiLabelClassification Regression "
              "Detection PointAnnotation")  # fmt: skip
    tasks = "TaskSpecifications Accuracy MultilabelAccuracy SegmentationAccuracy"
    for root in ("geobench", "geobench.io", "ccb.io"):
        for module, names in (("dataset", bands), ("label", labels), ("task", tasks)):
            for name in names.split():
                classes[f"{root}.{module}", name] = classes[root, name] = OpaqueObject
    return classes


_ALLOWED = _allowed()


class _RefusedName(pickle.UnpicklingError):
    pass


# The pure Python decoder: the other one takes gigabytes of memory where ten bytes ask for it.
class _Unpickler(pickle._Unpickler):
    dispatch: ClassVar[dict[int, Callable[[pickle.Unpickler], None]]] = dict(
        pickle._Unpickler.dispatch
    )

    def find_class(self, module: str, name: str) -> object:
        cls = _ALLOWED.get((module, name))
        if cls is None:
            raise _RefusedName(f"it names {module}.{name}")
        return cls


def _with_flat_keys(
    opcode: int, load: Callable[[pickle.Unpickler], None]
) -> Callable[[pickle.Unpickler], None]:
    """A step of decoding that refuses keys made of others: to hash them may take for ever."""

    def step(unpickler: Any) -> None:
        single = opcode == pickle.SETITEM[0]
        for item in unpickler.stack[-2:-1] if single else unpickler.stack:
            if _nested(item):
                raise pickle.UnpicklingError("a key, or an element of a set, is made of others")
        load(unpickler)

    return step


def _nested(item: object) -> bool:
    parts = item if isinstance(item, tuple | frozenset) else ()
    return any(isinstance(p, tuple | frozenset) for p in parts)


for _code in (pickle.FROZENSET[0], pickle.ADDITEMS[0], pickle.SETITEM[0]):
    _Unpickler.dispatch[_code] = _with_flat_keys(_code, pickle._Unpickler.dispatch[_code])


def _expanded(value: object, sizes: dict[int, int]) -> int:
    """How many values a value stands for where shared ones are counted each time."""
    size = sizes.get(id(value))
    if size is None:
        sizes[id(value)] = LARGEST  # what holds itself never ends
        below: Iterable[object] = ()
        if isinstance(value, Mapping):
            below = (*value.keys(), *value.values())
        elif isinstance(value, list | tuple | set | frozenset):
            below = value
        elif isinstance(value, OpaqueObject):
            below = (value.arguments, value.state)
        size = sizes[id(value)] = 1 + sum(_expanded(v, sizes) for v in below)
    return size


def load_pickle(data: bytes, where: str) -> Any:
    """Decode a pickle into plain containers, numbers, dates, ``StoredArray`` and ``OpaqueObject``.

    ``where`` names the file for messages. Raises FormatError for a pickle that names anything
    else, is damaged, or is larger than ``LARGEST``.
    """
    if len(data) > LARGEST:
        raise FormatError(f"{where}: a pickle of {len(data)} bytes; at most {LARGEST} are read")
    try:
        value = _Unpickler(io.BytesIO(data)).load()
        if _expanded(value, {}) > LARGEST:
            raise pickle.UnpicklingError("it makes much of little by sharing values")
        return value
    except _RefusedName as error:
        raise FormatError(
            f"{where}: the pickle is refused: {error}, which GEO-Bench's files have no use for; "
            "it may be malicious, download the data set again from its publisher"
        ) from error
    # A damaged pickle raises nearly anything: EOFError, AttributeError, ValueError, MemoryError …
    except Exception as error:
        raise FormatError(
            f"{where}: the pickle cannot be decoded ({type(error).__name__}: {error}); "
            "the file is damaged, download it again"
        ) from error


def load_pickle_text(text: str | bytes, where: str) -> object:
    """Decode a pickle stored as ``str(bytes)``: the text of a bytes literal. Errors as above."""
    if isinstance(text, bytes):
        text = text.decode("latin-1")
    if len(text) > 4 * LARGEST or not _BYTES_LITERAL.fullmatch(text):
        raise FormatError(
            f"{where}: expected the text of a bytes literal (b'…'), got {text[:20]!r}; "
            "the file is damaged, download it again"
        )
    try:
        data = ast.literal_eval(text)
    except (ValueError, SyntaxError) as error:
        raise FormatError(f"{where}: no bytes literal: {error}; download it again") from error
    return load_pickle(data, where)
