"""One raster file as an array: GeoTIFF (rasterio), PNG and JPEG (Pillow), NumPy's ``.npy``.

Pixels keep their dtype and are returned north-up. The meaning of the bands is not interpreted here:
band names, nodata and georeferencing are passed on as stored. Pickled arrays are refused, and a
file is opened only by the drivers of the format that its name and first bytes indicate.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Literal

import numpy as np

from multimae_eo.errors import ConfigError, FormatError, MultiMAEError
from multimae_eo.geo import Window
from multimae_eo.sample import Pixels, Validity
from multimae_eo.sources.raster.arrays import cube_name, open_array
from multimae_eo.sources.raster.header import (
    RasterHeader,
    dataset_header,
    plain_header,
    require_upright,
)
from multimae_eo.sources.raster.remote import (
    gdal_name,
    is_remote,
    remote_settings,
    suffix_of,
    with_attempts,
)
from multimae_eo.sources.raster.vrt import require_beside
from multimae_eo.sources.unsupported_files import other_kind
from multimae_eo.sources.yaml_section import one_line

if TYPE_CHECKING:
    from PIL.Image import Image
    from rasterio.io import DatasetReader

Layout = Literal["chw", "hwc"]
"""Order of an array file's axes: (C, H, W) or (H, W, C)."""
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
_IMAGE_BANDS = {
    "RGB": ("red", "green", "blue"),
    "RGBA": ("red", "green", "blue", "alpha"),
    "LA": ("", "alpha"),
}
_JPEG2000 = ("JP2KAK", "JP2ECW", "JP2MrSID", "JP2OpenJPEG")
_SIGNATURES: tuple[tuple[bytes, tuple[str, ...]], ...] = (
    (b"II*\0", ("GTiff",)),
    (b"MM\0*", ("GTiff",)),
    (b"II+\0", ("GTiff",)),
    (b"MM\0+", ("GTiff",)),
    (b"\x89PNG", ("PNG",)),
    (b"\xff\xd8\xff", ("JPEG",)),
    (b"\0\0\0\x0cjP  ", _JPEG2000),
    (b"\xff\x4f\xff\x51", _JPEG2000),
    (b"EHFA_HEADER_TAG", ("HFA",)),
    (b"CDF", ("netCDF",)),
    (b"\x89HDF", ("netCDF", "HDF5")),
)
# Formats without a signature are known by name alone.
_BY_SUFFIX = {
    ".asc": ("AAIGrid",),
    ".hgt": ("SRTMHGT",),
    ".bil": ("EHdr", "ENVI"),
    ".bip": ("EHdr", "ENVI"),
    ".bsq": ("EHdr", "ENVI"),
    ".dat": ("ENVI",),
    ".img": ("ENVI",),
    ".dem": ("USGSDEM",),
    ".sdat": ("SAGA",),
    ".rst": ("RST",),
}
_REMOTE = {".jp2": _JPEG2000, ".png": ("PNG",), ".jpg": ("JPEG",), ".jpeg": ("JPEG",)}


@dataclass(frozen=True, kw_only=True)
class Raster:
    """A file's pixels (C, H, W), north-up, and its own mask (1 or C, H, W), None without one.

    An alpha band of a GeoTIFF is still among the pixels; ``observed`` applies it where it is one.
    """

    header: RasterHeader
    pixels: Pixels
    mask: Validity | None = None

    def observed(
        self,
        at: Sequence[int],
        *,
        nodata: Sequence[float] | None = None,
        class_map_nodata: Sequence[float] = (),
        names: Sequence[str] = (),
    ) -> Validity | None:
        """Where the 0-based bands ``at`` hold measurements; see ``valid_pixels``.

        ``nodata``: declared values, None for the file's tags. ``class_map_nodata``: values
        of the class map, used without declared ones. ``names``: of all bands, as declared.
        """
        bands = list(at)
        alpha = self.header.alpha_band(bands, names)
        mask = self.mask if self.mask is None or len(self.mask) == 1 else self.mask[bands]
        if alpha is not None:
            clear = self.pixels[alpha : alpha + 1] > 0
            mask = clear if mask is None else mask & clear
        values = self.header.unobserved(bands, nodata, class_map_nodata)
        return valid_pixels(self.pixels[bands], values, mask)


def read_header(path: Path, *, layout: Layout = "chw") -> RasterHeader:
    """Read a raster's description only; ``layout`` and errors as for ``read_raster``."""
    with _reading(path):
        if path.suffix.lower() in IMAGE_SUFFIXES:
            return _image(path).header
        if path.suffix.lower() == ".npy":
            return _array_header(path, _numpy(path, layout, mapped=True), layout)
        with open_dataset(path) as dataset:
            return dataset_header(path, dataset)


