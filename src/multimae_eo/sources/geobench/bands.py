"""Bands, values and classes of GEO-Bench's twelve data sets. See docs/geobench.md.

Facts only; ``sources/geobench.py`` reads the files. Where a data set's own band names are wrong,
the band meant here is the one whose pixels are there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from multimae_eo import catalog
from multimae_eo.errors import BandError, ConfigError, did_you_mean
from multimae_eo.modality import Band, Modality
from multimae_eo.sources.geobench.classes import CLASSES

LabelKind = Literal["class", "classes", "map"]
Metric = Literal["accuracy", "f1", "miou"]
StoredChannel = tuple[str, int]
"""An HDF5 dataset's name without its date, and the channel in it."""

COUNTS = "digital number"


@dataclass(frozen=True, kw_only=True)
class BandLayer:
    """Bands of one sensor that share resolution and meaning of values.

    ``stored_channels``: the stored channel of each band. ``scale``: ``physical = raw * scale`` in
    ``unit``. ``level``: the product level, where the sensor has several. ``decibel``: raw values
    are intensities, and the reader gives 10 · log10 of them. ``modalities``: offered unless others
    are asked for.
    """

    sensor: str
    stored_channels: Mapping[str, StoredChannel]
    gsd_m: float
    unit: str
    scale: float = 1.0
    level: str = ""
    nodata: tuple[float, ...] = ()
    decibel: bool = False
    modalities: tuple[Modality, ...] = ()


@dataclass(frozen=True, kw_only=True)
class GeoBenchData:
    """One data set. ``size``: pixels of a chip's side. ``label``: one class, several, or a map.

    ``folders``: names its folder may have. ``located``: whether the stored positions are true.
    """

    name: str
    folders: tuple[str, ...]
    size: int
    label: LabelKind
    metric: Metric
    layers: tuple[BandLayer, ...]
    located: bool = False

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, by the number that the files hold."""
        return CLASSES[self.name]

    @property
    def benchmark(self) -> str:
        """The folder that holds this data set in the published benchmark."""
        return "segmentation_v1.0" if self.label == "map" else "classification_v1.0"

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """The modalities offered by default."""
        return tuple(self.fill(m)[0] for layer in self.layers for m in layer.modalities)

    def fill(self, modality: Modality) -> tuple[Modality, BandLayer]:
        """The modality as this data set stores it, and the layer that holds its bands.

        Raises BandError where a band is not there, or has other units.
        """
        for layer in self.layers:
            if layer.sensor == modality.sensor and set(modality.band_names) <= set(
                layer.stored_channels
            ):
                break
        else:
            have = "; ".join(f"{x.sensor}: {_some(x.stored_channels)}" for x in self.layers)
            raise BandError(
                f"{self.name}: cannot fill {modality.name!r} ({modality.sensor}: "
                f"{_some(modality.band_names)}); it has {have}"
            )
        if layer.unit != modality.unit:
            raise BandError(
                f"{self.name}: cannot fill {modality.name!r}: its unit is {modality.unit!r}, the "
                f"files hold {layer.unit!r}; take {', '.join(m.name for m in layer.modalities)}"
            )
        filled = replace(
            modality, scale=layer.scale, offset=0.0, nodata=layer.nodata, gsd_m=layer.gsd_m
        )
        return filled, layer


def find_dataset(folder: str) -> GeoBenchData:
    """Look a data set up by its folder's name; ConfigError names the nearest."""
    for record in DATASETS.values():
        if folder.lower() in (n.lower() for n in (record.name, *record.folders)):
            return record
    raise ConfigError(f"no GEO-Bench data set {folder!r}; {did_you_mean(folder, DATASETS)}")


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:16]) + (f" … ({len(listed)})" if len(listed) > 16 else "")


_SENTINEL2 = {
    "B1": "01 - Coastal aerosol",
    "B2": "02 - Blue",
    "B3": "03 - Green",
    "B4": "04 - Red",
    "B5": "05 - Vegetation Red Edge",
    "B6": "06 - Vegetation Red Edge",
    "B7": "07 - Vegetation Red Edge",
    "B8": "08 - NIR",
    "B8A": "08A - Vegetation Red Edge",
    "B9": "09 - Water vapour",
    "B10": "10 - SWIR - Cirrus",
    "B11": "11 - SWIR",
    "B12": "12 - SWIR",
}
# EuroSAT stores B8A last; GEO-Bench named its channels as if it came after B8 (its issue 28).
_EUROSAT = {"B9": "B8A", "B10": "B9", "B11": "B10", "B12": "B11", "B8A": "B12"}
# The channels are B1 B2 B3 B4 B5 B7 B8A B8 B11 B12 and the true-colour picture (its issue 29).
_BRICK_KILN = {"B7": "B6", "B8A": "B7", "B8": "B8", "B11": "B8A", "B12": "B9"}
_TRUE_COLOUR = {
    "red": ("10 - SWIR - Cirrus", 0),
    "green": ("11 - SWIR", 0),
    "blue": ("12 - SWIR", 0),
}


