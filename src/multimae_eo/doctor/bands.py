"""Relations between bands: copies of one another, and labels that stand on the wrong band.

Bands of one sensor on one grid are taken together, whatever modalities they are grouped into.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np

from multimae_eo.doctor.finding import Finding, percent
from multimae_eo.doctor.scan import Array, Chip
from multimae_eo.modality import Band, Modality, ModalitySet

_BLOCK = 6
"""Pixels a side over which bands are averaged before they are compared: bands that were resampled
from 60 m are then as smooth as those of 10 m."""
_BLOCKS_PER_CHIP = 144
COPY, DISTANT_UM = 0.9985, 0.1


@dataclass
class Stack:
    """The bands of one sensor on one grid.

    ``names``: (modality, band) of each of C bands. ``blocks``: per chip (C, k) block means in
    physical units, NaN where not all is valid. ``steps``: (C, 2) sums of squared differences
    between pixels 1 and 3 apart, the first at the calmer of two phases: bands that were
    up-sampled, smoothly or by repeating pixels, differ little from pixel to pixel.
    """

    sensor: str
    names: tuple[tuple[str, str], ...]
    bands: tuple[Band, ...]
    blocks: list[Array] = field(default_factory=list)
    pixels: list[Array] = field(default_factory=list)
    steps: Array = field(default_factory=lambda: np.zeros((0, 2)))
    equal: Counter[tuple[int, int]] = field(default_factory=Counter)
    varied: Counter[int] = field(default_factory=Counter)
    chips: int = 0

    def where(self, index: int) -> str:
        """``modality/band``."""
        return "/".join(self.names[index])

    def add(self, values: Array, digests: list[bytes], seed: int) -> None:
        """Take in one chip's bands, (C, H, W) in physical units with NaN for nodata."""
        self.chips += 1
        flat = values.reshape(len(values), -1)
        rng = np.random.default_rng(seed)
        self.pixels.append(flat[:, rng.integers(0, flat.shape[1], 128)])
        self.blocks.append(_block_means(values))
        steps = _steps(values)
        self.steps = self.steps + steps if len(self.steps) else steps
        varies = np.where(np.isfinite(flat), flat, -np.inf).max(axis=1) > np.where(
            np.isfinite(flat), flat, np.inf
        ).min(axis=1)
        for i in np.flatnonzero(varies):
            self.varied[int(i)] += 1
            for j in np.flatnonzero(varies[:i]):
                if digests[i] == digests[int(j)]:
                    self.equal[(int(j), int(i))] += 1

    def correlation(self, indices: list[int], *, blocks: bool = True) -> Array:
        """Correlation matrix of some bands, over block means or pixels valid in all of them."""
        rows = np.concatenate(self.blocks if blocks else self.pixels, axis=1)[indices]
        rows = rows[:, np.isfinite(rows).all(axis=0)]
        if rows.shape[1] < 8:
            return np.eye(len(indices))
        std = rows.std(axis=1, keepdims=True)
        unit = (rows - rows.mean(axis=1, keepdims=True)) / np.where(std > 0, std, 1.0)
        return np.asarray(unit @ unit.T / rows.shape[1])

    @property
    def medians(self) -> Array:
        """Median block mean per band, (C,); NaN for a band that is nowhere valid."""
        rows = np.concatenate(self.blocks, axis=1)
        return np.array([np.median(r[np.isfinite(r)]) if np.isfinite(r).any() else np.nan
                         for r in rows])  # fmt: skip

    @property
    def sharpness(self) -> Array:
        """Differences between neighbours against those three pixels apart, (C,)."""
        return np.asarray(self.steps[:, 0] / np.maximum(self.steps[:, 1], 1e-30))


