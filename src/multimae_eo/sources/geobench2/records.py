"""Images, values, labels and capability groups of GEO-Bench-2's data sets. See docs/geobench.md.

Facts only; ``sources/geobench2/source.py`` reads the files. Where a data set's own band names are
wrong, the band meant here is the one whose pixels are there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from multimae_eo import catalog
from multimae_eo.errors import ConfigError, did_you_mean
from multimae_eo.modality import Band, Modality
from multimae_eo.sources.geobench.bands import COUNTS, BandLayer, GeoBenchData
from multimae_eo.sources.geobench.classes import CLASSES

BENCHMARK = "GEO-Bench-2"
_OPTICAL_GROUPS = ("rgb", "ired", "sired", "ebands")


@dataclass(frozen=True, kw_only=True)
class GeoBench2Data(GeoBenchData):
    """One data set. ``images``: position of each image among those of a chip.

    ``label_image``: position of the map of classes; None where labels are in the column
    ``label_column``. ``label_values``: the class of each stored id (None: the id itself).
    ``ignored``: stored ids of no class. ``dated``: whether the stored dates are true.
    """

    class_names: tuple[str, ...]
    images: Mapping[str, int]
    label_image: int | None = None
    label_column: str = "labels"
    label_values: Mapping[int, int] | None = None
    ignored: tuple[int, ...] = ()
    dated: bool = False

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in order."""
        return self.class_names

    @property
    def benchmark(self) -> str:
        """The benchmark's name."""
        return BENCHMARK


def _sentinel2(image: str, bands: tuple[str, ...], *, level: str, scale: float = 1e-4) -> BandLayer:
    """``bands``: of the stored image, in order; "" for a channel whose content is not certain."""
    stored = {band: (image, i) for i, band in enumerate(bands) if band}
    groups = (catalog.modality(n) for n in _OPTICAL_GROUPS)
    return BandLayer(
        sensor="sentinel2",
        stored_channels=stored,
        gsd_m=10.0,
        unit="reflectance",
        scale=scale,
        level=level,
        nodata=(0.0,) if scale < 1 else (),
        modalities=tuple(m for m in groups if set(m.band_names) <= set(stored)),
    )


def _sentinel1(image: str, bands: tuple[str, ...]) -> BandLayer:
    return BandLayer(
        sensor="sentinel1",
        stored_channels={band: (image, i) for i, band in enumerate(bands) if band},
        gsd_m=10.0,
        unit="dB",
        modalities=(catalog.modality("sentinel1"),),
    )


def _aerial(image: str, bands: tuple[str, ...], gsd_m: float) -> tuple[BandLayer, BandLayer]:
    """The colours and the near infrared of one 8-bit image, as of GEO-Bench's aerial images."""
    stored = {band: (image, i) for i, band in enumerate(bands)}
    nir = Band(name="nir", wavelength_um=0.842, physical_range=(0.0, 255.0))
    colors = catalog.make_modality("aerial_rgb", sensor_name="rgb", bands=("red", "green", "blue"))
    infrared = Modality(name="aerial_nir", sensor="aerial", bands=(nir,), unit=COUNTS)
    return (
        BandLayer(
            sensor="rgb",
            stored_channels={b: stored[b] for b in ("red", "green", "blue")},
            gsd_m=gsd_m,
            unit=COUNTS,
            modalities=(colors,),
        ),
        BandLayer(
            sensor="aerial",
            stored_channels={"nir": stored["nir"]},
            gsd_m=gsd_m,
            unit=COUNTS,
            modalities=(infrared,),
        ),
    )


def _counts(
    name: str, bands: tuple[Band, ...], *, image: str, gsd_m: float, sensor: str = ""
) -> BandLayer:
    """Digital numbers of a sensor that the catalogue does not have, or of pictures of one."""
    modality = Modality(name=name, sensor=sensor or name, bands=bands, unit=COUNTS)
    return BandLayer(
        sensor=modality.sensor,
        stored_channels={band.name: (image, i) for i, band in enumerate(bands)},
        gsd_m=gsd_m,
        unit=COUNTS,
        modalities=(modality,),
    )


_BENV2 = ("B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B9", "B11", "B12")
_TREESATAI = ("B2", "B3", "B4", "B8", "B5", "B6", "B7", "B8A", "B11", "B12", "B1", "B9")
# The generator selects a radar channel under the name of B7.
_SO2SAT = ("B2", "B3", "B4", "B5", "B6", "", "B8", "B8A", "B11", "B12")
_HLS = ("blue", "green", "red", "nir", "swir1", "swir2")
_WORLDVIEW = {
    "coastal": 0.427, "blue": 0.478, "green": 0.546, "yellow": 0.608, "red": 0.659,
    "red_edge": 0.724, "nir1": 0.831, "nir2": 0.908,
}  # fmt: skip
_FLAIR_CLASSES, _FLAIR_STORED = 13, 19
_BUILDINGS = ("no building", "building")

