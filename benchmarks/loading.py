"""How fast chips are read: this loader, a careful plain Dataset, and the reference's way.

Writes a folder in MMEarth64's layout (uncompressed, as published in one merged file) and a chip
store made from it, then reads random batches of six modalities from the page cache, turn by turn,
in one process and, with ``--workers``, in several:

- *store*: this package's loader over the chip store: raw integers, normalised on the device later;
- *hdf5*: the same loader straight from the HDF5 file;
- *plain*: a careful PyTorch Dataset: the file kept open, one read per array and sample, conversion
  to float32 and normalisation in the worker, torch's own collation;
- *reference*: what the reference does per sample: reopen the file, read Sentinel-2 once per
  spectral group, normalise in float64.

All cut the same random 56 px windows and flip. Beside them, what bounds any loader on one core:

- *copy*: one large array copied to another, GB/s;
- *chips*: whole random chips copied from the store's shards by ``numpy.take``, without Python
  between them, counted in bytes of windows;
- *no flips*: the loader without flips, which saves one of its passes.

    python benchmarks/loading.py [--chips 2000] [--rounds 5] [--workers 0]

Results are recorded in docs/performance.md.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from multimae_eo.loading.loader import make_loader
from multimae_eo.loading.open_source import open_source
from multimae_eo.store.reader import ChipStore
from multimae_eo.store.writer import prepare

sys.path.insert(0, str(Path(__file__).parents[1]))  # the tests write such files, too

from tests.support.mmearth_files import write_mmearth

MODALITIES = ("rgb", "ired", "sired", "ebands", "depth", "semseg")
OPTICAL = {"rgb": (3, 2, 1), "ired": (4, 5, 6), "sired": (11, 12), "ebands": (7, 8)}
CHIP, BATCH = 56, 64


class PlainDataset(Dataset[dict[str, torch.Tensor]]):
    """What a careful engineer writes first."""

    def __init__(self, path: Path, chosen: np.ndarray) -> None:
        self.path, self.chosen = path, chosen
        self.file: Any = None
        self.rng = np.random.default_rng(0)

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, place: int) -> dict[str, torch.Tensor]:
        index = int(self.chosen[place])
        if self.file is None:
            self.file = h5py.File(self.path)
        top, left = self.rng.integers(0, 64 - CHIP + 1, 2)
        at = (slice(None), slice(top, top + CHIP), slice(left, left + CHIP))
        flip = self.rng.random() < 0.5
        sentinel2 = self.file["sentinel2"][index][at]
        optical = (sentinel2.astype(np.float32) * 1e-4 - 0.15) / 0.1
        depth = (self.file["aster"][index][:1][at].astype(np.float32) - 500) / 400
        found = {n: optical[list(c)] for n, c in OPTICAL.items()}
        found |= {"depth": depth, "semseg": self.file["esa_worldcover"][index][at].astype(np.int64)}
        turned = ((n, a[..., ::-1] if flip else a) for n, a in found.items())
        return {n: torch.from_numpy(np.ascontiguousarray(a)) for n, a in turned}


class ReferenceDataset(PlainDataset):
    """The reference's habits: reopened per sample, Sentinel-2 read per group, float64."""

    def __getitem__(self, place: int) -> dict[str, torch.Tensor]:
        index = int(self.chosen[place])
        found: dict[str, torch.Tensor] = {}
        mean, std = np.full((13, 1, 1), 1500.0), np.full((13, 1, 1), 1000.0)
        top, left = self.rng.integers(0, 64 - CHIP + 1, 2)
        at = (slice(None), slice(top, top + CHIP), slice(left, left + CHIP))
        flip = self.rng.random() < 0.5
        with h5py.File(self.path) as file:
            for name, channels in OPTICAL.items():
                values = (file["sentinel2"][index] - mean) / std
                found[name] = torch.tensor(values[list(channels)][at]).float()
            depth = (file["aster"][index] - 500.0) / 400.0
            found["depth"] = torch.tensor(depth[:1][at]).float()
            classes = file["esa_worldcover"][index][at].astype(np.int64)
            found["semseg"] = torch.tensor(classes)
        return {n: torch.flip(t, dims=(-1,)) for n, t in found.items()} if flip else found


def plain_loader(dataset: PlainDataset, workers: int) -> Any:
    return DataLoader(dataset, batch_size=BATCH, shuffle=True, drop_last=True, num_workers=workers)


def samples_per_second(batches: Iterator[Any], seconds: float) -> float:
    """After one batch to warm up, as many as come within ``seconds``."""
    next(batches)
    count, start = 0, time.perf_counter()
    for batch in batches:
        tensors = batch if isinstance(batch, dict) else batch.pixels
        count += len(tensors["rgb"])
        if time.perf_counter() - start > seconds:
            break
    return count / (time.perf_counter() - start)


