"""Every benchmark runs, in small, and its figures can be drawn."""

from __future__ import annotations

import os
import subprocess
import sys

import contended
import curves
import end_to_end
import measure
import numpy as np
import pytest
import report
import scaling
import step
import torch

from tests.support.paths import ROOT


@pytest.fixture(scope="module")
def records():
    tiny = ["--encoder=nano", "--batch=2"]
    return {
        "step_cpu": step.run(
            step.arguments([*tiny, "--rounds=1", "--ceiling=64", "--precision=fp32"])
        ),
        "scaling_cpu": scaling.run(
            scaling.arguments([*tiny, "--rounds=1", "--points=3", "--axes=modalities"])
        ),
        "curves": curves.run(curves.arguments(["--steps=6", "--chips=24", "--batch=4"])),
        "end_to_end_cpu": end_to_end.run(
            end_to_end.arguments([*tiny, "--steps=2", "--chips=8", "--workers=0"])
        ),
    }


def test_every_row_of_the_step_is_measured(records):
    rows = records["step_cpu"]["rows"]
    assert set(rows) == {f"{n}, fp32" for n in ("naive", "ours", *step.CHANGES)}
    losses = [r["loss"] for r in rows.values()]
    assert max(losses) / min(losses) - 1 < 1e-5, "the same function"
    assert all(r["samples_per_s"] > 0 and r["memory_bytes"] > 0 for r in rows.values())
    kept = {n: r["memory_bytes"] for n, r in rows.items()}
    assert kept["activations recomputed, fp32"] < kept["ours, fp32"]


def test_memory_grows_linearly_with_modalities(records):
    """What the backward pass keeps is counted, not timed: the line is exact but for the tasks."""
    assert records["scaling_cpu"]["lines"]["memory_bytes"]["r2"] > 0.999


def test_the_curves_of_both_steps_coincide(records):
    record = records["curves"]
    assert record["largest_relative_difference"] < 1e-4
    assert record["largest_relative_difference"] < record["of_other_masks"] / 10


def test_end_to_end_counts_what_it_waits(records):
    for row in records["end_to_end_cpu"]["rows"].values():
        assert 0 < row["waiting_share"] < 1
        assert row["samples_per_s"] > 0


def test_results_are_drawn(records, tmp_path):
    for name, record in records.items():
        measure.write_results(name, record, tmp_path / "results")
    written = report.draw(tmp_path / "results", tmp_path / "img")
    assert {p.name for p in written} == {"step_cpu.png", "scaling_cpu.png", "curves.png"}
    assert "| naive, fp32 |" in report.step_table(records["step_cpu"])


def test_a_line_is_found():
    points = [{"n": n, "t": 3 * n + 1.0} for n in (1, 2, 5)]
    found = scaling.line(points, "n", "t")
    assert found["slope"] == pytest.approx(3)
    assert found["r2"] == pytest.approx(1)


def test_what_backward_keeps_is_counted_once():
    x = torch.zeros(1000, requires_grad=True)
    assert measure.memory_bytes(lambda: (x * x).sum().backward(), "cpu") == 4000
    assert np.isfinite(measure.ceiling("cpu", torch.float32, side=32))


@pytest.mark.slow
def test_the_accelerators_script_runs_in_small(tmp_path):
    done = subprocess.run(
        ["bash", str(ROOT / "benchmarks/gpu.sh"), str(tmp_path), "--smoke"],
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    for name in ("step_cpu.json", "end_to_end_cpu.json", "scaling_cpu.json", "trace.json"):
        assert (tmp_path / name).is_file()


@pytest.mark.release
def test_training_beside_a_busy_process_is_a_share_of_the_idle_rate(tmp_path):
    options = ["--rounds=1", "--epochs=1", "--chips=140", "--busy=1", "--policies=package"]
    record = contended.run(contended.arguments([*options, f"--out={tmp_path}"]))
    rows = record["rows"]
    assert set(rows) == {f"package, {c.name}" for c in contended.conditions([1])}
    assert rows["package, idle"]["share_of_idle"] == 1
    assert all(row["samples_per_s"] > 0 for row in rows.values())


def test_busy_processes_end_with_the_measurement():
    with contended.busy_processes(2) as running:
        assert all(process.poll() is None for process in running)
    assert all(process.poll() is not None for process in running)
