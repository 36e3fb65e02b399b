"""Device, precision and threads: what is resolved on machines with given abilities."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from multimae_eo import runtime
from multimae_eo.errors import ConfigError
from multimae_eo.runtime import (
    Bfloat16Support,
    bfloat16_cost,
    fastest_threads,
    limit_threads,
    resolve_device,
    resolve_precision,
    usable_threads,
)

native_bfloat16 = runtime.native_bfloat16


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """Decisions are kept per process; each test makes its own, by the real probe."""
    monkeypatch.setattr(runtime, "native_bfloat16", native_bfloat16)
    runtime._resolved.cache_clear()
    runtime._log_threads.cache_clear()
    yield
    runtime._resolved.cache_clear()
    runtime._log_threads.cache_clear()


class Machine:
    """Sets what torch and oneDNN report of the CPU."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.patch = patch
        for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
            patch.delenv(name, raising=False)

    def __call__(
        self, capability: str, *, onednn: bool, bf16: bool = False, amx: bool = False,
        arm: bool = False,
    ) -> None:  # fmt: skip
        self.patch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
        self.patch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: onednn, False)
        self.patch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16)
        self.patch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
        self.patch.setattr(runtime, "_is_arm", lambda: arm)


@pytest.fixture
def machine(monkeypatch):
    return Machine(monkeypatch)


@pytest.mark.parametrize(
    ("abilities", "native"),
    [
        ({"capability": "AVX2", "onednn": False}, False),
        ({"capability": "AVX512", "onednn": True}, False),
        ({"capability": "AVX512", "onednn": True, "bf16": True}, True),
        ({"capability": "AVX512", "onednn": True, "amx": True}, True),
        ({"capability": "AVX512", "onednn": False, "bf16": True, "amx": True}, False),
        # ATEN_CPU_CAPABILITY=avx2 on a CPU that could do more.
        ({"capability": "AVX2", "onednn": True, "bf16": True, "amx": True}, False),
        ({"capability": "DEFAULT", "onednn": True, "arm": True}, True),
        ({"capability": "DEFAULT", "onednn": False, "arm": True}, False),
    ],
)
def test_auto_is_bfloat16_only_where_the_cpu_multiplies_it(machine, abilities, native):
    machine(**abilities)
    assert native_bfloat16("cpu").native is native
    assert resolve_precision("auto", "cpu") == ("bf16-mixed" if native else "32-true")


@pytest.mark.parametrize(
    ("limit", "native"),
    [
        ("AVX2", False),
        ("avx512_core", False),
        ("AVX512_CORE_VNNI", False),
        ("AVX512_CORE_BF16", True),
        ("AVX512_CORE_AMX", True),
        ("AVX10_1_512_AMX", True),
        ("DEFAULT", True),
    ],
)
@pytest.mark.parametrize("variable", ["ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"])
def test_a_limit_on_onednn_is_honoured(machine, monkeypatch, variable, limit, native):
    machine("AVX512", onednn=True, bf16=True, amx=True)
    monkeypatch.setenv(variable, limit)
    assert native_bfloat16("cpu").native is native


def test_a_torch_without_onednn_has_no_native_bfloat16(machine, monkeypatch):
    machine("AVX512", onednn=True, bf16=True)

    def missing() -> bool:
        raise AttributeError("_is_mkldnn_bf16_supported")

    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", missing, raising=False)
    assert native_bfloat16("cpu") == Bfloat16Support(False, "this build of torch has no oneDNN")


@pytest.mark.parametrize("native", [True, False])
def test_cuda_is_asked_without_its_emulation(monkeypatch, native):
    asked = []

    def supported(*, including_emulation: bool) -> bool:
        asked.append(including_emulation)
        return native

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "GPU")
    assert resolve_precision("auto", "cuda:1") == ("bf16-mixed" if native else "32-true")
    assert asked == [False]


def test_mps_computes_in_float32():
    assert resolve_precision("auto", "mps") == "32-true"


def test_auto_gives_its_reason_once(machine, caplog):
    machine("AVX2", onednn=False)
    with caplog.at_level(logging.INFO, "multimae_eo"):
        for _ in range(3):
            resolve_precision("auto", "cpu")
    assert [r.getMessage() for r in caplog.records] == [
        "precision auto: 32-true (this CPU (AVX2) does not multiply bfloat16 natively)"
    ]


def test_emulated_bfloat16_is_one_warning_with_its_cost(machine, monkeypatch, caplog):
    machine("AVX512", onednn=True)
    monkeypatch.setattr(runtime, "bfloat16_cost", lambda: 24.66)
    for _ in range(3):
        assert resolve_precision("bf16-mixed", "cpu") == "bf16-mixed"
    assert len(caplog.records) == 1
    assert caplog.records[0].levelno == logging.WARNING
    assert "24.7 times as long as in float32" in caplog.text
    assert "--precision auto" in caplog.text


def test_native_bfloat16_and_explicit_float32_are_not_commented(machine, caplog):
    machine("AVX512", onednn=True, amx=True)
    assert resolve_precision("bf16-mixed", "cpu") == "bf16-mixed"
    assert resolve_precision("32-true", "cpu") == "32-true"
    assert resolve_precision("16-mixed", "cpu") == "16-mixed"
    assert not caplog.records


def test_the_cost_is_a_ratio():
    assert bfloat16_cost() > 0


def test_unknown_precision_and_device_are_refused():
    with pytest.raises(ConfigError, match="precision must be one of auto, 32-true"):
        resolve_precision("64", "cpu")
    with pytest.raises(ConfigError, match="--device vulcan"):
        resolve_device("vulcan")


