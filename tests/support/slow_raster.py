"""Tiny rasters as Hypothesis draws them, their files, and a slow reading of what was drawn.

The slow reading never opens a file: it knows what was written and applies the rule of
docs/datasets.md pixel by pixel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from hypothesis import strategies as st

LEFT, TOP, PIXEL = 500_000.0, 5_800_000.0, 10.0
NAMES = ("p", "q", "r", "s")


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A raster north-up, and how its file stores it. ``nodata``: by band, alike but for VRTs."""

    values: np.ndarray
    nodata: tuple[float | None, ...]
    mask: np.ndarray | None = None
    sidecar: bool = False
    alpha: np.ndarray | None = None
    scales: tuple[float, ...] | None = None
    offsets: tuple[float, ...] | None = None
    south_up: bool = False
    mirrored: bool = False
    tiled: bool = False
    vrt: bool = False
    classes: bool = False

    @property
    def order(self) -> tuple[slice, slice]:
        return (
            slice(None, None, -1 if self.south_up else 1),
            slice(None, None, -1 if self.mirrored else 1),
        )

    @property
    def transform(self) -> tuple[float, float, float, float, float, float]:
        """GDAL's geotransform."""
        side = self.values.shape[1] * PIXEL
        left, width = (LEFT + side, -PIXEL) if self.mirrored else (LEFT, PIXEL)
        top, height = (TOP - side, PIXEL) if self.south_up else (TOP, -PIXEL)
        return left, width, 0.0, top, 0.0, height


@st.composite
def rasters(draw: st.DrawFn) -> Drawn:
    """Square rasters of 3 to 6 pixels with few different values, so that nodata is common."""
    classes = draw(st.integers(0, 5)) == 0
    dtype = "uint8" if classes else draw(st.sampled_from(["uint8", "uint16", "int16", "float32"]))
    count = 1 if classes else draw(st.integers(1, 4))
    side = draw(st.integers(3, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    palette = np.array([1, 2, 3, 0] if classes else [0, 7, 40, 90, 200], dtype)
    values = rng.choice(palette, (count, side, side))
    if dtype == "float32" and draw(st.booleans()):
        values[rng.random(values.shape) < 0.2] = draw(st.sampled_from([np.nan, np.inf]))
    vrt = draw(st.booleans())
    tags = st.sampled_from([0.0] if classes else [None, 0.0, 7.0, 40.0, -9999.0])
    one = draw(tags)
    if one == -9999.0 and dtype.startswith("uint"):
        one = None
    nodata = tuple(draw(tags) if vrt and not classes else one for _ in range(count))
    nodata = tuple(None if n == -9999.0 and dtype.startswith("uint") else n for n in nodata)
    masked = draw(st.booleans())
    scales = offsets = None
    if not classes and draw(st.booleans()):
        several = draw(st.booleans())
        scales = tuple(0.5 + i * several for i in range(count))
        offsets = tuple(draw(st.sampled_from([0.0, -3.0])) + i * several for i in range(count))
        offsets = offsets if several else offsets[:1] * count
    alpha = draw(st.booleans()) and not (vrt or classes or dtype == "float32")
    return Drawn(
        values=values,
        nodata=nodata,
        mask=rng.random((side, side)) < 0.6 if masked and not alpha else None,
        sidecar=draw(st.booleans()),
        alpha=rng.choice(np.array([0, 255], dtype), (side, side)) if alpha else None,
        scales=scales,
        offsets=offsets,
        south_up=draw(st.booleans()),
        mirrored=draw(st.booleans()),
        tiled=draw(st.booleans()),
        vrt=vrt,
        classes=classes,
    )


def write(drawn: Drawn, folder: Path, stem: str) -> str:
    """Write the drawn raster; the name of the file to read."""
    import rasterio
    from rasterio.enums import ColorInterp

    stored = drawn.values[(slice(None), *drawn.order)]
    if drawn.alpha is not None:
        stored = np.concatenate([stored, drawn.alpha[None][(slice(None), *drawn.order)]])
    left, width, _, top, _, height = drawn.transform
    profile = {
        "driver": "GTiff", "count": len(stored), "dtype": stored.dtype.name, "crs": "EPSG:32630",
        "height": stored.shape[1], "width": stored.shape[2], "photometric": "minisblack",
        "transform": rasterio.Affine(width, 0, left, 0, height, top),
        "nodata": None if drawn.vrt else drawn.nodata[0],
    }  # fmt: skip
    if drawn.tiled:
        profile |= {"tiled": True, "blockxsize": 16, "blockysize": 16}
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=not drawn.sidecar),
        rasterio.open(folder / f"{stem}.tif", "w", **profile) as file,
    ):
        if drawn.alpha is not None:
            gray, more = ColorInterp.gray, [ColorInterp.undefined] * (len(stored) - 2)
            file.colorinterp = (gray, *more, ColorInterp.alpha)
        file.write(stored)
        file.descriptions = (*NAMES[: len(drawn.values)], *[""] * (drawn.alpha is not None))
        if drawn.scales and drawn.offsets and not drawn.vrt:
            extra = len(stored) - len(drawn.scales)
            file.scales = (*drawn.scales, *[1.0] * extra)
            file.offsets = (*drawn.offsets, *[0.0] * extra)
        if drawn.classes:
            file.write_colormap(1, {i: (60 * i, 0, 0, 255) for i in range(4)})
        if drawn.mask is not None:
            file.write_mask(drawn.mask[drawn.order])
    if not drawn.vrt:
        return f"{stem}.tif"
    (folder / f"{stem}.vrt").write_text(_vrt(drawn, stem))
    return f"{stem}.vrt"


