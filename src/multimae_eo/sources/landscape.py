"""A synthetic landscape whose modalities depend on one another, as those of the Earth do.

Relief is drawn first. Land cover follows from height, slope, wetness and the proximity of water;
optical bands follow from land cover, the sun's angle on the relief and the state of vegetation;
radar follows from land cover and the slopes that face the sensor. Nothing here is measured data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from multimae_eo.errors import ConfigError

Field = npt.NDArray[np.float32]

GSD_M = 10.0
OPTICAL_BANDS = ("B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B11", "B12")
RADAR_BANDS = ("VV", "VH")
LEAST_SIZE = 192
"""Smallest side in pixels: below it there is no room for a valley beside a ridge."""

TREES, SHRUBS, GRASS, CROPS, BUILT = 10, 20, 30, 40, 50
BARE, SNOW, WATER, WETLAND, MOSS = 60, 70, 80, 90, 100

# Surface reflectance x 10000 in the order of OPTICAL_BANDS: two states of each class.
_SPECTRA: Mapping[int, tuple[tuple[int, ...], tuple[int, ...]]] = {
    TREES: (
        (260, 480, 300, 800, 2350, 2950, 3100, 3250, 1450, 650),  # broadleaf
        (190, 330, 230, 520, 1350, 1650, 1750, 1850, 850, 400),  # conifer
    ),
    SHRUBS: (
        (380, 640, 500, 1050, 2200, 2550, 2700, 2850, 1900, 1050),
        (430, 640, 620, 1050, 1750, 1950, 2050, 2200, 2050, 1250),
    ),
    GRASS: (
        (400, 780, 480, 1150, 3100, 3800, 3950, 4100, 2150, 1050),
        (560, 830, 800, 1300, 2300, 2600, 2750, 2900, 2700, 1650),  # dry
    ),
    CROPS: (
        (330, 760, 370, 1150, 3900, 4850, 5050, 5150, 1850, 850),
        (820, 1150, 1480, 1850, 2250, 2400, 2550, 2750, 3300, 2350),  # ripe, or soil
    ),
    BUILT: (
        (950, 1080, 1150, 1300, 1600, 1750, 1850, 1900, 1850, 1500),
        (1700, 1850, 2000, 2080, 2150, 2200, 2250, 2250, 2350, 2150),
    ),
    BARE: (
        (900, 1050, 1180, 1280, 1380, 1430, 1480, 1520, 1850, 1650),
        (1250, 1480, 1700, 1800, 1900, 1950, 2000, 2050, 2500, 2250),
    ),
    SNOW: (
        (8700, 8600, 8500, 8300, 8200, 8000, 7900, 7600, 1100, 850),
        (7000, 6950, 6900, 6800, 6700, 6500, 6400, 6100, 1500, 1250),
    ),
    WATER: (
        (480, 420, 240, 200, 150, 140, 120, 110, 60, 40),
        (760, 880, 560, 430, 280, 260, 230, 200, 90, 60),  # shallow, silty
    ),
    WETLAND: (
        (340, 560, 430, 850, 1750, 2050, 2150, 2250, 1250, 620),
        (430, 600, 560, 850, 1350, 1500, 1600, 1700, 1350, 800),
    ),
    MOSS: (
        (560, 760, 820, 1200, 1700, 1900, 2000, 2100, 2300, 1550),
        (750, 930, 1050, 1350, 1700, 1850, 1950, 2050, 2450, 1800),
    ),
}

# Mean backscatter in dB: VV, VH.
_BACKSCATTER: Mapping[int, tuple[float, float]] = {
    TREES: (-9.5, -14.5), SHRUBS: (-11.0, -17.0), GRASS: (-12.5, -20.0), CROPS: (-11.0, -18.0),
    BUILT: (-3.5, -11.5), BARE: (-13.0, -22.5), SNOW: (-16.0, -25.5), WATER: (-21.0, -28.5),
    WETLAND: (-8.0, -17.5), MOSS: (-14.0, -22.0),
}  # fmt: skip

LAKE_M = 68.0
_LOOKS = 6.0
_SUN_AZIMUTH, _SUN_HEIGHT = np.deg2rad(160.0), np.deg2rad(42.0)


@dataclass(frozen=True, kw_only=True)
class Landscape:
    """A square landscape at 10 m, north up, H = W.

    ``sentinel2``: uint16 (10, H, W), L2A surface reflectance x 10000, bands OPTICAL_BANDS, never 0.
    ``radar``: float32 (2, H, W), gamma nought in dB, bands RADAR_BANDS. ``elevation``: int16
    (1, H, W), metres. ``landcover``: uint8 (1, H, W), ids of the class map ``esa_worldcover``.
    """

    sentinel2: npt.NDArray[np.uint16]
    radar: Field
    elevation: npt.NDArray[np.int16]
    landcover: npt.NDArray[np.uint8]

    @property
    def size(self) -> int:
        """Pixels along a side."""
        return int(self.landcover.shape[-1])


def make_landscape(size: int, seed: int) -> Landscape:
    """Make a landscape of ``size`` x ``size`` pixels; equal arguments give equal pixels.

    Raises ConfigError below LEAST_SIZE.
    """
    if size < LEAST_SIZE:
        raise ConfigError(f"landscape: size: got {size} px; the least is {LEAST_SIZE}")
    noise = _Noise(size, np.random.default_rng([seed, 1]))
    height, river = _relief(noise)
    cover, parcel = _land_cover(noise, height, river)
    return Landscape(
        sentinel2=_optical(noise, height, cover, parcel),
        radar=_radar(noise, height, cover),
        elevation=np.rint(height).astype(np.int16)[None],
        landcover=cover[None],
    )


class _Noise:
    """Gaussian random fields (H, W) with a power law between two wavelengths."""

    def __init__(self, size: int, rng: np.random.Generator) -> None:
        self.size = size
        self.rng = rng
        rows = np.fft.fftfreq(size).astype(np.float32)[:, None]
        self._frequency = np.hypot(rows, np.fft.rfftfreq(size).astype(np.float32)[None])
        self._frequency[0, 0] = np.inf

    def field(self, longest: float, shortest: float, slope: float = 2.0) -> Field:
        """A field of unit variance; wavelengths in pixels, amplitude ~ wavelength ** slope."""
        f = self._frequency
        white = self.rng.standard_normal((self.size, self.size), dtype=np.float32)
        # Rounded off below the lowest frequency, so that regions of a large landscape are alike.
        amplitude = (f**2 + (1 / longest) ** 2) ** (-slope / 2) * np.exp(-((f * shortest) ** 2))
        spectrum = np.fft.rfft2(white) * amplitude
        spectrum[0, 0] = 0
        field: Field = np.fft.irfft2(spectrum, s=white.shape).astype(np.float32)
        # The expected variance, not the sample's: landscapes of any size are then alike.
        weight = np.full(f.shape[1], 2.0)
        weight[0] = 1.0
        if self.size % 2 == 0:
            weight[-1] = 1.0
        power = np.where(np.isfinite(f), amplitude, 0.0) ** 2 * weight
        field /= np.float32(np.sqrt(power.sum()) / self.size)
        return field

    def white(self, *shape: int) -> Field:
        """Independent normal numbers (\\*shape, H, W)."""
        return self.rng.standard_normal((*shape, self.size, self.size), dtype=np.float32)

    def blur(self, field: Field, radius: float) -> Field:
        """Gaussian blur with a standard deviation in pixels."""
        kernel = np.exp(-2 * (np.pi * radius * self._frequency) ** 2)
        kernel[0, 0] = 1.0
        blurred: Field = np.fft.irfft2(np.fft.rfft2(field) * kernel, s=field.shape).astype(
            np.float32
        )
        return blurred


def _relief(noise: _Noise) -> tuple[Field, Field]:
    """Height in metres, lakes level, and closeness to a river (1 on it, 0 away from it)."""
    massif = noise.field(420, 70)
    # Valleys run where this field changes sign: lines without an end, as valleys are.
    drainage = noise.field(230, 16, 2.2)
    flank = np.sqrt(drainage**2 + 0.03)
    ridges = 1 - np.abs(np.tanh(noise.field(80, 6, 2.1)))
    rough = noise.field(40, 3, 2.0)
    mountain = _smoothstep(massif, -0.7, 1.7)
    height = (
        112
        + 30 * massif
        + 26 * noise.field(150, 24)
        + 470 * mountain * (0.2 + 0.6 * np.minimum(flank, 1.5))
        + 110 * mountain**1.5 * ridges * np.minimum(flank, 1.0)
        + (2.0 + 14 * mountain) * rough
    )
    river = np.exp(-((drainage / 0.035) ** 2)) * _smoothstep(-height, -420, -330)
    height -= 9 * river
    lake = height < LAKE_M
    return np.maximum(height, LAKE_M).astype(np.float32), np.where(lake, 1, river)


def _slopes(height: Field) -> tuple[Field, Field]:
    """Rise per metre towards the south and towards the east."""
    south, east = (np.gradient(height, GSD_M, axis=axis).astype(np.float32) for axis in (0, 1))
    return south, east


def _land_cover(noise: _Noise, height: Field, river: Field) -> tuple[npt.NDArray[np.uint8], Field]:
    """Class ids (H, W), and a number in [0, 1) for the parcel or block that each pixel is in."""
    south, east = _slopes(noise.blur(height, 1.2))
    steep = np.hypot(south, east)
    relative = height - noise.blur(height, 12)
    wild, fine = noise.field(70, 6, 1.6), noise.field(10, 2, 1.0)
    # Trees climb higher on slopes that face the sun; snow stays longer in the shade and in gullies.
    warm = height + 190 * np.clip(south, -0.5, 0.5) + 45 * wild + 22 * fine
    cold = height + 160 * np.clip(south, -0.5, 0.5) - 1.6 * relative + 35 * wild + 18 * fine
    parcel = _parcels(noise, 11, 17)
    settled = noise.field(60, 9, 1.8) - 0.0035 * height - 5.5 * steep

    cover = np.full(height.shape, GRASS, np.uint8)
    cover[(wild + 0.35 * fine + 4.0 * steep + 0.002 * height) > 0.95] = TREES
    farmed = (height < 225) & (noise.blur(steep, 3) < 0.2) & (parcel > 0.2)
    cover[farmed & (wild < 0.9)] = CROPS
    cover[(warm > 330) & (cover != CROPS)] = SHRUBS
    cover[warm > 415] = MOSS
    cover[(relative < -7) & (warm > 330) & (warm < 500)] = GRASS
    cover[(steep > 0.8) | (warm > 520)] = BARE
    cover[cold > 570] = SNOW
    near = noise.blur((river > 0.6).astype(np.float32), 3.5)
    cover[(near > 0.16) & (steep < 0.12) & (wild > -0.1) & (height < 330)] = WETLAND
    streets = _parcels(noise, 5, 7)
    built = (settled > 0.3) & (height < 260)
    cover[built] = BUILT
    cover[built & (streets < 0.16)] = GRASS
    cover[river > 0.6] = WATER
    return cover, np.where(cover == BUILT, streets, parcel).astype(np.float32)


def _parcels(noise: _Noise, across: float, along: float) -> Field:
    """A number in [0, 1) per field of a crooked cadastre, sides in pixels."""
    rows, cols = np.mgrid[: noise.size, : noise.size].astype(np.float32)
    bend = 9.0 * noise.field(260, 40)
    angle = noise.rng.uniform(0, np.pi)
    u = np.cos(angle) * cols + np.sin(angle) * rows + bend
    v = np.cos(angle) * rows - np.sin(angle) * cols + bend[::-1]
    strip = np.floor(u / across).astype(np.int64)
    # Fields of neighbouring strips are shifted against one another.
    plot = np.floor(v / along + 0.618 * (strip % 7)).astype(np.int64)
    table = noise.rng.random(4099, dtype=np.float32)
    parcel: Field = table[(strip * 7919 + plot * 104729) % 4099]
    return parcel


def _optical(
    noise: _Noise, height: Field, cover: npt.NDArray[np.uint8], parcel: Field
) -> npt.NDArray[np.uint16]:
    """Reflectance x 10000, (10, H, W), of the lit, textured and slightly blurred surface."""
    dry = noise.field(90, 8, 1.6)
    state = 0.5 + 0.22 * dry
    state = np.where(cover == TREES, (height - 60) / 420 + 0.15 * dry, state)
    state = np.where(cover == GRASS, (height - 40) / 480 + 0.15 * dry, state)
    state = np.where((cover == CROPS) | (cover == BUILT), parcel**1.5 + 0.05 * dry, state)
    state = np.clip(state, 0, 1).astype(np.float32)
    texture = _texture(noise, cover)
    light = _light(noise.blur(height, 0.8)) * texture
    index, tables = _by_class(_SPECTRA)
    row = index[cover]
    bands = np.empty((len(OPTICAL_BANDS), *cover.shape), np.uint16)
    for b in range(len(OPTICAL_BANDS)):
        first, second = tables[:, 0, b][row], tables[:, 1, b][row]
        lit = (first + (second - first) * state) * light + 25
        seen = _binomial(lit) * (1 + 0.012 * noise.white()) + 14 * noise.white()
        bands[b] = np.clip(np.rint(seen), 1, 12_000)
    return bands


def _texture(noise: _Noise, cover: npt.NDArray[np.uint8]) -> Field:
    """Brightness around 1: crowns of trees, roofs and yards, and next to none on water."""
    strength = np.full(101, 0.05, np.float32)
    strength[[TREES, BUILT, BARE, WATER, SNOW]] = (0.13, 0.22, 0.10, 0.03, 0.03)
    texture: Field = np.clip(1 + strength[cover] * noise.field(3, 1.2, 1.0), 0.4, 1.8)
    return texture


def _light(height: Field) -> Field:
    """Sunlight on the relief, 1 on flat ground, with a share of diffuse light."""
    south, east = _slopes(height)
    toward = np.array([-np.cos(_SUN_AZIMUTH), np.sin(_SUN_AZIMUTH)]) * np.cos(_SUN_HEIGHT)
    facing = np.sin(_SUN_HEIGHT) - south * toward[0] - east * toward[1]
    direct = np.maximum(facing, 0) / np.sqrt(1 + south**2 + east**2) / np.sin(_SUN_HEIGHT)
    light: Field = (0.28 + 0.72 * direct).astype(np.float32)
    return light


def _radar(noise: _Noise, height: Field, cover: npt.NDArray[np.uint8]) -> Field:
    """Backscatter in dB with speckle, (2, H, W): brighter on slopes facing the sensor, west."""
    _, east = _slopes(noise.blur(height, 1.0))
    index, means = _by_class(_BACKSCATTER)
    row = index[cover]
    patchy = noise.field(25, 3, 1.2)
    facing = 6.5 * np.tanh(2.0 * east)
    bands = np.empty((2, *cover.shape), np.float32)
    for b in range(2):
        decibel = means[:, b][row] + facing + 0.7 * patchy
        speckle = noise.rng.standard_gamma(_LOOKS, cover.shape, dtype=np.float32) / _LOOKS
        bands[b] = decibel + 10 * np.log10(np.maximum(speckle, 1e-3))
    return bands


def _by_class(table: Mapping[int, object]) -> tuple[npt.NDArray[np.intp], Field]:
    """Row of each class id in the stacked values of ``table``, and those values."""
    index = np.zeros(101, np.intp)
    index[list(table)] = np.arange(len(table))
    return index, np.array(list(table.values()), np.float32)


def _binomial(field: Field) -> Field:
    """A blur of three pixels: boundaries hold mixtures, as those of sensors do."""
    for axis in (0, 1):
        field = 0.15 * np.roll(field, 1, axis) + 0.7 * field + 0.15 * np.roll(field, -1, axis)
    return field


def _smoothstep(x: Field, low: float, high: float) -> Field:
    """0 below ``low``, 1 above ``high``, smooth in between."""
    t = np.clip((x - low) / (high - low), 0, 1)
    step: Field = (t * t * (3 - 2 * t)).astype(np.float32)
    return step
