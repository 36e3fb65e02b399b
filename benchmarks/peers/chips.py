"""The loader beside a careful per-sample Dataset, on chips of MMEarth64's layout."""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import loading
import measure
import torch

from peers.ratios import paired

NAMES = {
    "store": "multimae-eo, chip store",
    "hdf5": "multimae-eo, the HDF5 file",
    "plain": "careful Dataset and DataLoader, the HDF5 file",
}
"""Ways of ``loading.py``, and what they are called here."""


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure; the record of the loader. One thread, as for a loader beside a training process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            measure.say(f"loader: {options.chips} chips are written")
            data = loading.LoadingData(Path(folder), chips=options.chips)
            ways = {name: data.ways()[way] for way, name in NAMES.items()}
            rates = loading.alternating_rates(ways, options.loader_rounds, options.seconds)
    finally:
        torch.set_num_threads(threads)
    per_sample = {name: [1 / r for r in found] for name, found in rates.items()}
    base = per_sample[NAMES["store"]]
    return {
        "chips": options.chips,
        "batch": loading.BATCH,
        "rounds": options.loader_rounds,
        "threads": 1,
        "rows": {
            name: {"samples_per_s": statistics.median(rates[name])} | paired(taken, base)
            for name, taken in per_sample.items()
        },
    }
