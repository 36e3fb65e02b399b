"""Every benchmark runs, in small, and its figures can be drawn."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import contended
import country
import curves
import end_to_end
import measure
import numpy as np
import profile_step
import pytest
import report
import scaling
import step
import torch

from tests.support.paths import ROOT

TINY = ("--encoder=nano", "--batch=2")
END_TO_END = (*TINY, "--steps=2", "--chips=8", "--workers=0")


@pytest.fixture(scope="module")
def records():
    return {
        "step_cpu": step.run(
            step.arguments([*TINY, "--rounds=1", "--ceiling=64", "--precision=fp32"])
        ),
        "scaling_cpu": scaling.run(
            scaling.arguments([*TINY, "--rounds=1", "--points=3", "--axes=modalities"])
        ),
        "curves": curves.run(curves.arguments(["--steps=6", "--chips=24", "--batch=4"])),
        "end_to_end_cpu": end_to_end.run(end_to_end.arguments([*END_TO_END, "--precision=fp32"])),
    }


@pytest.mark.slow
def test_every_row_of_the_step_is_measured(records):
    rows = records["step_cpu"]["rows"]
    assert set(rows) == {f"{n}, fp32" for n in ("naive", "ours", *step.CHANGES)}
    losses = [r["loss"] for r in rows.values()]
    assert max(losses) / min(losses) - 1 < 1e-5, "the same function"
    assert all(r["samples_per_s"] > 0 and r["memory_bytes"] > 0 for r in rows.values())
    kept = {n: r["memory_bytes"] for n, r in rows.items()}
    assert kept["activations recomputed, fp32"] < kept["ours, fp32"]


@pytest.mark.slow
def test_memory_grows_linearly_with_modalities(records):
    """What the backward pass keeps is counted, not timed: the line is exact but for the tasks."""
    assert records["scaling_cpu"]["lines"]["memory_bytes"]["r2"] > 0.999


@pytest.mark.slow
def test_the_curves_of_both_steps_coincide(records):
    record = records["curves"]
    assert record["largest_relative_difference"] < 1e-4
    assert record["largest_relative_difference"] < record["of_other_masks"] / 10


def check_waiting(rows):
    for row in rows.values():
        assert 0 < row["waiting_share"] < 1
        assert row["samples_per_s"] > 0


@pytest.mark.slow
def test_end_to_end_counts_what_it_waits(records):
    rows = records["end_to_end_cpu"]["rows"]
    assert set(rows) == {"naive, fp32", "ours, fp32"}
    check_waiting(rows)


@pytest.mark.release
def test_end_to_end_in_mixed_precision():
    """Apart: a processor without bfloat16 arithmetic takes several times as long for it."""
    rows = end_to_end.run(end_to_end.arguments([*END_TO_END, "--precision=bf16"]))["rows"]
    assert set(rows) == {"naive, bf16", "ours, bf16"}
    check_waiting(rows)


@pytest.mark.slow
@pytest.mark.parametrize("graphs", [False, True])
def test_a_step_and_the_encoder_are_profiled(tmp_path, graphs):
    options = [*TINY, "--precision=fp32", "--steps=1", "--rounds=2", f"--out={tmp_path}"]
    text = profile_step.run(profile_step.arguments([*options, *["--graphs"] * graphs]))
    assert re.search(r"eager: [\d.]+ ms" if graphs else r"1 steps took [\d.]+ s", text)
    assert (tmp_path / "trace.json").is_file() is not graphs


@pytest.mark.slow
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


def accelerator_script(out, *options, python=sys.executable):
    done = subprocess.run(
        ["bash", str(ROOT / "benchmarks/gpu.sh"), str(out), *options],
        env={**os.environ, "PYTHON": str(python)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.parametrize("options", [(), ("--smoke",)], ids=["whole", "smoke"])
def test_the_accelerators_script_gives_options_that_exist(tmp_path, options):
    """Its Python is one that notes its arguments; what they run is tested above."""
    python, calls = tmp_path / "python", tmp_path / "calls"
    python.write_text(f'#!/bin/sh\necho "$@" >> {calls}\n')
    python.chmod(0o755)
    accelerator_script(tmp_path / "out", *options, python=python)
    programs = {m.__file__.rpartition("/")[2]: m for m in (step, end_to_end, profile_step, scaling)}
    called = [line.split() for line in calls.read_text().splitlines()]
    assert {c[0] for c in called} == set(programs)
    for program, *given in called:
        found = programs[program].arguments(given)
        assert found.device == ("cpu" if options else "cuda")
        assert found.out == tmp_path / "out"


@pytest.mark.slow
@pytest.mark.release
def test_the_accelerators_script_runs_in_small(tmp_path):
    accelerator_script(tmp_path, "--smoke")
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


PARTS = country.Parts(
    read_s=0.1, model_s=1.0, block_s=1.2, write_s=0.05, variation=0.05, open_s=1.0, task_s=0.001,
    input_mb=26.0, output_mb=0.3,
)  # fmt: skip


def test_a_country_costs_the_work_of_its_scenes():
    """One worker does all of it; more share it, and lose a little."""
    one, ten, hundred = (country.simulate(PARTS, n) for n in (1, 10, 100))
    megapixels = 100 * country.TILE_PX**2 / 1e6
    work = megapixels * (PARTS.block_s + PARTS.write_s) / 3600
    assert one.cpu_hours == pytest.approx(work, rel=0.02)
    assert one.hours == pytest.approx(one.cpu_hours, rel=0.01)
    assert one.output_gb == pytest.approx(megapixels * 0.3 / 1000)
    assert 0.1 * one.hours < ten.hours < 0.12 * one.hours
    assert 0.01 * one.hours < hundred.hours < 0.02 * one.hours
    assert hundred.busy < ten.busy <= one.busy <= 1
    assert hundred.cpu_hours > one.cpu_hours, "one worker in twenty takes twice as long"
    assert hundred.read_mb_per_s * hundred.hours == pytest.approx(one.read_mb_per_s * one.hours)


def test_a_scheduler_that_is_slow_limits_a_country():
    from dataclasses import replace

    slow = country.simulate(replace(PARTS, task_s=10.0), 100)
    tasks = 100 * (len(country.blocks_of_tile()) + 1)
    assert slow.hours * 3600 >= tasks * 10.0
    assert slow.busy < 0.5
    client = country.simulate(replace(PARTS, open_s=600.0), 100)
    assert client.hours * 3600 >= 100 * 600.0


@pytest.mark.slow
def test_the_parts_of_a_country_are_measured(tmp_path):
    pytest.importorskip("distributed")
    options = ["--encoders=nano", "--size=300", "--seconds=0.1", "--workers=1,4"]
    record = country.run(country.arguments([*options, f"--out={tmp_path}"]))
    parts = record["models"]["nano"]["parts"]
    assert all(value > 0 for name, value in parts.items() if name != "variation")
    assert parts["block_s"] > parts["model_s"] / 2
    lines = country.table(record).splitlines()
    assert len(lines) == 4
    assert lines[2].startswith("| nano | 1 |")
