"""The header of a raster file: bands, masks, calibration, orientation and footprint.

Chips, scenes, labels, single rasters and STAC items all read this one description. Pixels are
handed on north-up and west-left, whatever order the file stores them in.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from multimae_eo.errors import FormatError
from multimae_eo.geo import Geometry
from multimae_eo.modality import canonical

if TYPE_CHECKING:
    from affine import Affine
    from rasterio.crs import CRS
    from rasterio.enums import MaskFlags
    from rasterio.io import DatasetReader

ALPHA_NAMES = frozenset({"alpha", "a", "transparency", "opacity"})
# Geographic systems with a height, and the same without: their WKT has no horizontal part.
_FLAT = {"4979": 4326, "4937": 4258, "7843": 7844, "6319": 6318, "4957": 4269}


@dataclass(frozen=True, kw_only=True)
class BandHeader:
    """One band. ``name``: "" where the file gives none.

    ``scale``, ``offset``: as tagged, None where the file leaves GDAL's defaults (1, 0).
    ``nodata``: the tag. ``transparent``: further raw values that are never observed (tRNS, a
    palette's transparent entries). ``mask``: "dataset" where all bands share a mask that is
    neither nodata nor alpha, "band" where this one has its own. ``color``: GDAL's interpretation.
    ``palette``: raw value → RGBA.
    """

    name: str = ""
    dtype: np.dtype[np.generic]
    scale: float | None = None
    offset: float | None = None
    unit: str = ""
    nodata: float | None = None
    transparent: tuple[float, ...] = ()
    mask: str = ""
    color: str = ""
    palette: Mapping[int, tuple[int, int, int, int]] | None = None


@dataclass(frozen=True, kw_only=True)
class RasterHeader:
    """A file's description. ``shape``: (H, W).

    ``alpha``: 0-based band that GDAL takes for transparency; a fourth byte band that is near
    infrared looks the same, see ``alpha_band``. ``transform``, ``crs``: of the north-up pixels, the
    CRS horizontal; None without georeferencing. ``south_up``, ``mirrored``: the file stores rows
    from the south, columns from the east. ``geometry``: None unless both are known.
    """

    path: Path | str
    bands: tuple[BandHeader, ...]
    shape: tuple[int, int]
    alpha: int | None = None
    transform: Affine | None = None
    crs: str | None = None
    geometry: Geometry | None = None
    south_up: bool = False
    mirrored: bool = False
    rotated: bool = False
    area_or_point: str = ""
    channels_last: bool = False

    @property
    def count(self) -> int:
        """Number of bands."""
        return len(self.bands)

    @property
    def names(self) -> tuple[str, ...]:
        """The bands' names, "" where the file has none."""
        return tuple(b.name for b in self.bands)

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """The dtype of all bands."""
        return self.bands[0].dtype

    @property
    def nodata(self) -> tuple[float | None, ...]:
        """The nodata tag of each band."""
        return tuple(b.nodata for b in self.bands)

    @property
    def pixel_size(self) -> tuple[float, float] | None:
        """Width and height of a pixel in units of the CRS, None without georeferencing."""
        return None if self.transform is None else (self.transform.a, -self.transform.e)

    @property
    def flipped(self) -> bool:
        """Whether pixels are handed on in another order than the file's."""
        return self.south_up or self.mirrored

    def alpha_band(self, at: Sequence[int], declared: Sequence[str] = ()) -> int | None:
        """0-based band that holds transparency when bands ``at`` are read; None where none does.

        A band that is read, or that the file or ``declared`` (names of all bands) calls anything
        but alpha, is data.
        """
        if self.alpha is None or self.alpha in at:
            return None
        names = declared if len(declared) == self.count else self.names
        name = canonical(names[self.alpha])
        return self.alpha if not name or name in ALPHA_NAMES else None

    def unobserved(
        self,
        at: Sequence[int],
        declared: Sequence[float] | None,
        class_map_nodata: Sequence[float] = (),
    ) -> list[tuple[float, ...]]:
        """Raw values that mean "never observed", for each of the bands ``at``.

        ``declared`` replaces the file's tag and ``class_map_nodata``; values that the file marks as
        transparent are never observed in any case.
        """
        values = []
        for band in (self.bands[i] for i in at):
            tag = () if band.nodata is None else (band.nodata,)
            listed = (*class_map_nodata, *tag) if declared is None else tuple(declared)
            values.append((*listed, *band.transparent))
        return values


def plain_header(
    path: Path,
    shape: tuple[int, int],
    bands: Sequence[str],
    dtype: np.dtype[np.generic],
    *,
    transparent: tuple[float, ...] = (),
    palette: Mapping[int, tuple[int, int, int, int]] | None = None,
    channels_last: bool = False,
) -> RasterHeader:
    """The header of an image or array, which has no georeferencing."""
    made = tuple(
        BandHeader(
            name=n, dtype=dtype, transparent=transparent, palette=palette,
            color="palette" if palette else n,
        )
        for n in bands
    )  # fmt: skip
    return RasterHeader(path=path, bands=made, shape=shape, channels_last=channels_last)


def dataset_header(path: Path | str, dataset: DatasetReader) -> RasterHeader:
    """The header of an open rasterio dataset; FormatError for dtypes that are not real numbers."""
    dtypes = set(dataset.dtypes)
    if len(dtypes) > 1 or next(iter(dtypes)).startswith("complex"):
        raise FormatError(
            f"{path}: dtype {', '.join(sorted(dtypes))}; store one real dtype for all bands"
        )
    dtype = np.dtype(dataset.dtypes[0])
    colors = [c.name for c in dataset.colorinterp]
    alpha = [i for i, c in enumerate(colors) if c == "alpha"]
    return RasterHeader(
        path=path,
        bands=tuple(_band(dataset, i, dtype, colors[i]) for i in range(dataset.count)),
        shape=(dataset.height, dataset.width),
        alpha=alpha[0] if alpha and dataset.count > 1 else None,
        area_or_point=dataset.tags().get("AREA_OR_POINT", ""),
        **_ground(dataset),
    )


def _band(
    dataset: DatasetReader, index: int, dtype: np.dtype[np.generic], color: str
) -> BandHeader:
    scale, offset = float(dataset.scales[index]), float(dataset.offsets[index])
    nodata = dataset.nodatavals[index]
    palette = dataset.colormap(index + 1) if color == "palette" else None
    clear = () if palette is None else tuple(float(i) for i, c in palette.items() if c[3] == 0)
    return BandHeader(
        name=(dataset.descriptions[index] or "").strip(),
        dtype=dtype,
        scale=None if scale in (0.0, 1.0) or not math.isfinite(scale) else scale,
        offset=None if offset == 0.0 or not math.isfinite(offset) else offset,
        unit=dataset.units[index] or "",
        nodata=None if nodata is None else float(nodata),
        # GDAL pads palettes with meaningless entries; those of a PNG are as stored.
        transparent=clear if dataset.driver == "PNG" else (),
        mask=_mask_kind(dataset.mask_flag_enums[index]),
        color="" if color in ("undefined", "gray") else color,
        palette=palette,
    )


def _mask_kind(flags: Sequence[MaskFlags]) -> str:
    """The kind of a band's mask, "" where nodata values and an alpha band already define it."""
    names = {f.name for f in flags}
    if names & {"all_valid", "alpha"} or names == {"nodata"}:
        return ""
    return "dataset" if "per_dataset" in names else "band"


def _ground(dataset: Any) -> dict[str, Any]:
    """CRS, transform and footprint of the north-up pixels."""
    stored = dataset.transform
    if stored.is_identity:
        return {"crs": None if dataset.crs is None else crs_text(dataset.crs)}
    if not stored.is_rectilinear or stored.a == 0.0:
        return {"rotated": True, "crs": None if dataset.crs is None else crs_text(dataset.crs)}
    south_up, mirrored = stored.e > 0, stored.a < 0
    left = stored.c + (stored.a * dataset.width if mirrored else 0.0)
    top = stored.f + (stored.e * dataset.height if south_up else 0.0)
    transform = type(stored)(abs(stored.a), 0.0, left, 0.0, -abs(stored.e), top)
    ground: dict[str, Any] = {"transform": transform, "south_up": south_up, "mirrored": mirrored}
    if dataset.crs is None:
        return ground
    ground["crs"] = crs_text(dataset.crs)
    left, bottom, right, top = (float(v) for v in dataset.bounds)
    bounds = (min(left, right), min(bottom, top), max(left, right), max(bottom, top))
    if all(math.isfinite(v) for v in bounds) and bounds[0] < bounds[2] and bounds[1] < bounds[3]:
        ground["geometry"] = Geometry(crs=ground["crs"], bounds=bounds)
    return ground


def require_upright(header: RasterHeader) -> None:
    """FormatError where the file's grid is rotated or sheared."""
    if header.rotated:
        raise FormatError(f"{header.path}: its grid is rotated; warp it north-up first (gdalwarp)")


def crs_text(crs: CRS) -> str:
    """The horizontal part of a rasterio CRS: authority string (``EPSG:32630``), else its WKT."""
    authority = crs.to_authority()
    if authority and authority[0] == "EPSG" and authority[1] in _FLAT:
        return f"EPSG:{_FLAT[authority[1]]}"
    wkt = "" if authority else str(crs.to_wkt())
    if authority and not _compound(crs):
        return ":".join(authority)
    wkt = wkt or str(crs.to_wkt())
    if not wkt.startswith(("COMPD_CS[", "COMPOUNDCRS[")):
        return wkt
    return crs_text(type(crs).from_wkt(_first_member(wkt)))


def same_crs(a: str, b: str) -> bool:
    """Whether two texts name one CRS."""
    if a == b:
        return True
    from rasterio.crs import CRS

    return bool(CRS.from_user_input(a) == CRS.from_user_input(b))


def _compound(crs: CRS) -> bool:
    return str(crs.to_wkt()).startswith(("COMPD_CS[", "COMPOUNDCRS["))


def _first_member(wkt: str) -> str:
    """The first bracketed member of a WKT node: the horizontal CRS of a compound one."""
    start = depth = 0
    quoted = False
    for at, char in enumerate(wkt):
        if char == '"':
            quoted = not quoted
        elif quoted:
            continue
        elif char == "[":
            depth += 1
        elif char == "]":
            depth -= 1
            if depth == 1:
                return wkt[start : at + 1]
        elif char == "," and depth == 1:
            start = at + 1
    return wkt