_RECORDS = (
    GeoBench2Data(
        name="benv2",
        folders=(),
        size=120,
        label="classes",
        metric="f1",
        # The means of the published statistics, -19 and -12 dB, show that VH is stored first.
        images={"s1": 0, "s2": 1},
        layers=(_sentinel2("s2", _BENV2, level="l2a"), _sentinel1("s1", ("VH", "VV"))),
        class_names=(
            "Urban fabric",
            "Industrial or commercial units",
            "Arable land",
            "Permanent crops",
            "Pastures",
            "Complex cultivation patterns",
            "Land principally occupied by agriculture, with significant areas of natural "
            "vegetation",
            "Agro-forestry areas",
            "Broad-leaved forest",
            "Coniferous forest",
            "Mixed forest",
            "Natural grassland and sparsely vegetated areas",
            "Moors, heathland and sclerophyllous vegetation",
            "Transitional woodland, shrub",
            "Beaches, dunes, sands",
            "Inland wetlands",
            "Coastal wetlands",
            "Inland waters",
            "Marine waters",
        ),
        located=True,
        dated=True,
    ),
    GeoBench2Data(
        name="so2sat",
        folders=("mso2sat",),
        size=32,
        label="class",
        metric="accuracy",
        # Its radar image holds the real parts of complex values, which are no backscatter.
        images={"s1": 0, "s2": 1},
        layers=(_sentinel2("s2", _SO2SAT, level="l1c", scale=1.0),),
        class_names=CLASSES["m-so2sat"],
    ),
    GeoBench2Data(
        name="forestnet",
        folders=(),
        size=332,
        label="class",
        metric="accuracy",
        images={"image": 0},
        layers=(
            _counts(
                "landsat8_picture",
                tuple(
                    replace(catalog.sensor("landsat8").band(b), physical_range=(0.0, 255.0))
                    for b in ("B2", "B3", "B4", "B5", "B6", "B7")
                ),
                image="image",
                gsd_m=15.0,
                sensor="landsat8",
            ),
        ),
        class_names=CLASSES["m-forestnet"],
    ),
    GeoBench2Data(
        name="treesatai",
        folders=(),
        size=304,
        label="classes",
        metric="f1",
        images={"aerial": 0, "s1": 1, "s2": 2},
        layers=(
            *_aerial("aerial", ("nir", "green", "blue", "red"), 0.2),
            _sentinel2("s2", _TREESATAI, level="l2a"),
            _sentinel1("s1", ("VV", "VH")),
        ),
        label_column="species_labels",
        class_names=(
            "Abies",
            "Acer",
            "Alnus",
            "Betula",
            "Cleared",
            "Fagus",
            "Fraxinus",
            "Larix",
            "Picea",
            "Pinus",
            "Populus",
            "Prunus",
            "Pseudotsuga",
            "Quercus",
            "Tilia",
        ),
        located=True,
    ),
    GeoBench2Data(
        name="burn_scars",
        folders=(),
        size=512,
        label="map",
        metric="miou",
        images={"image": 0},
        layers=(
            BandLayer(
                sensor="hls",
                stored_channels={band: ("image", i) for i, band in enumerate(_HLS)},
                gsd_m=30.0,
                unit="reflectance",
                nodata=(-9999.0,),
                modalities=(catalog.make_modality("hls", sensor_name="hls", bands=_HLS),),
            ),
        ),
        label_image=1,
        ignored=(-1,),
        class_names=("background", "burn scar"),
        located=True,
    ),
    GeoBench2Data(
        name="cloudsen12",
        folders=(),
        size=512,
        label="map",
        metric="miou",
        # L2A, as its generator takes them; its documentation calls them L1C.
        images={"image": 0},
        layers=(_sentinel2("image", _BENV2, level="l2a"),),
        label_image=1,
        class_names=("clear", "thick cloud", "thin cloud", "cloud shadow"),
        located=True,
        dated=True,
    ),
    GeoBench2Data(
        name="caffe",
        folders=(),
        size=512,
        label="map",
        metric="miou",
        images={"image": 0},
        layers=(
            _counts(
                "radar_picture",
                (Band(name="gray", physical_range=(0.0, 255.0)),),
                image="image",
                gsd_m=20.0,
            ),
        ),
        label_image=1,
        class_names=("no information", "rock", "glacier", "ocean and ice melange"),
    ),
    GeoBench2Data(
        name="flair2",
        folders=(),
        size=512,
        label="map",
        metric="miou",
        images={"aerial": 0},
        layers=(
            *_aerial("aerial", ("red", "green", "blue", "nir"), 0.2),
            BandLayer(
                sensor="surface_height",
                stored_channels={"height": ("aerial", 4)},
                gsd_m=0.2,
                unit=COUNTS,
                modalities=(
                    Modality(
                        name="surface_height",
                        sensor="surface_height",
                        bands=(Band(name="height", physical_range=(0.0, 255.0)),),
                        unit=COUNTS,
                    ),
                ),
            ),
        ),
        label_image=1,
        # Stored from 1; the rare classes from 13 on are one.
        label_values={i: min(i, _FLAIR_CLASSES) - 1 for i in range(1, _FLAIR_STORED + 1)},
        class_names=(
            "building",
            "pervious surface",
            "impervious surface",
            "bare soil",
            "water",
            "coniferous",
            "deciduous",
            "brushwood",
            "vineyard",
            "herbaceous vegetation",
            "agricultural land",
            "plowed land",
            "other",
        ),
        located=True,
    ),
    GeoBench2Data(
        name="fotw",
        folders=(),
        size=256,
        label="map",
        metric="miou",
        # Two dates, of planting and of harvest: the later one.
        images={"window_b": 1},
        layers=(_sentinel2("window_b", ("B4", "B3", "B2", "B8"), level="l2a"),),
        label_image=3,
        class_names=("background", "field", "field boundary"),
        located=True,
    ),
    GeoBench2Data(
        name="spacenet2",
        folders=(),
        size=650,
        label="map",
        metric="miou",
        images={"worldview": 0},
        layers=(
            _counts(
                "worldview2",
                tuple(Band(name=n, wavelength_um=w) for n, w in _WORLDVIEW.items()),
                image="worldview",
                gsd_m=1.24,
            ),
        ),
        label_image=2,
        class_names=_BUILDINGS,
        located=True,
    ),
    GeoBench2Data(
        name="spacenet7",
        folders=(),
        size=512,
        label="map",
        metric="miou",
        images={"image": 0},
        layers=(
            BandLayer(
                sensor="rgb",
                stored_channels={b: ("image", i) for i, b in enumerate(("red", "green", "blue"))},
                gsd_m=4.0,
                unit=COUNTS,
                modalities=(
                    catalog.make_modality(
                        "aerial_rgb", sensor_name="rgb", bands=("red", "green", "blue")
                    ),
                ),
            ),
        ),
        label_image=1,
        class_names=_BUILDINGS,
        located=True,
    ),
)

