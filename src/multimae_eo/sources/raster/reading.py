"""One raster file as an array: GeoTIFF (rasterio), PNG and JPEG (Pillow), NumPy's ``.npy``.

Pixels keep their native number type. Nothing here knows what the bands mean: a file's own band
names, nodata and georeferencing are passed on as they are. Pickled arrays are refused.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from multimae_eo.errors import ConfigError, FormatError, MultiMAEError
from multimae_eo.geo import Geometry
from multimae_eo.sample import Pixels, Validity
from multimae_eo.sources.file_kind import other_kind
from multimae_eo.sources.yaml_section import one_line

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
_IMAGE_BANDS = {
    "RGB": ("red", "green", "blue"),
    "RGBA": ("red", "green", "blue", "alpha"),
    "LA": ("", "alpha"),
}


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a file says of itself. ``bands``: its names, ``""`` where it has none.

    ``nodata``: per band, or None. ``calibration``: (scale, offset) per band as the file declares
    it, (1, 0) by default. ``shape``: (H, W). ``geometry``: None without georeferencing.
    """

    path: Path
    bands: tuple[str, ...]
    shape: tuple[int, int]
    dtype: np.dtype[Any]
    nodata: tuple[float | None, ...]
    calibration: tuple[tuple[float, float], ...]
    geometry: Geometry | None = None

    @property
    def count(self) -> int:
        """Number of bands."""
        return len(self.bands)


@dataclass(frozen=True, kw_only=True)
class Raster:
    """A file's pixels (C, H, W), and its own mask (1, H, W), None where it has none."""

    header: Header
    pixels: Pixels
    mask: Validity | None = None


def read_header(path: Path) -> Header:
    """Read a raster's description only; errors as for ``read_raster``."""
    with _reading(path):
        if path.suffix.lower() in IMAGE_SUFFIXES:
            return _image(path).header
        if path.suffix.lower() == ".npy":
            return _header_of(path, _numpy(path, mapped=True))
        with _rasterio().open(path) as dataset:
            return _dataset_header(path, dataset)


def read_raster(path: Path) -> Raster:
    """Read a whole raster file.

    Raises FormatError naming the file when it is missing, truncated, not a raster, or of a number
    type that is not real (complex, text, objects); ConfigError when rasterio is not installed.
    """
    with _reading(path):
        if path.suffix.lower() in IMAGE_SUFFIXES:
            return _image(path)
        if path.suffix.lower() == ".npy":
            pixels = _numpy(path)
            return Raster(header=_header_of(path, pixels), pixels=pixels)
        rasterio = _rasterio()
        with rasterio.open(path) as dataset:
            header = _dataset_header(path, dataset)
            pixels = dataset.read()
            flags = rasterio.enums.MaskFlags
            # Not for alpha: GDAL calls the fourth band of any 8-bit file alpha by default.
            own = all(f == [flags.per_dataset] for f in dataset.mask_flag_enums)
            mask = dataset.dataset_mask()[None] > 0 if own else None
        return Raster(header=header, pixels=_real(path, pixels), mask=mask)


def valid_pixels(
    pixels: Pixels, nodata: Sequence[Sequence[float]], mask: Validity | None = None
) -> Validity | None:
    """Where pixels (C, H, W) were observed: finite, allowed by ``mask`` and not nodata.

    ``nodata``: per band, the values that mean "never observed". Returns bool (1, H, W) where the
    bands agree, else (C, H, W); None where every pixel is valid.
    """
    floating = pixels.dtype.kind == "f"
    if not floating and mask is None and not any(nodata):
        return None
    ok = np.isfinite(pixels) if floating else np.ones(pixels.shape, dtype=bool)
    for band, values in enumerate(nodata):
        for value in values:
            if math.isfinite(value) and (floating or value.is_integer()):
                ok[band] &= pixels[band] != (value if floating else int(value))
    if mask is not None:
        ok &= mask
    if ok.all():
        return None
    return ok[:1] if (ok == ok[:1]).all() else ok


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    if not path.is_file():
        missing = "is a folder; name the files in it" if path.is_dir() else "no such file"
        raise FormatError(f"{path}: {other_kind(path) or missing}")
    try:
        yield
    except MultiMAEError:
        raise
    # Decoders of damaged files raise nearly anything: OSError, SyntaxError, MemoryError, …
    except Exception as error:
        if kind := other_kind(path):
            raise FormatError(f"{path}: {kind}") from error
        what = one_line(error).replace(str(path), "it")
        raise FormatError(
            f"{path}: cannot be read (truncated or damaged?): {what}; restore the file"
        ) from error


