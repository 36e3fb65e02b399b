"""A store of very many chips: how soon it opens, and what it costs each process.

Prepares chips of 8 px (their number is what counts, not their size), then measures, each in a fresh
process: opening, the first batch, and the memory that remains after a thousand random chips.

    python benchmarks/large_store.py [--chips 200000] [--store FOLDER]

Results are recorded in docs/performance.md.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from multimae_eo.catalog import make_class_map, make_modality
from multimae_eo.geo import Geometry
from multimae_eo.modality import ModalitySet
from multimae_eo.sample import Calibration, Sample
from multimae_eo.sources.base import Source
from multimae_eo.store.writer import prepare

SIDE = 8
PROBE = """
import resource, sys, time
import numpy as np, torch
import multimae_eo.loading.loader, pyarrow.parquet
from multimae_eo.loading.loader import make_loader
from multimae_eo.store.reader import ChipStore
def own():
    words = dict(l.split(":") for l in open("/proc/self/smaps_rollup").read().splitlines()[1:])
    return int(words["Private_Dirty"].split()[0]) / 1e3
before, start = own(), time.perf_counter()
store = ChipStore(sys.argv[1])
opened = time.perf_counter() - start
loader = make_loader(store, np.arange(len(store)), batch_size=64, chip=8, train=True)
batches = iter(loader)
next(batches)
first = time.perf_counter() - start
for _ in range(16):
    next(batches)
print(f"{opened:.4f} {first:.3f} {own() - before:.1f}")
"""


class ManyChips(Source):
    """Chips that follow from their index."""

    def __init__(self, count: int) -> None:
        self.name = "many"
        self.modalities = ModalitySet(
            [
                make_modality("rgb", sensor_name="sentinel2", bands=("B4", "B3", "B2")),
                make_class_map("landcover", class_map_name="esa_worldcover"),
            ]
        )
        self.keys = [f"chip-{i:07d}" for i in range(count)]
        self.split_of = ["val" if i % 10 == 0 else "train" for i in range(count)]

    def read(self, index: int, names: Sequence[str] | None = None) -> Sample:
        rgb = np.full((3, SIDE, SIDE), index % 4000 + 1, np.uint16)
        left = float(index % 1000)
        return Sample(
            key=self.keys[index],
            pixels={"rgb": rgb, "landcover": np.full((1, SIDE, SIDE), 10, np.uint8)},
            calibration={"rgb": Calibration(scale=1e-4, level="l2a")},
            geometry=Geometry(crs="EPSG:32630", bounds=(left, 0.0, left + 1, 1.0)),
            time="2021-06-01",
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--chips", type=int, default=200_000)
    parser.add_argument("--store", type=Path, default=None, help="keep the store here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = options.store or Path(name) / "store"
        start = time.perf_counter()
        prepare(ManyChips(options.chips), folder, workers=2, shard_chips=2048)
        print(f"prepared {options.chips} chips in {time.perf_counter() - start:.0f} s")
        found = []
        for _ in range(5):
            command = [sys.executable, "-c", PROBE, str(folder)]
            told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found.append([float(v) for v in told.split()])
        opened, first, memory = np.median(found, axis=0)
        print(f"opened in {opened * 1e3:.1f} ms; first batch after {first:.2f} s")
        print(f"memory of the process after a thousand random chips: +{memory:.0f} MB")


if __name__ == "__main__":
    main()