DATASETS2: Mapping[str, GeoBench2Data] = {r.name: r for r in _RECORDS}
"""Those that can be read, by name."""

UNSUPPORTED: Mapping[str, str] = {
    **dict.fromkeys(
        ("biomassters", "kuro_siwo", "pastis", "dynamic_earthnet"), "its chips have several dates"
    ),
    **dict.fromkeys(("everwatch", "nzcattle"), "its labels are boxes of objects"),
    **dict.fromkeys(("substation", "pastis_r"), "its labels are instances of objects"),
}
"""Those that cannot, with the reason."""

GROUPS: Mapping[str, tuple[str, ...]] = {
    "Core": (
        "kuro_siwo", "pastis", "burn_scars", "cloudsen12", "flair2", "spacenet7", "benv2",
        "treesatai", "biomassters", "fotw", "substation", "everwatch",
    ),
    "Classification": ("so2sat", "forestnet", "benv2", "treesatai"),
    "Pixel-wise": (
        "kuro_siwo", "pastis", "burn_scars", "spacenet2", "cloudsen12", "caffe", "flair2",
        "dynamic_earthnet", "biomassters", "spacenet7", "fotw",
    ),
    "Detection": ("substation", "everwatch", "nzcattle", "pastis_r"),
    "Multi-temporal": ("kuro_siwo", "pastis", "biomassters", "dynamic_earthnet"),
    "Multi-spectral-dependent": (
        "benv2", "biomassters", "pastis", "so2sat", "cloudsen12", "spacenet2", "burn_scars", "fotw",
    ),
    "RGB/NIR": ("flair2", "treesatai", "dynamic_earthnet", "spacenet7", "fotw"),
    "Under 10 m": ("spacenet2", "treesatai", "flair2", "dynamic_earthnet", "spacenet7"),
    "10 m and above": (
        "biomassters", "so2sat", "kuro_siwo", "cloudsen12", "pastis", "benv2", "forestnet",
        "burn_scars", "caffe", "fotw",
    ),
}  # fmt: skip
"""The benchmark's capabilities: the data sets over which scores are aggregated."""


def find_dataset2(name: str) -> GeoBench2Data:
    """Look a data set up by its folder's or file's name.

    Raises ConfigError with the nearest name, or the reason why a data set cannot be read.
    """
    low = name.lower()
    for record in DATASETS2.values():
        if low in (record.name, *record.folders):
            return record
    if low in UNSUPPORTED:
        raise ConfigError(
            f"GEO-Bench-2's {low} cannot be read: {UNSUPPORTED[low]}; take one of "
            f"{', '.join(DATASETS2)}"
        )
    raise ConfigError(f"no GEO-Bench-2 data set {name!r}; {did_you_mean(low, DATASETS2)}")