def read_raster(path: Path, *, layout: Layout = "chw") -> Raster:
    """Read all of a raster file; ``layout``: order of the axes of a ``.npy`` array.

    Raises FormatError naming the file when it is missing, truncated, rotated, not a raster, or of a
    dtype that is not a real number (complex, text, objects); ConfigError when rasterio is missing.
    """
    with _reading(path):
        if path.suffix.lower() in IMAGE_SUFFIXES:
            return _image(path)
        if path.suffix.lower() == ".npy":
            pixels = _numpy(path, layout)
            return Raster(header=_array_header(path, pixels, layout), pixels=pixels)
        with open_dataset(path) as dataset:
            header = dataset_header(path, dataset)
            require_upright(header)
            pixels, mask = read_window(dataset, header, range(header.count), None)
            return Raster(header=header, pixels=_real(path, pixels), mask=mask)


def open_dataset(path: Path | str, **options: object) -> DatasetReader:
    """A rasterio dataset of a file or link, opened by the drivers that its kind allows.

    FormatError for a VRT under another name, or one that reads files elsewhere.
    """
    rasterio = _rasterio()
    if cube_name(path) is not None:
        return open_array(path)
    if is_remote(path):
        name, driver = gdal_name(path), _drivers(path)[-1]
        return with_attempts(
            path, lambda: rasterio.open(name, driver=driver, **options), lambda: None
        )
    drivers = _drivers(path)
    for driver in drivers[:-1]:
        # Which of several libraries for one format GDAL was built with is not known.
        with suppress(rasterio.errors.RasterioIOError):
            return rasterio.open(str(path), driver=driver, **options)
    return rasterio.open(str(path), driver=drivers[-1], **options)


def read_window(
    dataset: DatasetReader, header: RasterHeader, at: Sequence[int], window: Window | None
) -> tuple[Pixels, Validity | None]:
    """0-based bands ``at`` of a window of the north-up pixels: (C, H, W), and the file's own mask.

    ``window``: None for everything, else inside the raster. The mask is (1 or C, H, W), without
    nodata and alpha; None where the file has none.
    """
    height, width = header.shape
    area = window or Window(row=0, col=0, height=height, width=width)
    row = height - area.row - area.height if header.south_up else area.row
    col = width - area.col - area.width if header.mirrored else area.col
    part = (row, row + area.height), (col, col + area.width)
    bands = [i + 1 for i in at]
    pixels = dataset.read(bands, window=part)
    kinds = {header.bands[i].mask for i in at}
    mask = None
    if kinds == {"dataset"}:
        mask = dataset.read_masks(bands[:1], window=part) > 0
    elif kinds - {""}:
        mask = np.ones(pixels.shape, dtype=bool)
        for index, i in enumerate(at):
            if header.bands[i].mask:
                mask[index] = dataset.read_masks(i + 1, window=part) > 0
    if header.flipped:
        order = (..., slice(None, None, -1 if header.south_up else 1),
                 slice(None, None, -1 if header.mirrored else 1))  # fmt: skip
        pixels = np.ascontiguousarray(pixels[order])
        mask = None if mask is None else np.ascontiguousarray(mask[order])
    return pixels, mask


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
    if cube_name(path) is None and not is_remote(path) and not path.is_file():
        missing = "is a folder; name the files in it" if path.is_dir() else "no such file"
        raise FormatError(f"{path}: {other_kind(path) or missing}")
    try:
        with remote_settings(path):
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
def _rasterio() -> ModuleType:
    try:
        import rasterio
        import rasterio.enums
    except ImportError as error:
        raise ConfigError(
            "reading GeoTIFF needs rasterio; install it with pip install 'multimae-eo[geo]'"
        ) from error
    import warnings

    warnings.filterwarnings("ignore", category=rasterio.errors.NotGeoreferencedWarning)
    loaded: ModuleType = rasterio
    return loaded


def _drivers(path: Path | str) -> tuple[str, ...]:
    """GDAL's drivers that may open a file: those of its first bytes, else of its suffix."""
    local = Path(path)
    suffix = suffix_of(path)
    if not local.is_file():
        return _REMOTE.get(suffix, ("GTiff",))
    if suffix == ".vrt":
        for source in _vrt_sources(local, os.stat(local).st_mtime_ns):
            _drivers(source)
        return ("VRT",)
    with local.open("rb") as stream:
        start = stream.read(64)
    if start.lstrip().startswith(b"<VRTDataset"):
        raise FormatError(f"{path}: is a VRT under another name; rename it to .vrt to use it")
    for signature, drivers in _SIGNATURES:
        if start.startswith(signature):
            return drivers
    return _BY_SUFFIX.get(suffix, ("GTiff",))


