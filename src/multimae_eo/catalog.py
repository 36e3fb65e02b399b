"""The named sensors, modalities and class legends. Adding one is adding one record here.

Centre wavelengths and bandwidths are in micrometres: Sentinel-2 (ESA Sentinel-2 User Handbook),
HLS (Claverie et al. 2018; those of OLI), Landsat 8/9 OLI and TIRS (USGS).
Legends carry the colours of their producers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from multimae_eo.errors import BandError, ConfigError, did_you_mean
from multimae_eo.modality import Band, ClassMapEntry, Modality

REFLECTANCE = (-0.2, 2.0)
"""Plausible surface and top-of-atmosphere reflectance; glint and snow exceed 1."""

_DECIBEL = (-70.0, 40.0)
WAVELENGTH_TOLERANCE_UM = 0.012


@dataclass(frozen=True, kw_only=True)
class Sensor:
    """A sensor or product: its bands, unit and product levels."""

    name: str
    bands: tuple[Band, ...]
    unit: str
    levels: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()

    def band(self, key: str | float) -> Band:
        """Find a band by name, alias or centre wavelength (µm); BandError lists what exists."""
        if not isinstance(key, str):
            near = [b for b in self.bands if b.wavelength_um is not None]
            near.sort(key=lambda b: abs((b.wavelength_um or 0.0) - key))
            if near and abs((near[0].wavelength_um or 0.0) - key) <= WAVELENGTH_TOLERANCE_UM:
                return near[0]
        else:
            for band in self.bands:
                if band.matches(key):
                    return band
        listed = ", ".join(
            b.name + (f" ({b.wavelength_um} µm)" if b.wavelength_um else "") for b in self.bands
        )
        raise BandError(f"sensor {self.name!r} has no band {key!r}; it has: {listed}")


def _optical(
    name: str, wavelength_um: float, bandwidth_um: float, *aliases: str, gsd_m: float | None = None
) -> Band:
    return Band(
        name=name,
        wavelength_um=wavelength_um,
        bandwidth_um=bandwidth_um,
        aliases=aliases,
        gsd_m=gsd_m,
        physical_range=REFLECTANCE,
    )


def _plain(name: str, low: float, high: float, *aliases: str) -> Band:
    return Band(name=name, aliases=aliases, physical_range=(low, high))


_SENSORS = (
    Sensor(
        name="sentinel2",
        aliases=("s2", "msi"),
        unit="reflectance",
        levels=("l1c", "l2a"),
        bands=(
            _optical("B1", 0.443, 0.020, "coastal", "coastal_aerosol", gsd_m=60),
            _optical("B2", 0.490, 0.065, "blue", gsd_m=10),
            _optical("B3", 0.560, 0.035, "green", gsd_m=10),
            _optical("B4", 0.665, 0.030, "red", gsd_m=10),
            _optical("B5", 0.705, 0.015, "rededge1", "re1", gsd_m=20),
            _optical("B6", 0.740, 0.015, "rededge2", "re2", gsd_m=20),
            _optical("B7", 0.783, 0.020, "rededge3", "re3", gsd_m=20),
            _optical("B8", 0.842, 0.115, "nir", "nir_broad", gsd_m=10),
            _optical("B8A", 0.865, 0.020, "nir_narrow", "rededge4", "re4", gsd_m=20),
            _optical("B9", 0.945, 0.020, "water_vapour", "water_vapor", gsd_m=60),
            _optical("B10", 1.375, 0.030, "cirrus", gsd_m=60),
            _optical("B11", 1.610, 0.090, "swir1", "swir16", gsd_m=20),
            _optical("B12", 2.190, 0.180, "swir2", "swir22", gsd_m=20),
        ),
    ),
    Sensor(
        name="hls",
        aliases=("hls_l30", "hls_s30"),
        unit="reflectance",
        bands=(
            _optical("coastal", 0.443, 0.020, "coastal_aerosol", gsd_m=30),
            _optical("blue", 0.482, 0.060, gsd_m=30),
            _optical("green", 0.561, 0.060, gsd_m=30),
            _optical("red", 0.655, 0.030, gsd_m=30),
            _optical("nir", 0.865, 0.030, "nir_narrow", gsd_m=30),
            _optical("swir1", 1.609, 0.080, "swir16", gsd_m=30),
            _optical("swir2", 2.201, 0.180, "swir22", gsd_m=30),
        ),
    ),
    Sensor(
        name="landsat8",
        aliases=("landsat", "landsat9", "oli"),
        unit="reflectance",
        bands=(
            _optical("B1", 0.443, 0.020, "coastal", gsd_m=30),
            _optical("B2", 0.482, 0.060, "blue", gsd_m=30),
            _optical("B3", 0.561, 0.060, "green", gsd_m=30),
            _optical("B4", 0.655, 0.030, "red", gsd_m=30),
            _optical("B5", 0.865, 0.030, "nir", gsd_m=30),
            _optical("B6", 1.609, 0.080, "swir1", gsd_m=30),
            _optical("B7", 2.201, 0.180, "swir2", gsd_m=30),
            _optical("B8", 0.590, 0.180, "pan", gsd_m=15),
            _optical("B9", 1.374, 0.020, "cirrus", gsd_m=30),
        ),
    ),
    Sensor(
        name="sentinel1",
        aliases=("s1", "sar"),
        unit="dB",
        bands=tuple(
            Band(name=name, aliases=aliases, gsd_m=10, physical_range=_DECIBEL)
            for name, aliases in (
                ("VV", ("vv_asc",)),
                ("VH", ("vh_asc",)),
                ("HH", ("hh_asc",)),
                ("HV", ("hv_asc",)),
                ("VV_desc", ()),
                ("VH_desc", ()),
                ("HH_desc", ()),
                ("HV_desc", ()),
            )
        ),
    ),
    Sensor(
        name="dem",
        aliases=("cop_dem", "srtm", "aster", "nasadem"),
        unit="m",
        bands=(_plain("elevation", -500.0, 9000.0, "dem", "cop_dem", "srtm", "aster", "height"),),
    ),
    Sensor(name="slope", unit="degree", bands=(_plain("slope", 0.0, 90.0),)),
    Sensor(
        name="canopy_height",
        aliases=("canopy_height_eth",),
        unit="m",
        bands=(
            _plain("canopy_height", 0.0, 100.0, "height"),
            _plain("canopy_height_std", 0.0, 60.0, "std"),
        ),
    ),
    Sensor(
        name="index",
        unit="",
        bands=(_plain("ndvi", -1.0, 1.0), _plain("ndwi", -1.0, 1.0), _plain("ndbi", -1.0, 1.0)),
    ),
    Sensor(
        name="rgb",
        aliases=("image",),
        unit="digital number",
        bands=(
            Band(name="red", wavelength_um=0.665, aliases=("r",), physical_range=(0.0, 255.0)),
            Band(name="green", wavelength_um=0.560, aliases=("g",), physical_range=(0.0, 255.0)),
            Band(name="blue", wavelength_um=0.490, aliases=("b",), physical_range=(0.0, 255.0)),
        ),
    ),
)


@dataclass(frozen=True, kw_only=True)
class ClassMap:
    """A named class map: the classes, and the ids that mean nodata."""

    name: str
    classes: tuple[ClassMapEntry, ...]
    nodata: tuple[float, ...] = ()


def _class_map(name: str, *rows: tuple[int, str, str], nodata: tuple[float, ...] = ()) -> ClassMap:
    classes = tuple(
        ClassMapEntry(id=i, name=label, color=(int(c[0:2], 16), int(c[2:4], 16), int(c[4:6], 16)))
        for i, label, c in rows
    )
    return ClassMap(name=name, classes=classes, nodata=nodata)


_CLASS_MAPS = (
    _class_map(
        "esa_worldcover",
        (10, "tree cover", "006400"),
        (20, "shrubland", "ffbb22"),
        (30, "grassland", "ffff4c"),
        (40, "cropland", "f096ff"),
        (50, "built-up", "fa0000"),
        (60, "bare / sparse vegetation", "b4b4b4"),
        (70, "snow and ice", "f0f0f0"),
        (80, "permanent water", "0064c8"),
        (90, "herbaceous wetland", "0096a0"),
        (95, "mangroves", "00cf75"),
        (100, "moss and lichen", "fae6a0"),
        # Documented nodata is 255; MMEarth's files hold 0. Both mean "never observed".
        nodata=(0.0, 255.0),
    ),
    _class_map(
        "dynamic_world",
        (1, "water", "419bdf"),
        (2, "trees", "397d49"),
        (3, "grass", "88b053"),
        (4, "flooded vegetation", "7a87c6"),
        (5, "crops", "e49635"),
        (6, "shrub and scrub", "dfc35a"),
        (7, "built area", "c4281b"),
        (8, "bare ground", "a59b8f"),
        (9, "snow and ice", "b39fe1"),
        nodata=(0.0,),
    ),
    _class_map(
        "esri_lulc",
        (1, "water", "1a5bab"),
        (2, "trees", "358221"),
        (3, "flooded vegetation", "87d19e"),
        (4, "crops", "ffdb5c"),
        (5, "built area", "ed022a"),
        (6, "bare ground", "ede9e4"),
        (7, "snow and ice", "f2faff"),
        (8, "clouds", "c8c8c8"),
        (9, "rangeland", "c6ad8d"),
        nodata=(0.0,),
    ),
)

SENSORS: Mapping[str, Sensor] = {s.name: s for s in _SENSORS}
CLASS_MAPS: Mapping[str, ClassMap] = {g.name: g for g in _CLASS_MAPS}


def sensor(name: str) -> Sensor:
    """Look a sensor up by name or alias; ConfigError names the nearest."""
    for record in _SENSORS:
        if name.lower() in (record.name, *record.aliases):
            return record
    raise ConfigError(f"no sensor {name!r}; {did_you_mean(name, SENSORS)}")


def class_map(name: str) -> ClassMap:
    """Look a class map up by name; ConfigError names the nearest."""
    if name in CLASS_MAPS:
        return CLASS_MAPS[name]
    raise ConfigError(f"no class map {name!r}; {did_you_mean(name, CLASS_MAPS)}")


def find_band(name: str) -> tuple[Sensor, Band]:
    """Find a band over all sensors by name or alias; BandError when none or several match."""
    hits = [(s, b) for s in _SENSORS for b in s.bands if b.matches(name)]
    exact = [(s, b) for s, b in hits if s.name == name or name in s.aliases] or hits
    if len({s.name for s, _ in exact}) == 1:
        return exact[0]
    if not hits:
        raise BandError(f"no sensor has a band {name!r}; sensors: {', '.join(SENSORS)}")
    owners = ", ".join(f"{s.name}:{b.name}" for s, b in hits)
    raise BandError(f"band {name!r} is ambiguous ({owners}); add `sensor:`")


def make_modality(name: str, *, sensor_name: str, bands: tuple[str | float, ...]) -> Modality:
    """A continuous modality from a catalogued sensor's bands, in the order given."""
    record = sensor(sensor_name)
    picked = tuple(record.band(b) for b in bands)
    return Modality(
        name=name,
        sensor=record.name,
        bands=picked,
        gsd_m=max((b.gsd_m for b in picked if b.gsd_m), default=None),
        unit=record.unit,
        levels=record.levels,
    )