class StackScan:
    """Collects the band stacks of all sensors."""

    def __init__(self, modalities: ModalitySet) -> None:
        self._modalities = modalities
        self.results: dict[tuple[object, ...], Stack] = {}

    def add(self, chip: Chip) -> None:
        """Take in one chip."""
        groups: dict[tuple[str, tuple[int, ...]], list[Modality]] = {}
        for name, pixels in chip.sample.pixels.items():
            modality = self._modalities[name]
            if not modality.categorical and min(pixels.shape[-2:]) >= 8:
                groups.setdefault((modality.sensor, pixels.shape[-2:]), []).append(modality)
        for (sensor, shape), members in groups.items():
            names = tuple((m.name, b) for m in members for b in m.band_names)
            if len(names) < 2:
                continue
            bands = tuple(b for m in members for b in m.bands)
            stack = self.results.setdefault((shape, names), Stack(sensor, names, bands))
            values = np.concatenate([_physical(chip, m) for m in members])
            digests = [
                hashlib.blake2b(band.tobytes(), digest_size=8).digest()
                for m in members
                for band in chip.sample.pixels[m.name]
            ]
            stack.add(values, digests, chip.index)


def _physical(chip: Chip, modality: Modality) -> Array:
    calibration = chip.sample.calibration_of(modality)
    values = chip.sample.pixels[modality.name].astype(np.float64)
    values = values * calibration.scale + calibration.offset
    if modality.name in chip.sample.valid:
        values[~chip.sample.validity(modality.name)] = np.nan
    return values


def _block_means(values: Array) -> Array:
    """(C, k) means of blocks; few blocks are taken evenly where there are many."""
    count, height, width = values.shape
    size = max(1, min(_BLOCK, min(height, width) // 4))
    rows, columns = height // size, width // size
    cut = values[:, : rows * size, : columns * size]
    means = cut.reshape(count, rows, size, columns, size).mean(axis=(2, 4)).reshape(count, -1)
    return np.asarray(means[:, :: max(1, means.shape[1] // _BLOCKS_PER_CHIP)])


def _steps(values: Array) -> Array:
    near = np.diff(values, axis=2) ** 2
    far = (values[:, :, 3:] - values[:, :, :-3]) ** 2
    width = near.shape[2] // 2 * 2
    phases = [_sums(near[:, :, p:width:2]) for p in (0, 1)]
    calm = np.minimum(phases[0], phases[1]) / (width // 2)
    return np.stack([calm, _sums(far) / far.shape[2]], axis=1)


def _sums(values: Array) -> Array:
    return np.asarray(np.where(np.isfinite(values), values, 0.0).sum(axis=(1, 2)))


def copy_findings(stacks: list[Stack]) -> Iterator[Finding]:
    """Bands that are copies of one another, exactly or stretched."""
    for stack in stacks:
        together = list(range(len(stack.names)))
        relation = stack.correlation(together, blocks=False)
        for i, j in combinations(together, 2):
            if _one_band(stack, i, j):
                continue
            count = stack.equal[(i, j)]
            pair = f"{stack.where(i)}, {stack.where(j)}"
            if count > 0.02 * max(stack.varied[j], 1):
                yield Finding(
                    check="duplicate-bands",
                    severity="error",
                    where=pair,
                    what="two bands hold the same pixels",
                    evidence={"identical in": percent(count / stack.varied[j]), "chips": count},
                    remedy="one was written twice: take both from the original product",
                )
            elif relation[i, j] > _copy_limit(stack, i, j):
                yield Finding(
                    check="duplicate-bands",
                    severity="warning",
                    where=pair,
                    what="two bands are one picture, differently stretched",
                    evidence={"correlation": round(float(relation[i, j]), 5)},
                    remedy="one is a copy under another name: compare with the original product",
                )


def _one_band(stack: Stack, i: int, j: int) -> bool:
    """Whether two modalities hold one and the same band on purpose."""
    return stack.names[i][1] == stack.names[j][1] and bool(stack.sensor)


def _copy_limit(stack: Stack, i: int, j: int) -> float:
    """Neighbouring wavelengths may agree closely; distant ones do not by nature."""
    a, b = stack.bands[i].wavelength_um, stack.bands[j].wavelength_um
    return COPY if a is not None and b is not None and abs(a - b) > DISTANT_UM else 0.9999