@functools.lru_cache(maxsize=256)
def _vrt_sources(path: Path, written: int) -> tuple[Path, ...]:
    """The files of a VRT. ``written``: its time stamp, so that a replaced one is checked again."""
    return require_beside(path)


def _real(path: Path, pixels: Pixels) -> Pixels:
    """Pixels in native byte order; FormatError unless they are real numbers of up to 64 bits."""
    if pixels.dtype.kind == "b":
        return pixels.astype(np.uint8)
    if pixels.dtype.kind not in "uif" or pixels.dtype.itemsize > 8:
        raise FormatError(
            f"{path}: dtype {pixels.dtype} cannot be a band; store real integers or floats "
            "(a complex radar image: its intensity)"
        )
    return pixels.astype(pixels.dtype.newbyteorder("="), copy=False)


def _image(path: Path) -> Raster:
    from PIL import Image

    if _deep_color(path):
        return _deep_image(path)
    with Image.open(path, formats=("PNG", "JPEG", "MPO")) as image:
        bands = _IMAGE_BANDS.get(image.mode, ())
        clear = image.info.get("transparency")
        palette = _palette(image) if image.mode == "P" else None
        array = np.asarray(image)
    pixels = _real(path, array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0))
    mask: Validity | None = None
    if bands[-1:] == ("alpha",):
        mask, pixels, bands = pixels[-1:] > 0, pixels[:-1], bands[:-1]
    elif isinstance(clear, tuple) and len(clear) == len(pixels):
        # A colour that is transparent: pixels of exactly this colour.
        same = pixels == np.array(clear, dtype=np.int64)[:, None, None]
        mask = ~same.all(axis=0, keepdims=True)
        mask = None if mask.all() else mask
    header = plain_header(
        path, pixels.shape[1:], bands or ("",) * len(pixels), pixels.dtype,
        transparent=_transparent(clear, palette), palette=palette,
    )  # fmt: skip
    return Raster(header=header, pixels=pixels, mask=mask)


def _palette(image: Image) -> dict[int, tuple[int, int, int, int]]:
    """Palette index → RGBA."""
    colors = np.asarray(image.getpalette("RGBA"), dtype=int).reshape(-1, 4)
    return {i: (int(r), int(g), int(b), int(a)) for i, (r, g, b, a) in enumerate(colors)}


def _transparent(clear: object, palette: Mapping[int, tuple[int, ...]] | None) -> tuple[float, ...]:
    """Grey values or palette indices that tRNS marks as transparent."""
    if isinstance(clear, bytes):
        return tuple(float(i) for i, alpha in enumerate(clear) if alpha == 0)
    return (float(clear),) if isinstance(clear, int) and (palette or clear >= 0) else ()


def _deep_color(path: Path) -> bool:
    """Whether a file is a PNG of 16 bits a colour, of which Pillow keeps the high bytes only."""
    with path.open("rb") as stream:
        start = stream.read(26)
    return start[:4] == b"\x89PNG" and len(start) == 26 and start[24] == 16 and start[25] != 0


def _deep_image(path: Path) -> Raster:
    """A 16-bit colour PNG, through GDAL."""
    with open_dataset(path) as dataset:
        header = dataset_header(path, dataset)
        pixels, mask = read_window(dataset, header, range(header.count), None)
    colors = ("red", "green", "blue") if header.count > 2 else ("",)
    if header.count > len(colors):
        mask, pixels = pixels[-1:] > 0, pixels[:-1]
    rgb_header = plain_header(path, header.shape, colors, pixels.dtype)
    return Raster(header=rgb_header, pixels=pixels, mask=mask)


def _numpy(path: Path, layout: Layout, *, mapped: bool = False) -> Pixels:
    array = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    if array.ndim not in (2, 3) or not array.size:
        axes = ", ".join(layout.upper())
        raise FormatError(f"{path}: expected an array ({axes}) or (H, W), got {array.shape}")
    if array.ndim == 2:
        return _real(path, array[None])
    if layout == "chw":
        return _real(path, array)
    height, width, count = array.shape
    if height <= 32 and height < width == count:
        raise FormatError(
            f"{path}: the array {array.shape} looks like (C, H, W), declared is (H, W, C); remove "
            "`layout: hwc`"
        )
    return _real(path, np.moveaxis(array, -1, 0))


def _array_header(path: Path, pixels: Pixels, layout: Layout) -> RasterHeader:
    count, height, width = pixels.shape
    if layout == "hwc":
        return plain_header(path, (height, width), ("",) * count, pixels.dtype)
    # The last axis shorter than two like ones: rows would be taken for bands.
    last = width < min(count, height) and (count == height or width <= 32)
    return plain_header(
        path, (height, width), ("",) * count, pixels.dtype, channels_last=count > 1 and last
    )