def make_class_map(name: str, *, class_map_name: str, gsd_m: float | None = None) -> Modality:
    """A categorical modality from a class map of the catalogue."""
    record = class_map(class_map_name)
    return Modality(
        name=name,
        sensor=record.name,
        kind="categorical",
        bands=(Band(name=record.name),),
        classes=record.classes,
        nodata=record.nodata,
        gsd_m=gsd_m,
    )


def _s2(name: str, *bands: str) -> Modality:
    return make_modality(name, sensor_name="sentinel2", bands=bands)


_MODALITIES = (
    # The paper's four Sentinel-2 groups, elevation and land cover. MMEarth stores B8A before B8;
    # the order here is the meaning, the order in a file is the reader's business.
    _s2("rgb", "B4", "B3", "B2"),
    _s2("ired", "B5", "B6", "B7"),
    _s2("sired", "B11", "B12"),
    _s2("ebands", "B8A", "B8"),
    _s2("sentinel2", *(b.name for b in SENSORS["sentinel2"].bands)),
    _s2("sentinel2_l2a_bands", *(b.name for b in SENSORS["sentinel2"].bands if b.name != "B10")),
    make_modality("sentinel1", sensor_name="sentinel1", bands=("VV", "VH")),
    make_modality(
        "sentinel1_asc_desc",
        sensor_name="sentinel1",
        bands=tuple(b.name for b in SENSORS["sentinel1"].bands),
    ),
    make_modality(
        "hls",
        sensor_name="hls",
        bands=("coastal", "blue", "green", "red", "nir", "swir1", "swir2"),
    ),
    make_modality(
        "landsat8", sensor_name="landsat8", bands=("B1", "B2", "B3", "B4", "B5", "B6", "B7")
    ),
    make_modality("elevation", sensor_name="dem", bands=("elevation",)),
    make_modality("depth", sensor_name="dem", bands=("elevation",)),
    make_modality("slope", sensor_name="slope", bands=("slope",)),
    make_modality("canopy_height", sensor_name="canopy_height", bands=("canopy_height",)),
    make_modality("ndvi", sensor_name="index", bands=("ndvi",)),
    make_class_map("esa_worldcover", class_map_name="esa_worldcover", gsd_m=10.0),
    make_class_map("semseg", class_map_name="esa_worldcover", gsd_m=10.0),
    make_class_map("dynamic_world", class_map_name="dynamic_world", gsd_m=10.0),
)

MODALITIES: Mapping[str, Modality] = {m.name: m for m in _MODALITIES}


def modality(name: str) -> Modality:
    """Look a catalogued modality up by name; ConfigError names the nearest."""
    if name in MODALITIES:
        return MODALITIES[name]
    raise ConfigError(f"no modality {name!r} in the catalogue; {did_you_mean(name, MODALITIES)}")
