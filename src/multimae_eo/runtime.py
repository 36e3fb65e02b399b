"""What a computation runs on: device, precision and threads, detected on the machine.

``auto`` is resolved here and nowhere else, once per process and choice, with the reason logged.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from multimae_eo.errors import ConfigError

logger = logging.getLogger(__name__)

Precision = Literal["auto", "32-true", "bf16-mixed", "16-mixed"]
"""What may be requested; ``auto`` never reaches a computation."""

_NATIVE, _EMULATED = "multiplies bfloat16 natively", "does not multiply bfloat16 natively"
_PROBE_SIDE = 192
_PROBE_ROUNDS = 3
_THREADS_SPEEDUP = 0.1
_THREADS_ROUNDS = 6
_THREADS_ROUND_SECONDS = 0.025
_PROBE_PRODUCTS = 4 << 20
_BF16_ISAS = ("DEFAULT", "ALL", "AVX512_CORE_BF16", "AVX512_CORE_FP16", "AVX10_1_512")
"""Values of ONEDNN_MAX_CPU_ISA (beside those with AMX) that leave oneDNN its bfloat16 products."""


def resolve_device(requested: str) -> str:
    """The torch device for ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.

    ``auto`` is CUDA where there is a device, then MPS, then the CPU. Raises ConfigError for a
    device that this machine does not have.
    """
    import torch

    if requested == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(0, device=requested)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"--device {requested}: cannot be used on this machine; try --device cpu"
        ) from error
    return requested


def resolve_precision(requested: str, device: str) -> str:
    """``32-true``, ``bf16-mixed`` or ``16-mixed`` for ``requested`` on a torch ``device``.

    ``auto`` is bf16-mixed where the device multiplies bfloat16 natively, else 32-true. A request
    for bf16-mixed is kept; on a CPU that emulates it, one warning names the cost.

    Raises ConfigError for an unknown precision.
    """
    if requested not in get_args(Precision):
        raise ConfigError(
            f"precision must be one of {', '.join(get_args(Precision))}, got {requested!r}"
        )
    return _resolved(requested, device.split(":", maxsplit=1)[0])


@functools.cache
def _resolved(requested: str, kind: str) -> str:
    if requested not in ("auto", "bf16-mixed"):
        return requested
    support = native_bfloat16(kind)
    if requested == "auto":
        resolved = "bf16-mixed" if support.native else "32-true"
        logger.info("precision auto: %s (%s)", resolved, support.reason)
        return resolved
    if kind == "cpu" and not support.native:
        logger.warning(
            "precision bf16-mixed: %s; a matrix product takes %.1f times as long as in float32 "
            "here. Use --precision auto or 32-true",
            support.reason,
            bfloat16_cost(),
        )
    return requested


@dataclass(frozen=True)
class Bfloat16Support:
    """Whether a device multiplies bfloat16 natively, and why one thinks so."""

    native: bool
    reason: str


def native_bfloat16(kind: str) -> Bfloat16Support:
    """Whether a device of a ``kind`` (cpu, cuda, mps) multiplies bfloat16 natively."""
    import torch

    if kind == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        name = torch.cuda.get_device_name()
        return Bfloat16Support(native, f"{name} {_NATIVE if native else _EMULATED}")
    if kind == "cpu":
        return _cpu_bfloat16(os.environ)
    return Bfloat16Support(False, f"bfloat16 on {kind} is not known to be native")


def _cpu_bfloat16(environment: Mapping[str, str]) -> Bfloat16Support:
    """What the CPU can, and what the limits on torch's and oneDNN's instruction sets leave of it.

    oneDNN accepts bfloat16 on any AVX-512 CPU and emulates it where AVX512-BF16 and AMX lack.
    """
    import torch

    capability = torch.backends.cpu.get_cpu_capability()
    try:
        accepted = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except (AttributeError, RuntimeError):
        return Bfloat16Support(False, "this build of torch has no oneDNN")
    if capability in ("DEFAULT", "AVX2") and not _is_arm():
        return Bfloat16Support(False, f"this CPU ({capability}) {_EMULATED}")
    if not accepted:
        return Bfloat16Support(False, f"oneDNN {_EMULATED} on this CPU")
    if _is_arm():
        return Bfloat16Support(True, f"this CPU {_NATIVE}")
    if not (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
        return Bfloat16Support(False, "this CPU has AVX-512 without BF16 and emulates bfloat16")
    limit = environment.get("ONEDNN_MAX_CPU_ISA") or environment.get("DNNL_MAX_CPU_ISA") or "ALL"
    if limit.upper() not in _BF16_ISAS and "AMX" not in limit.upper():
        return Bfloat16Support(False, f"ONEDNN_MAX_CPU_ISA={limit} excludes bfloat16")
    return Bfloat16Support(True, f"this CPU {_NATIVE}")


def _is_arm() -> bool:
    import platform

    return platform.machine().lower() in ("aarch64", "arm64")


def bfloat16_cost() -> float:
    """Time of a small matrix product in bfloat16 as a multiple of float32's, measured on the CPU.

    Takes less than 0.3 s also where bfloat16 is emulated.
    """
    import torch

    seconds = []
    for dtype in (torch.float32, torch.bfloat16):
        matrix = torch.ones(_PROBE_SIDE, _PROBE_SIDE, dtype=dtype)
        torch.mm(matrix, matrix)
        best = float("inf")
        for _ in range(_PROBE_ROUNDS):
            start = time.perf_counter()
            torch.mm(matrix, matrix)
            best = min(best, time.perf_counter() - start)
        seconds.append(best)
    return seconds[1] / seconds[0]


# Threads --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ThreadLimit:
    """How many threads a process may really use, and what sets the limit."""

    count: int
    reason: str


def usable_threads(
    environment: Mapping[str, str] | None = None, *, cgroups: Path = Path("/sys/fs/cgroup")
) -> ThreadLimit:
    """The least of CPU affinity, the cgroup's CPU quota and SLURM_CPUS_PER_TASK; at least 1.

    ``environment``: variables (default: the process's). ``cgroups``: where they are mounted.
    """
    environment = os.environ if environment is None else environment
    limits = [ThreadLimit(_affinity(), "CPUs of this process")]
    quota = _cgroup_quota(cgroups)
    if quota is not None:
        limits.append(ThreadLimit(max(1, int(quota + 0.5)), f"cgroup quota of {quota:g} CPUs"))
    slurm = environment.get("SLURM_CPUS_PER_TASK", "")
    if slurm.isdigit() and int(slurm):
        limits.append(ThreadLimit(int(slurm), "SLURM_CPUS_PER_TASK"))
    return min(limits, key=lambda limit: limit.count)


def limit_threads() -> int:
    """Keep torch from using more threads than ``usable_threads``; returns torch's count.

    OMP_NUM_THREADS and a count set with ``torch.set_num_threads`` win.
    """
    import torch

    count, limit = torch.get_num_threads(), usable_threads()
    default = {_affinity(), os.cpu_count()}
    if not os.environ.get("OMP_NUM_THREADS") and limit.count < count and count in default:
        torch.set_num_threads(limit.count)
    _log_threads(torch.get_num_threads(), limit.reason)
    return torch.get_num_threads()


@functools.cache
def _log_threads(count: int, reason: str) -> None:
    if os.environ.get("OMP_NUM_THREADS"):
        reason = "OMP_NUM_THREADS"
    logger.info("threads: %d (%s)", count, reason)


def fastest_threads(width: int, rows: int, precision: str = "32-true") -> int:
    """The number of threads that trains a transformer of this ``width`` fastest on this CPU now.

    Threads wait for each other at the end of every operation. Where operations are small, or
    other processes occupy the cores, fewer threads are faster. Counts from one to torch's own
    (halved repeatedly) run the feed-forward part of a block, forward and backward, alternately, for
    less than a second in all; a larger count must gain a tenth on the next smaller one.

    ``rows``: tokens in a batch. ``precision``: as resolved. OMP_NUM_THREADS is kept. Returns the
    count; sets none.
    """
    import torch

    most = torch.get_num_threads()
    if most == 1 or os.environ.get("OMP_NUM_THREADS"):
        return most
    counts = sorted({max(1, most >> n) for n in range(most.bit_length())})
    seconds = _block_seconds(counts, width, rows, precision)
    torch.set_num_threads(most)
    best = counts[0]
    for count in counts[1:]:
        if seconds[count] < seconds[best] * (1 - _THREADS_SPEEDUP):
            best = count
    speed = ", ".join(f"{n}: {seconds[counts[0]] / seconds[n]:.2f}" for n in counts)
    logger.info("threads: %d (measured speed with %s)", best, speed)
    return best


def _block_seconds(
    counts: Sequence[int], width: int, rows: int, precision: str
) -> dict[int, float]:
    """Seconds per pass with each number of threads; rounds alternate between the counts."""
    import torch

    # One pass of a large model need not be as long as its steps.
    rows = min(rows, max(64, _PROBE_PRODUCTS // (width * width)))
    with torch.random.fork_rng(devices=[]):
        block = torch.nn.Sequential(
            torch.nn.LayerNorm(width), torch.nn.Linear(width, 4 * width), torch.nn.GELU(),
            torch.nn.Linear(4 * width, width),
        )  # fmt: skip
    tokens = torch.full((rows, width), 0.5)
    passes, seconds = dict.fromkeys(counts, 0), dict.fromkeys(counts, 0.0)
    for number in range(_THREADS_ROUNDS + 1):
        for count in counts:
            torch.set_num_threads(count)
            start = time.perf_counter()
            elapsed, done = 0.0, 0
            while elapsed < _THREADS_ROUND_SECONDS:
                with (
                    torch.enable_grad(),
                    torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"),
                ):
                    block(tokens).sum().backward()
                elapsed, done = time.perf_counter() - start, done + 1
            if number:  # the first round creates threads and loads kernels
                passes[count] += done
                seconds[count] += elapsed
    return {count: seconds[count] / passes[count] for count in counts}


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cgroup_quota(root: Path) -> float | None:
    """CPUs that the cgroup allows (version 2, then 1); None without a limit."""
    quota = period = ""
    try:
        quota, period = (root / "cpu.max").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        folder = root / "cpu"
        try:
            quota = (folder / "cpu.cfs_quota_us").read_text(encoding="ascii").strip()
            period = (folder / "cpu.cfs_period_us").read_text(encoding="ascii").strip()
        except OSError:
            return None
    if not (quota.isdigit() and period.isdigit() and int(period)):
        return None
    return int(quota) / int(period)


def release_free_memory() -> None:
    """Give freed memory back to the system: glibc keeps it, in a pool for each thread that had it.

    Does nothing with another C library.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
