"""Cloud-Optimised GeoTIFFs: written in rows under a temporary name, renamed when complete."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt

from multimae_eo.errors import OutputError
from multimae_eo.files import remove, sync_and_rename, temporary_path, write_file
from multimae_eo.modality import Modality
from multimae_eo.sources.raster.grid import Grid

_CHUNK_BYTES = 1 << 25
_CLASS_TAG = "class_"
_MOST_CATEGORIES = 255


@dataclass(frozen=True, kw_only=True)
class Profile:
    """A raster's band names, dtype, nodata, colours and class names by value, and
    tags.

    ``scales``, ``offsets``: of each band, none where empty. ``block``: side of its tiles in pixels.
    """

    bands: tuple[str, ...]
    dtype: str
    nodata: float
    colors: Mapping[int, tuple[int, int, int]] = field(default_factory=dict)
    classes: Mapping[int, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    scales: tuple[float, ...] = ()
    offsets: tuple[float, ...] = ()
    block: int = 512


def profile_of(modality: Modality, *, uncertainty: bool = False) -> Profile:
    """The profile of a predicted modality: class ids as they are, measurements as float32."""
    tags = {"modality": modality.name, "unit": modality.unit}
    if not modality.categorical:
        names = tuple(f"{b} std" if uncertainty else b for b in modality.band_names)
        return Profile(bands=names, dtype="float32", nodata=float("nan"), tags=tags)
    if uncertainty:
        tags["unit"] = "nat"
        return Profile(bands=("entropy",), dtype="float32", nodata=float("nan"), tags=tags)
    free = [v for v in (0, 255, 65535, *range(1, 255)) if v not in modality.class_ids]
    dtype = "uint8" if max(*modality.class_ids, free[0]) < 256 else "uint16"
    tags |= {f"{_CLASS_TAG}{c.id}": c.name for c in modality.classes}
    return Profile(
        bands=(modality.bands[0].name,),
        dtype=dtype,
        nodata=float(free[0]),
        colors={c.id: c.color for c in modality.classes},
        classes={c.id: c.name for c in modality.classes},
        tags=tags,
    )


def class_names_in(tags: Mapping[str, str]) -> dict[int, str]:
    """The names of classes by id, from the tags of a raster that ``profile_of`` describes."""
    texts = {k.removeprefix(_CLASS_TAG): v for k, v in tags.items() if k.startswith(_CLASS_TAG)}
    return {int(k): v for k, v in texts.items() if k.isdigit()}


def tagged(profile: Profile, tags: Mapping[str, str]) -> Profile:
    """A profile with more tags."""
    return replace(profile, tags={**profile.tags, **tags})


class RowWriter:
    """Takes rows from top to bottom; ``finish`` writes them as a COG at ``path``."""

    def __init__(self, path: Path, grid: Grid, profile: Profile) -> None:
        import rasterio

        self.path, self.grid, self.profile = path, grid, profile
        self.rows = 0
        with _writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._folder = temporary_path(path)
            self._folder.mkdir()
            self._plain = self._folder / "plain.tif"
            self._file = rasterio.open(
                self._plain,
                "w",
                driver="GTiff",
                dtype=profile.dtype,
                count=len(profile.bands),
                height=grid.height,
                width=grid.width,
                crs=grid.crs,
                transform=grid.transform,
                nodata=profile.nodata,
                BIGTIFF="IF_SAFER",
            )
            # GDAL takes names, colours and tags only before the first pixel.
            for i, name in enumerate(profile.bands, 1):
                self._file.set_band_description(i, name)
            if profile.colors and profile.dtype == "uint8":
                self._file.write_colormap(1, {k: (*c, 255) for k, c in profile.colors.items()})
            if profile.scales:
                self._file.scales, self._file.offsets = profile.scales, profile.offsets
            self._file.update_tags(**profile.tags)

    def write(self, rows: npt.NDArray[np.generic]) -> None:
        """Append rows (bands, n, width)."""
        count = rows.shape[1]
        with _writing(self.path):
            window = ((self.rows, self.rows + count), (0, self.grid.width))
            self._file.write(rows.astype(self.profile.dtype, copy=False), window=window)
        self.rows += count

    def finish(self) -> Path:
        """Write the COG under a temporary name and rename it."""
        import rasterio.shutil

        if self.rows != self.grid.height:
            raise OutputError(f"{self.path}: {self.rows} of {self.grid.height} rows were written")
        cog = self._folder / "cog.tif"
        with _writing(self.path):
            self._file.close()
            floating = np.dtype(self.profile.dtype).kind == "f"
            rasterio.shutil.copy(
                self._plain,
                cog,
                driver="COG",
                BLOCKSIZE=self.profile.block,
                COMPRESS="DEFLATE",
                PREDICTOR="YES",
                OVERVIEW_RESAMPLING="AVERAGE" if floating else "NEAREST",
                BIGTIFF="IF_SAFER",
                NUM_THREADS="ALL_CPUS",
            )
            self._compare(cog)
            if self.profile.classes:
                # First: a map that is there has its classes.
                write_classes(self.path, self.profile)
            sync_and_rename(cog, self.path)
        remove(self._folder)
        return self.path

    def _compare(self, cog: Path) -> None:
        """OutputError unless every pixel arrived: GDAL keeps silent about what it cannot flush."""
        import rasterio

        with rasterio.open(self._plain) as written, rasterio.open(cog) as read:
            step = rows_at_once(self.grid.width, self.profile)
            for top in range(0, self.grid.height, step):
                bottom = min(top + step, self.grid.height)
                window = ((top, bottom), (0, self.grid.width))
                ours, theirs = written.read(window=window), read.read(window=window)
                if not np.array_equal(ours.view(np.uint8), theirs.view(np.uint8)):
                    raise OutputError(f"{self.path}: was not written completely; free space")

    def discard(self) -> None:
        """Leave nothing behind."""
        self._file.close()
        remove(self._folder)


def write_classes(path: Path, profile: Profile) -> Path:
    """Write the classes of a map as GDAL's ``<path>.aux.xml``; returns its path.

    It holds category names, which QGIS shows with the colour table, and a raster attribute table.
    """
    root = ElementTree.Element("PAMDataset")
    band = ElementTree.SubElement(root, "PAMRasterBand", band="1")
    if max(profile.classes) <= _MOST_CATEGORIES:
        names = ElementTree.SubElement(band, "CategoryNames")
        for value in range(max(profile.classes) + 1):
            ElementTree.SubElement(names, "Category").text = profile.classes.get(value, "")
    table = ElementTree.SubElement(band, "GDALRasterAttributeTable", tableType="thematic")
    # GDAL's numbers of types (integer, text) and uses (value, class name, red, green, blue).
    columns = (("value", 0, 5), ("class", 2, 2), ("red", 0, 6), ("green", 0, 7), ("blue", 0, 8))
    for index, (name, kind, usage) in enumerate(columns):
        entry = ElementTree.SubElement(table, "FieldDefn", index=str(index))
        for key, text in (("Name", name), ("Type", kind), ("Usage", usage)):
            ElementTree.SubElement(entry, key).text = str(text)
    for index, (value, name) in enumerate(sorted(profile.classes.items())):
        row = ElementTree.SubElement(table, "Row", index=str(index))
        for cell in (value, name, *profile.colors[value]):
            ElementTree.SubElement(row, "F").text = str(cell)
    ElementTree.indent(root)
    text = ElementTree.tostring(root, encoding="unicode") + "\n"
    return write_file(path.with_name(path.name + ".aux.xml"), text.encode())


def write_raster(
    path: Path, grid: Grid, profile: Profile, rows: Iterable[npt.NDArray[np.generic]]
) -> Path:
    """Write rows (bands, n, width), from top to bottom, as a COG at ``path``; OutputError."""
    writer = RowWriter(path, grid, profile)
    try:
        for part in rows:
            writer.write(part)
        return writer.finish()
    except BaseException:
        writer.discard()
        raise


def rows_at_once(width: int, profile: Profile) -> int:
    """How many rows to handle at once, so that memory stays small."""
    row = width * len(profile.bands) * np.dtype(profile.dtype).itemsize
    return max(1, _CHUNK_BYTES // row)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    from rasterio._err import CPLE_BaseError
    from rasterio.errors import RasterioError

    try:
        yield
    # GDAL's own errors, and rasterio's SystemError for those it does not know, come through copy.
    except (OSError, RasterioError, CPLE_BaseError, SystemError) as error:
        raise OutputError(
            f"{path}: cannot be written: {' '.join(str(error).split())}; free space or choose "
            "another --out"
        ) from error