def _vrt(drawn: Drawn, stem: str) -> str:
    kind = {"uint8": "Byte", "uint16": "UInt16", "int16": "Int16", "float32": "Float32"}
    side, dtype = drawn.values.shape[1], kind[drawn.values.dtype.name]
    source = f'<SourceFilename relativeToVRT="1">{stem}.tif</SourceFilename>'
    bands = []
    for index in range(len(drawn.values)):
        nodata, parts = drawn.nodata[index], [f"<Description>{NAMES[index]}</Description>"]
        if nodata is not None:
            parts.append(f"<NoDataValue>{nodata}</NoDataValue>")
        if drawn.scales and drawn.offsets:
            parts.append(f"<Offset>{drawn.offsets[index]}</Offset>")
            parts.append(f"<Scale>{drawn.scales[index]}</Scale>")
        parts.append(f"<SimpleSource>{source}<SourceBand>{index + 1}</SourceBand></SimpleSource>")
        bands.append(
            f'<VRTRasterBand dataType="{dtype}" band="{index + 1}">{"".join(parts)}</VRTRasterBand>'
        )
    if drawn.mask is not None:
        bands.append(
            f'<MaskBand><VRTRasterBand dataType="Byte"><SimpleSource>{source}'
            "<SourceBand>mask,1</SourceBand></SimpleSource></VRTRasterBand></MaskBand>"
        )
    transform = ", ".join(map(str, drawn.transform))
    return (
        f'<VRTDataset rasterXSize="{side}" rasterYSize="{side}"><SRS>EPSG:32630</SRS>'
        f"<GeoTransform>{transform}</GeoTransform>{''.join(bands)}</VRTDataset>"
    )


def slow_validity(drawn: Drawn) -> np.ndarray:
    """Whether each pixel of each band was observed: bool (C, H, W)."""
    ok = np.zeros(drawn.values.shape, bool)
    for band, row, col in np.ndindex(ok.shape):
        value = float(drawn.values[band, row, col])
        ok[band, row, col] = (
            math.isfinite(value)
            and value != drawn.nodata[band]
            and (drawn.mask is None or bool(drawn.mask[row, col]))
            and (drawn.alpha is None or drawn.alpha[row, col] > 0)
        )
    return ok


def slow_window(
    drawn: Drawn, *, row: float, col: float, step: float, side: int
) -> tuple[np.ndarray, np.ndarray]:
    """Raw values and validity on another grid: its corner at ``row``, ``col`` of the raster,
    pixels of ``step`` of the raster's. Fill has no part in any mean; integers are not rounded."""
    ok = slow_validity(drawn)
    count, height, width = ok.shape
    values, valid = np.zeros((count, side, side)), np.zeros((count, side, side), bool)
    reach = max(step, 1.0)
    for band, i, j in np.ndindex(values.shape):
        y, x = row + (i + 0.5) * step, col + (j + 0.5) * step
        r, c = math.floor(y), math.floor(x)
        if not (0 <= r < height and 0 <= c < width and ok[band, r, c]):
            continue
        valid[band, i, j] = True
        if drawn.classes:
            values[band, i, j] = drawn.values[band, r, c]
            continue
        total = weight = 0.0
        for a, b in np.ndindex(height, width):
            share = max(0.0, 1 - abs(a + 0.5 - y) / reach) * max(0.0, 1 - abs(b + 0.5 - x) / reach)
            if ok[band, a, b]:
                total += share * float(drawn.values[band, a, b])
                weight += share
        values[band, i, j] = total / weight
    return values, valid


def slow_physical(drawn: Drawn, raw: np.ndarray) -> np.ndarray:
    """Raw values (C, H, W) calibrated by the bands' tags."""
    scales = drawn.scales or (1.0,) * len(raw)
    offsets = drawn.offsets or (0.0,) * len(raw)
    return np.stack([r * s + o for r, s, o in zip(raw, scales, offsets, strict=True)])
