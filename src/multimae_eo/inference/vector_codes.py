"""Embeddings as int8: a scale and an offset of each dimension, recorded with the vectors."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from multimae_eo.errors import ConfigError, FormatError

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

Dtype = Literal["float32", "float16", "int8"]
"""Of stored embeddings."""
DTYPES: tuple[Dtype, ...] = ("float32", "float16", "int8")
METADATA_KEY = "multimae_eo"
"""Of the JSON record about a file of embeddings, in its Parquet metadata."""
NODATA_CODE = -128
"""Of rasters; vectors have the codes -127 to 127."""

Array = npt.NDArray[np.float32]


def require_dtype(dtype: str, *, half: bool = False) -> Dtype:
    """A dtype of embeddings; ``half`` is float16. ConfigError for any other, or for both."""
    if dtype not in DTYPES:
        raise ConfigError(f"dtype must be {', '.join(DTYPES)}, got {dtype!r}")
    if half and dtype == "int8":
        raise ConfigError("half is dtype float16, but dtype int8 was given; give one of them")
    return "float16" if half else dtype


@dataclass(frozen=True, kw_only=True)
class VectorCodes:
    """``value = code * scale + offset`` in each dimension; both (D,), float64."""

    scale: npt.NDArray[np.float64]
    offset: npt.NDArray[np.float64]

    @classmethod
    def of_range(cls, low: npt.ArrayLike, high: npt.ArrayLike) -> VectorCodes:
        """The codes that span ``low`` to ``high``, each (D,)."""
        bottom, top = np.asarray(low, np.float64), np.asarray(high, np.float64)
        scale = (top - bottom) / 254
        return cls(scale=np.where(scale > 0, scale, 1.0), offset=(top + bottom) / 2)

    @classmethod
    def of_record(cls, record: Mapping[str, object], where: str, width: int) -> VectorCodes:
        """From a file's record; FormatError where it does not declare them for ``width``."""
        try:
            scale, offset = (np.asarray(record[n], np.float64) for n in ("scale", "offset"))
        except (KeyError, TypeError, ValueError):
            scale = offset = np.zeros(0)
        if scale.shape != (width,) or offset.shape != (width,):
            raise FormatError(
                f"{where}: int8 vectors without their scale and offset (metadata "
                f"{METADATA_KEY!r}); write them again with multimae-eo embed"
            )
        return cls(scale=scale, offset=offset)

    def record(self) -> dict[str, list[float]]:
        """As JSON."""
        return {"scale": self.scale.tolist(), "offset": self.offset.tolist()}

    def encode(self, vectors: npt.NDArray[Any]) -> npt.NDArray[np.int8]:
        """Vectors (n, D) as codes, the nearest."""
        codes = np.rint((vectors - self.offset) / self.scale)
        return np.clip(codes, -127, 127).astype(np.int8)

    def decode(self, codes: npt.NDArray[Any]) -> Array:
        """Codes (n, D) as vectors."""
        return (codes * self.scale + self.offset).astype(np.float32)


class CodeLoss:
    """Cosine similarity of coded vectors to those that were coded, over all that are added."""

    def __init__(self) -> None:
        self.count, self.total, self.least = 0, 0.0, 1.0

    def add(self, vectors: npt.NDArray[np.generic], coded: npt.NDArray[np.generic]) -> None:
        """Compare vectors (n, D), row by row."""
        if not len(vectors):
            return
        cosine = paired_cosine(vectors, coded)
        self.count += len(cosine)
        self.total += float(cosine.sum())
        self.least = min(self.least, float(cosine.min()))

    def record(self) -> dict[str, float]:
        """``cosine_mean`` and ``cosine_min``, to 6 digits."""
        mean = self.total / self.count if self.count else 1.0
        return {"cosine_mean": round(mean, 6), "cosine_min": round(self.least, 6)}


def paired_cosine(
    a: npt.NDArray[np.generic], b: npt.NDArray[np.generic]
) -> npt.NDArray[np.float64]:
    """Cosine similarity of two arrays of vectors (n, D), row by row: (n,), -1 to 1."""
    u, v = np.asarray(a, np.float64), np.asarray(b, np.float64)
    lengths = np.linalg.norm(u, axis=1) * np.linalg.norm(v, axis=1)
    cosine = (u * v).sum(axis=1) / np.maximum(lengths, 1e-24)
    return np.asarray(np.clip(cosine, -1.0, 1.0))


def metadata_record(metadata: Mapping[bytes, bytes] | None) -> dict[str, object]:
    """The record about embeddings in a Parquet file's metadata; empty where it has none."""
    try:
        record = json.loads((metadata or {}).get(METADATA_KEY.encode(), b"{}"))
    except (ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def vector_decoder(file: ParquetFile, where: str) -> Callable[[npt.NDArray[Any]], Array]:
    """What makes the vectors (n, D) of an open Parquet file float32, by its column ``vector``.

    FormatError for int8 without its scale.
    """
    kind = file.schema_arrow.field("vector").type
    if str(getattr(kind, "value_type", "")) != "int8":
        return lambda vectors: vectors.astype(np.float32)
    width = getattr(kind, "list_size", -1)
    return VectorCodes.of_record(metadata_record(file.metadata.metadata), where, width).decode
