"""What a file is that is no raster, and what to do with it: vectors, cubes, arrays, archives."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

_VECTOR = (
    "is a vector file ({name}), not a raster; as labels name it in the dataset or scene file: "
    "`labels: {{vector: FILE, column: NAME}}`"
)
_CUBE = (
    "is {name}; name its variable in a scene file (`path: FILE.zarr::VARIABLE`, also `.nc`, and "
    "`@DATE` after it); write those of other formats as GeoTIFF (gdal_translate)"
)
_ARRAYS = "is {name}; save each chip's array (C, H, W) as `.npy`, or as a GeoTIFF"
_ARCHIVE = "is {name}, an archive; unpack it, and name what is in it"
_SCENE = "is {name}; use it as a scene (--scene), or name it in a scene file: `product: NAME.SAFE`"
_TEXT = "is {name}, not a raster; name the image files themselves"

_BY_SUFFIX: Mapping[str, tuple[str, str]] = {
    ".gpkg": ("GeoPackage", _VECTOR),
    ".geojson": ("GeoJSON", _VECTOR),
    ".shp": ("Shapefile", _VECTOR),
    ".dbf": ("a part of a Shapefile", _VECTOR),
    ".shx": ("a part of a Shapefile", _VECTOR),
    ".fgb": ("FlatGeobuf", _VECTOR),
    ".kml": ("KML", _VECTOR),
    ".kmz": ("KML", _VECTOR),
    ".gml": ("GML", _VECTOR),
    ".gdb": ("a geodatabase", _VECTOR),
    ".geoparquet": ("GeoParquet", _VECTOR),
    ".parquet": ("Parquet", _VECTOR),
    ".nc": ("a NetCDF file", _CUBE),
    ".nc4": ("a NetCDF file", _CUBE),
    ".cdf": ("a NetCDF file", _CUBE),
    ".h5": ("an HDF5 file", _CUBE),
    ".hdf5": ("an HDF5 file", _CUBE),
    ".he5": ("an HDF5 file", _CUBE),
    ".hdf": ("an HDF file", _CUBE),
    ".grib": ("a GRIB file", _CUBE),
    ".grib2": ("a GRIB file", _CUBE),
    ".zarr": ("a Zarr store", _CUBE),
    ".npz": ("a NumPy archive (.npz)", _ARRAYS),
    ".mat": ("a MATLAB file", _ARRAYS),
    ".pt": ("a PyTorch file", _ARRAYS),
    ".pth": ("a PyTorch file", _ARRAYS),
    ".pkl": ("a Python pickle", _ARRAYS),
    ".safe": ("a SAFE product", _SCENE),
    ".zip": ("a zip file", _ARCHIVE),
    ".tar": ("a tar file", _ARCHIVE),
    ".tgz": ("a tar file", _ARCHIVE),
    ".gz": ("a gzip file", _ARCHIVE),
    ".bz2": ("a bzip2 file", _ARCHIVE),
    ".xz": ("an xz file", _ARCHIVE),
    ".zst": ("a Zstandard file", _ARCHIVE),
    ".7z": ("a 7z file", _ARCHIVE),
    ".rar": ("a rar file", _ARCHIVE),
    ".csv": ("a table (CSV)", _TEXT),
    ".json": ("JSON text", _TEXT),
    ".txt": ("text", _TEXT),
    ".xml": ("XML text", _TEXT),
    ".pdf": ("a PDF", _TEXT),
}

_BY_START: tuple[tuple[bytes, str], ...] = (
    (b"SQLite format 3\0", ".gpkg"),
    (b"\x89HDF\r\n\x1a\n", ".h5"),
    (b"\x0e\x03\x13\x01", ".hdf"),
    (b"CDF\x01", ".nc"),
    (b"CDF\x02", ".nc"),
    (b"CDF\x05", ".nc"),
    (b"GRIB", ".grib"),
    (b"PAR1", ".parquet"),
    (b"PK\x03\x04", ".zip"),
    (b"\x1f\x8b", ".gz"),
    (b"BZh", ".bz2"),
    (b"\xfd7zXZ\0", ".xz"),
    (b"\x28\xb5\x2f\xfd", ".zst"),
    (b"7z\xbc\xaf\x27\x1c", ".7z"),
    (b"Rar!", ".rar"),
    (b"%PDF", ".pdf"),
    (b"fgb\x03", ".fgb"),
    (b"\x00\x00\x27\x0a", ".shp"),
)


def other_kind(path: Path) -> str:
    """What a path is instead of a raster, with the remedy; empty where it may be one.

    A file's extension decides, or its first bytes where the extension is a raster's or unknown.
    """
    suffix = path.suffix.lower()
    if path.is_dir():
        return _folder_kind(path)
    if not path.is_file():
        return ""
    try:
        with path.open("rb") as stream:
            start = stream.read(512)
    except OSError:
        return ""
    if not start:
        return "is an empty file; restore it"
    kind_suffix = suffix if suffix in _BY_SUFFIX else ""
    if not kind_suffix:
        kind_suffix = next((kind for magic, kind in _BY_START if start.startswith(magic)), "")
    if not kind_suffix and start[257:262] == b"ustar":
        kind_suffix = ".tar"
    if not kind_suffix and start.lstrip()[:9].lower().startswith((b"<!doctype", b"<html")):
        return "is a web page, not data: the download failed (a log-in page?); fetch it again"
    if not kind_suffix and start.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not data; run `git lfs pull`"
    if not kind_suffix:
        return ""
    if suffix == ".json" and b'"Feature' in start:
        kind_suffix = ".geojson"
    name, text = _BY_SUFFIX[kind_suffix]
    return text.format(name=name)


def _folder_kind(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix not in (".zarr", ".safe", ".gdb"):
        if any((path / name).is_file() for name in (".zgroup", ".zarray", "zarr.json")):
            suffix = ".zarr"
        elif (path / "manifest.safe").is_file():
            suffix = ".safe"
        else:
            return ""
    name, text = _BY_SUFFIX[suffix]
    return text.format(name=name)