def test_auto_takes_the_first_device_there_is(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert resolve_device("auto") == "cpu"
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert resolve_device("auto") == "mps"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device("auto") == "cuda"
    assert resolve_device("cpu") == "cpu"


# Threads ----------------------------------------------------------------------------------------


def cgroup(root: Path, quota: str, version: int) -> Path:
    """A cgroup file system with a CPU quota ("max" or microseconds of each 100000)."""
    if version == 2:
        root.joinpath("cpu.max").write_text(f"{quota} 100000\n")
        return root
    folder = root / "cpu"
    folder.mkdir()
    folder.joinpath("cpu.cfs_quota_us").write_text("-1" if quota == "max" else quota)
    folder.joinpath("cpu.cfs_period_us").write_text("100000\n")
    return root


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    ("quota", "count"), [("max", 16), ("50000", 1), ("100000", 1), ("300000", 3), ("9000000", 16)]
)
def test_a_cgroup_quota_limits_threads(tmp_path, monkeypatch, version, quota, count):
    monkeypatch.setattr(runtime, "_affinity", lambda: 16)
    assert usable_threads({}, cgroups=cgroup(tmp_path, quota, version)).count == count


def test_slurm_and_affinity_limit_threads(tmp_path, monkeypatch):
    monkeypatch.setattr(runtime, "_affinity", lambda: 8)
    assert usable_threads({}, cgroups=tmp_path).count == 8
    limit = usable_threads({"SLURM_CPUS_PER_TASK": "3"}, cgroups=tmp_path)
    assert (limit.count, limit.reason) == (3, "SLURM_CPUS_PER_TASK")
    assert usable_threads({"SLURM_CPUS_PER_TASK": "64"}, cgroups=tmp_path).count == 8
    assert usable_threads({"SLURM_CPUS_PER_TASK": "all"}, cgroups=tmp_path).count == 8


class Torch:
    """Stands for torch's thread count."""

    def __init__(self, patch: pytest.MonkeyPatch, count: int) -> None:
        self.count = count
        patch.setattr(torch, "get_num_threads", lambda: self.count)
        patch.setattr(torch, "set_num_threads", self.set)

    def set(self, count: int) -> None:
        self.count = count


def test_torch_is_kept_to_what_the_process_may_use(monkeypatch, caplog):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "2")
    monkeypatch.setattr(runtime, "_affinity", lambda: 16)
    threads = Torch(monkeypatch, 16)
    with caplog.at_level(logging.INFO, "multimae_eo"):
        assert limit_threads() == limit_threads() == 2
    assert threads.count == 2
    assert caplog.messages == ["threads: 2 (SLURM_CPUS_PER_TASK)"]


@pytest.mark.parametrize(("variable", "count"), [("16", 16), ("", 12)])
def test_the_users_own_thread_count_wins(monkeypatch, variable, count):
    """OMP_NUM_THREADS, or a call of torch.set_num_threads."""
    monkeypatch.setenv("OMP_NUM_THREADS", variable)
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "2")
    monkeypatch.setattr(runtime, "_affinity", lambda: 16)
    Torch(monkeypatch, count)
    assert limit_threads() == count


@pytest.mark.parametrize(
    ("seconds", "count"),
    [
        ({1: 8.0, 2: 4.5, 4: 3.0, 8: 2.9}, 4),  # the last doubling gains too little
        ({1: 1.0, 2: 1.1, 4: 1.3, 8: 2.0}, 1),  # small operations, or a busy machine
        ({1: 1.0, 2: 1.05, 4: 0.6, 8: 0.9}, 4),
    ],
)
def test_the_fewest_threads_that_are_fast_are_chosen(monkeypatch, caplog, seconds, count):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    threads = Torch(monkeypatch, 8)
    monkeypatch.setattr(
        runtime, "_block_seconds", lambda counts, *_: {n: seconds[n] for n in counts}
    )
    with caplog.at_level(logging.INFO, "multimae_eo"):
        assert fastest_threads(96, 896) == count
    assert threads.count == 8
    assert f"threads: {count} (measured speed with 1: 1.00" in caplog.text


def test_the_measurement_takes_every_count_and_draws_no_random_number(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(runtime, "_THREADS_ROUND_SECONDS", 0.001)
    before, count = torch.random.get_rng_state(), torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        seconds = runtime._block_seconds([1, 3], 32, 64, "bf16-mixed")
        assert fastest_threads(32, 64) in (1, 3)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(count)
    assert seconds.keys() == {1, 3}
    assert all(s > 0 for s in seconds.values())
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_users_own_count_is_not_measured(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    Torch(monkeypatch, 4)
    monkeypatch.setattr(runtime, "_block_seconds", None)
    assert fastest_threads(96, 896) == 4


@pytest.mark.parametrize(
    ("given", "policy", "turns"),
    [
        ({}, "PASSIVE", "10000"),
        ({"GOMP_SPINCOUNT": "7"}, "PASSIVE", "7"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE", "None"),
    ],
)
def test_the_command_line_limits_spinning_before_torch_is_loaded(given, policy, turns):
    code = (
        "import os, sys, multimae_eo.cli; print('torch' in sys.modules, "
        "os.environ['OMP_WAIT_POLICY'], os.environ.get('GOMP_SPINCOUNT'))"
    )
    unset = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    environment = {k: v for k, v in os.environ.items() if k not in unset}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**environment, **given}, capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split() == ["False", policy, turns]