def _sentinel2(
    bands: Iterable[str],
    *,
    level: str,
    scale: float = 1e-4,
    nodata: tuple[float, ...] = (0.0,),
    named: Mapping[str, str] | None = None,
) -> BandLayer:
    """``named``: the bands under whose names the pixels of others are stored."""
    stored_channels = {b: (_SENTINEL2[(named or {}).get(b, b)], 0) for b in bands}
    groups = [catalog.modality(n) for n in ("rgb", "ired", "sired", "ebands")]
    return BandLayer(
        sensor="sentinel2",
        stored_channels=stored_channels,
        gsd_m=10.0,
        unit="reflectance",
        scale=scale,
        level=level,
        nodata=nodata,
        modalities=tuple(m for m in groups if set(m.band_names) <= set(stored_channels)),
    )


def _aerial(gsd_m: float) -> BandLayer:
    return BandLayer(
        sensor="rgb",
        stored_channels={"red": ("Red", 0), "green": ("Green", 0), "blue": ("Blue", 0)},
        gsd_m=gsd_m,
        unit=COUNTS,
        modalities=(
            catalog.make_modality("aerial_rgb", sensor_name="rgb", bands=("red", "green", "blue")),
        ),
    )


def _modality(name: str, bands: Iterable[Band], *, sensor: str, unit: str) -> Modality:
    return Modality(name=name, sensor=sensor, bands=tuple(bands), unit=unit)


def _counts(band: Band) -> Band:
    return replace(band, physical_range=(0.0, 255.0))


_NAMES_12 = tuple(b for b in _SENTINEL2 if b != "B10")
_LANDSAT = {
    "B2": "02 - Blue",
    "B3": "03 - Green",
    "B4": "04 - Red",
    "B5": "05 - NIR",
    "B6": "06 - SWIR1",
    "B7": "07 - SWIR2",
}
# So2Sat's own description: 7 and 8 are the covariance of the two filtered channels.
_COMPLEX = {
    "VH_real": "01 - VH.Real",
    "VH_imaginary": "02 - VH.Imaginary",
    "VV_real": "03 - VV.Real",
    "VV_imaginary": "04 - VV.Imaginary",
    "covariance_real": "07 - VH.LEE Filtered.Real",
    "covariance_imaginary": "08 - VV.LEE Filtered.Imaginary",
}
HYPERSPECTRAL_BANDS = 369
_HYPERSPECTRAL = tuple(f"h{i:03d}" for i in range(HYPERSPECTRAL_BANDS))