def whole_chips(store: ChipStore, chosen: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
    """Random chips of all modalities into arrays that are used again; only the first shard's."""
    first = chosen[store.shard_of(chosen) == 0]
    shards = {n: store.shard(n, 0) for n in MODALITIES}
    out = {n: np.empty((BATCH, *s.shape[1:]), s.dtype) for n, s in shards.items()}
    rng = np.random.default_rng(0)
    while True:
        chips = rng.permutation(first)
        for start in range(0, len(chips) - BATCH + 1, BATCH):
            batch = chips[start : start + BATCH]
            for name, shard in shards.items():
                np.take(shard, store.rows(name)[batch], axis=0, out=out[name], mode="clip")
            yield out


def copy_bandwidth() -> float:
    """GB/s of copying one large array to another, on one core."""
    source = np.ones(1 << 28, np.uint8)
    target = np.empty_like(source)
    target[:] = source
    rounds = []
    for _ in range(5):
        start = time.perf_counter()
        target[:] = source
        rounds.append(source.nbytes / (time.perf_counter() - start) / 1e9)
    return statistics.median(rounds)


class LoadingData:
    """Chips in MMEarth64's layout as one HDF5 file and as a chip store, under ``folder``."""

    def __init__(self, folder: Path, *, chips: int, holes: bool = False, workers: int = 0) -> None:
        write_mmearth(folder / "mmearth", chips=chips, size=64, seed=0, merged=True)
        self.source = open_source(f"mmearth:{folder / 'mmearth'}")
        self.store = prepare(self.source, folder / "store")
        self.path = next((folder / "mmearth").glob("*.h5"))
        self.workers = workers
        # In the generator's folders every other tile has a hole; in real ones few have.
        self.chosen = np.array([i for i in range(len(self.source)) if holes or i % 4 in (0, 3)])

    def ours(self, source: Any, epoch: int, *, flips: bool = True) -> Iterator[Any]:
        """Batches of this package's loader."""
        loader = make_loader(
            source,
            self.chosen,
            batch_size=BATCH,
            modalities=MODALITIES,
            chip=CHIP,
            train=True,
            flips=flips,
            epoch=epoch,
            workers=self.workers,
        )
        return iter(loader)

    def ways(self) -> dict[str, Callable[[int], Iterator[Any]]]:
        """Each implementation's batches of an epoch, by name."""
        ways: dict[str, Callable[[int], Iterator[Any]]] = {
            "store": lambda r: self.ours(self.store, r),
            "hdf5": lambda r: self.ours(self.source, r),
            "plain": lambda _: iter(
                plain_loader(PlainDataset(self.path, self.chosen), self.workers)
            ),
            "reference": lambda _: iter(
                plain_loader(ReferenceDataset(self.path, self.chosen), self.workers)
            ),
        }
        if not self.workers:
            ways["no flips"] = lambda r: self.ours(self.store, r, flips=False)
            ways["chips"] = lambda _: whole_chips(self.store, self.chosen)
        return ways

    @property
    def chip_bytes(self) -> int:
        """Raw pixels of a chip's window."""
        pixels = self.store.read(0, MODALITIES).pixels.values()
        return sum(p.nbytes * CHIP**2 // p.shape[-1] ** 2 for p in pixels)


def alternating_rates(
    ways: dict[str, Callable[[int], Iterator[Any]]], rounds: int, seconds: float
) -> dict[str, list[float]]:
    """Samples per second of each implementation, all of them in every round."""
    found: dict[str, list[float]] = {n: [] for n in ways}
    for number in range(rounds):
        for way, start in ways.items():
            found[way].append(samples_per_second(start(number), seconds))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--chips", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--holes", action="store_true", help="also chips with invalid pixels")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        data = LoadingData(
            Path(name), chips=options.chips, holes=options.holes, workers=options.workers
        )
        found = alternating_rates(data.ways(), options.rounds, options.seconds)
        chip_bytes = data.chip_bytes
    bandwidth = copy_bandwidth()
    plain, reference = (statistics.median(found[n]) for n in ("plain", "reference"))
    print(f"{len(data.chosen)} chips, batches of {BATCH}, {options.workers} workers, one thread")
    print(f"{'':>9}  {'median':>8}  {'best':>8}  {'× plain':>7}  {'× reference':>11}  samples/s")
    for way, rates in found.items():
        middle = statistics.median(rates)
        print(
            f"{way:>9}  {middle:8,.0f}  {max(rates):8,.0f}  {middle / plain:7.1f}  "
            f"{middle / reference:11.1f}"
        )
    print(f"{chip_bytes / 1e3:.0f} kB of raw pixels per chip; a plain copy: {bandwidth:.1f} GB/s")
    for way in ("store", "no flips", "chips"):
        if way in found:
            moved = statistics.median(found[way]) * chip_bytes / 1e9
            print(f"{way:>9}: {moved:.2f} GB/s, {moved / bandwidth:.0%} of a plain copy")


if __name__ == "__main__":
    main()
