"""The peak learning rate of a fine-tuning run: the recipe's, or by a rule that needs no grid.

Adam's steps are as long as the rate, whatever the gradient: with the batch they may grow with its
square root (Malladi et al. 2022), with the width of a layer they have to shrink (Yang et al. 2021).
docs/log.md has the runs that the constants come from.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml
from lightning.pytorch.utilities import rank_zero_only

from multimae_eo.files import write_file
from multimae_eo.train.checkpoints import LAST
from multimae_eo.train.resumed import recorded

REFERENCE_RATE = 1e-3
"""Peak rate of the head for REFERENCE_BATCH chips a step and an encoder REFERENCE_WIDTH wide."""
REFERENCE_BATCH = 32
REFERENCE_WIDTH = 128


@dataclass(frozen=True, kw_only=True)
class PeakRate:
    """A peak learning rate, and the rule that it comes from, in words."""

    value: float
    rule: str


def peak_rate(lr: float | Literal["auto"], *, samples: int, width: int) -> PeakRate:
    """The peak rate of the head for ``samples`` per optimiser step and an encoder ``width`` wide.

    ``lr``: per 256 samples, scaled linearly; auto: by the rule.
    """
    if lr != "auto":
        return PeakRate(
            value=lr * samples / 256, rule=f"optim.lr {lr:g} x {samples} chips per step / 256"
        )
    scale = (samples / REFERENCE_BATCH) ** 0.5 * (REFERENCE_WIDTH / width) ** 0.5
    return PeakRate(
        value=REFERENCE_RATE * scale,
        rule=f"optim.lr auto: {REFERENCE_RATE:g} x sqrt({samples} chips per step / "
        f"{REFERENCE_BATCH}) x sqrt({REFERENCE_WIDTH} / width {width})",
    )


def recorded_rate(out: Path, lr: float | Literal["auto"], width: int, samples: int) -> float:
    """The peak rate that the run in ``out`` began with; where it begins, ``peak_rate``, recorded.

    So a run that has a checkpoint goes on with its rate under a version of this package with
    another rule.
    """
    record = recorded(out)
    assert isinstance(record, dict), "the run is claimed"
    entry = record.get("learning_rate")
    begun = (out / "checkpoints" / LAST).exists()
    if not (begun and isinstance(entry, dict) and isinstance(entry.get("peak"), float)):
        rate = peak_rate(lr, samples=samples, width=width)
        entry = {"peak": float(rate.value), "rule": rate.rule}
        record["learning_rate"] = entry
        write_file(out / "recipe.yaml", yaml.safe_dump(record, sort_keys=False).encode())
    _report(float(entry["peak"]), str(entry.get("rule", "")))
    return float(entry["peak"])


@rank_zero_only
def _report(peak: float, rule: str) -> None:
    sys.stderr.write(f"learning rate: peak {peak:.3g} ({rule})\n")
    sys.stderr.flush()