_RECORDS = (
    GeoBenchData(
        name="m-bigearthnet",
        folders=("bigearthnet",),
        size=120,
        label="classes",
        metric="f1",
        layers=(_sentinel2(_NAMES_12, level="l2a"),),
        located=True,
    ),
    GeoBenchData(
        name="m-so2sat",
        folders=("so2sat",),
        size=32,
        label="class",
        metric="accuracy",
        layers=(
            _sentinel2(
                [b for b in _NAMES_12 if b not in ("B1", "B9")], level="l1c", scale=1.0, nodata=()
            ),
            BandLayer(
                sensor="sentinel1",
                stored_channels={
                    "VV": ("06 - VV.LEE Filtered", 0),
                    "VH": ("05 - VH.LEE Filtered", 0),
                },
                gsd_m=10.0,
                unit="dB",
                decibel=True,
                modalities=(catalog.modality("sentinel1"),),
            ),
            BandLayer(
                sensor="sentinel1_complex",
                stored_channels={band: (stored, 0) for band, stored in _COMPLEX.items()},
                gsd_m=10.0,
                unit="",
                modalities=(
                    _modality(
                        "sentinel1_complex",
                        (Band(name=b) for b in _COMPLEX),
                        sensor="sentinel1_complex",
                        unit="",
                    ),
                ),
            ),
        ),
    ),
    GeoBenchData(
        name="m-brick-kiln",
        folders=("brick_kiln_v1.0",),
        size=64,
        label="class",
        metric="accuracy",
        layers=(
            _sentinel2(
                [b for b in _NAMES_12 if b not in ("B6", "B9")], level="l2a", named=_BRICK_KILN
            ),
            BandLayer(sensor="rgb", stored_channels=_TRUE_COLOUR, gsd_m=10.0, unit=COUNTS),
        ),
        located=True,
    ),
    GeoBenchData(
        name="m-forestnet",
        folders=("forestnet_v1.0",),
        size=332,
        label="class",
        metric="accuracy",
        layers=(
            BandLayer(
                sensor="landsat8",
                stored_channels={band: (stored, 0) for band, stored in _LANDSAT.items()},
                gsd_m=15.0,
                unit=COUNTS,
                modalities=(
                    _modality(
                        "landsat8_picture",
                        (_counts(catalog.sensor("landsat8").band(b)) for b in _LANDSAT),
                        sensor="landsat8",
                        unit=COUNTS,
                    ),
                ),
            ),
        ),
        located=True,
    ),
    GeoBenchData(
        name="m-eurosat",
        folders=("eurosat",),
        size=64,
        label="class",
        metric="accuracy",
        layers=(_sentinel2(_SENTINEL2, level="l1c", named=_EUROSAT),),
        located=True,
    ),
    GeoBenchData(
        name="m-pv4ger",
        folders=("pv4ger_classification",),
        size=320,
        label="class",
        metric="accuracy",
        layers=(_aerial(0.1),),
        located=True,
    ),
    GeoBenchData(
        name="m-pv4ger-seg",
        folders=("pv4ger_segmentation",),
        size=320,
        label="map",
        metric="miou",
        layers=(_aerial(0.1),),
        located=True,
    ),
    GeoBenchData(
        name="m-chesapeake",
        folders=("m-chesapeake-landcover", "cvpr_chesapeake_landcover"),
        size=256,
        label="map",
        metric="miou",
        layers=(
            _aerial(1.0),
            BandLayer(
                sensor="aerial",
                stored_channels={"nir": ("NearInfrared", 0)},
                gsd_m=1.0,
                unit=COUNTS,
                modalities=(
                    _modality(
                        "aerial_nir",
                        [_counts(Band(name="nir", wavelength_um=0.876))],
                        sensor="aerial",
                        unit=COUNTS,
                    ),
                ),
            ),
        ),
    ),
    GeoBenchData(
        name="m-cashew-plant",
        folders=("m-cashew-plantation", "smallholder_cashew"),
        size=256,
        label="map",
        metric="miou",
        layers=(_sentinel2(_NAMES_12, level="l2a"),),
    ),
    GeoBenchData(
        name="m-SA-crop-type",
        folders=("southAfricaCropType",),
        size=256,
        label="map",
        metric="miou",
        # 8-bit: the published means over 255 are the reflectances of a dry summer's fields.
        layers=(_sentinel2(_NAMES_12, level="l2a", scale=1 / 255, nodata=()),),
    ),
    GeoBenchData(
        name="m-nz-cattle",
        folders=("nz_cattle_segmentation",),
        size=500,
        label="map",
        metric="miou",
        layers=(_aerial(0.1),),
    ),
    GeoBenchData(
        name="m-NeonTree",
        folders=("NeonTree_segmentation",),
        size=400,
        label="map",
        metric="miou",
        layers=(
            _aerial(0.1),
            BandLayer(
                sensor="canopy_height",
                stored_channels={"canopy_height": ("Canopy Height Model", 0)},
                gsd_m=1.0,
                unit="m",
                modalities=(catalog.modality("canopy_height"),),
            ),
            BandLayer(
                sensor="neon",
                stored_channels={band: ("Neon", i) for i, band in enumerate(_HYPERSPECTRAL)},
                gsd_m=1.0,
                unit="reflectance",
                scale=1e-4,
                # The conversion wrote nodata as 0, which canopy height may also be.
                nodata=(0.0,),
                modalities=(
                    _modality(
                        "hyperspectral",
                        (Band(name=b, physical_range=catalog.REFLECTANCE) for b in _HYPERSPECTRAL),
                        sensor="neon",
                        unit="reflectance",
                    ),
                ),
            ),
        ),
    ),
)

DATASETS: Mapping[str, GeoBenchData] = {r.name: r for r in _RECORDS}