@functools.cache
def _rasterio() -> Any:
    try:
        import rasterio
        import rasterio.enums
    except ImportError as error:
        raise ConfigError(
            "reading GeoTIFF needs rasterio; install it with pip install 'multimae-eo[geo]'"
        ) from error
    import warnings

    warnings.filterwarnings("ignore", category=rasterio.errors.NotGeoreferencedWarning)
    return rasterio


def _real(path: Path, pixels: Pixels) -> Pixels:
    """Pixels in native byte order; FormatError unless they are real numbers of up to 64 bits."""
    if pixels.dtype.kind == "b":
        return pixels.astype(np.uint8)
    if pixels.dtype.kind not in "uif" or pixels.dtype.itemsize > 8:
        raise FormatError(
            f"{path}: number type {pixels.dtype} cannot be a band; store real integers or floats "
            "(a complex radar image: its intensity)"
        )
    return pixels.astype(pixels.dtype.newbyteorder("="), copy=False)


def _header_of(path: Path, pixels: Pixels, bands: tuple[str, ...] = ()) -> Header:
    count, height, width = pixels.shape
    return Header(
        path=path,
        bands=bands or ("",) * count,
        shape=(height, width),
        dtype=pixels.dtype,
        nodata=(None,) * count,
        calibration=((1.0, 0.0),) * count,
    )


def _image(path: Path) -> Raster:
    from PIL import Image

    with Image.open(path) as image:
        bands = _IMAGE_BANDS.get(image.mode, ())
        array = np.asarray(image)
    pixels = _real(path, array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0))
    if bands[-1:] == ("alpha",):
        header = _header_of(path, pixels[:-1], bands[:-1])
        return Raster(header=header, pixels=pixels[:-1], mask=pixels[-1:] > 0)
    return Raster(header=_header_of(path, pixels, bands), pixels=pixels)


def _numpy(path: Path, *, mapped: bool = False) -> Pixels:
    array = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    if array.ndim not in (2, 3) or not array.size:
        raise FormatError(f"{path}: expected an array (C, H, W) or (H, W), got {array.shape}")
    pixels = array[None] if array.ndim == 2 else array
    return _real(path, pixels)


def _dataset_header(path: Path, dataset: Any) -> Header:
    dtypes = set(dataset.dtypes)
    if len(dtypes) > 1 or next(iter(dtypes)).startswith("complex"):
        raise FormatError(
            f"{path}: number type {', '.join(sorted(dtypes))}; store one real type for all bands"
        )
    return Header(
        path=path,
        bands=tuple((d or "").strip() for d in dataset.descriptions),
        shape=(dataset.height, dataset.width),
        dtype=np.dtype(dataset.dtypes[0]),
        nodata=tuple(None if n is None else float(n) for n in dataset.nodatavals),
        calibration=tuple(zip(dataset.scales, dataset.offsets, strict=True)),
        geometry=_geometry(dataset),
    )


def _geometry(dataset: Any) -> Geometry | None:
    """The footprint, where the file is georeferenced and north (or south) is up."""
    transform = dataset.transform
    if dataset.crs is None or transform.is_identity or not transform.is_rectilinear:
        return None
    left, bottom, right, top = (float(v) for v in dataset.bounds)
    bounds = (min(left, right), min(bottom, top), max(left, right), max(bottom, top))
    authority = dataset.crs.to_authority()
    crs = ":".join(authority) if authority else dataset.crs.to_wkt()
    if not all(math.isfinite(v) for v in bounds) or bounds[0] == bounds[2]:
        return None
    return Geometry(crs=crs, bounds=bounds)
