"""Random numbers that belong to a sample, whatever batch, process or order it comes in."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_STEP = np.uint64(0x9E3779B97F4A7C15)
_TRIES = 12
"""Attempts of Marsaglia and Tsang's method. Each succeeds with more than 0.95; all fail in 1e-15 of
the values, which then are the mode."""


class PerSample:
    """A stream of numbers per sample, on the CPU: a counter hashed with the sample's seed.

    Equal keys and parts give equal streams: masks drawn from them are the same when a batch is
    split over accumulated batches, processes, or another number of either.
    """

    def __init__(self, keys: Sequence[str], *parts: int) -> None:
        """``keys``: of the samples. ``parts``: small integers, such as seed and epoch."""
        salt = mixed_seed(*parts).to_bytes(8, "little")
        digests = [hashlib.blake2b(k.encode(), digest_size=8, key=salt).digest() for k in keys]
        self._seeds = np.frombuffer(b"".join(digests), dtype="<u8").reshape(-1, 1)
        self._used = 0

    @property
    def device(self) -> torch.device:
        """The CPU."""
        return torch.device("cpu")

    def rand(self, count: int) -> Tensor:
        """Uniform in [0, 1): float32 (B, count)."""
        return torch.from_numpy(self._uniform(count, bits=24).astype(np.float32))

    def gamma(self, alpha: float, count: int) -> Tensor:
        """Gamma of shape ``alpha`` > 0 and scale 1: float32 (B, count).

        Marsaglia and Tsang 2000, every sample taking the same number of tries from its stream;
        the exponential for ``alpha`` = 1.
        """
        if alpha == 1.0:
            return torch.from_numpy((-np.log1p(-self._uniform(count))).astype(np.float32))
        shape = alpha if alpha >= 1 else alpha + 1
        d = shape - 1 / 3
        radius, angle, chance = np.split(self._uniform(3 * count * _TRIES), 3, axis=1)
        normal = np.sqrt(-2 * np.log1p(-radius)) * np.cos(2 * np.pi * angle)
        v = (1 + normal / np.sqrt(9 * d)) ** 3
        with np.errstate(divide="ignore", invalid="ignore"):
            fits = (v > 0) & (np.log(chance) < normal**2 / 2 + d * (1 - v + np.log(v)))
        tries = (-1, count, _TRIES)
        fits, v = fits.reshape(tries), v.reshape(tries)
        first = np.take_along_axis(v, fits.argmax(axis=2)[..., None], axis=2)[..., 0]
        gammas = d * np.where(fits.any(axis=2), first, 1.0)
        if alpha < 1:
            gammas = gammas * (1 - self._uniform(count)) ** (1 / alpha)
        return torch.from_numpy(gammas.astype(np.float32))

    def _uniform(self, count: int, *, bits: int = 53) -> npt.NDArray[np.float64]:
        """The next numbers of every stream (B, count): splitmix64 of its seed and a counter."""
        counter = np.arange(self._used + 1, self._used + count + 1, dtype=np.uint64)
        self._used += count
        x = self._seeds + counter * _STEP
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x = x ^ (x >> np.uint64(31))
        uniforms: npt.NDArray[np.float64] = (x >> np.uint64(64 - bits)) * 2.0**-bits
        return uniforms


def mixed_seed(*parts: int) -> int:
    """One well-mixed 63-bit seed from several small integers (splitmix64's finaliser)."""
    state = 0x9E3779B97F4A7C15
    for part in parts:
        state = (state ^ (part & (2**64 - 1))) * 0xBF58476D1CE4E5B9 % 2**64
        state ^= state >> 27
        state = state * 0x94D049BB133111EB % 2**64
        state ^= state >> 31
    return state >> 1
