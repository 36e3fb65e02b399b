"""This package beside TerraTorch, TorchGeo, timm and a careful DataLoader, in one run.

Three parts, each with ratios of times that were measured in alternating rounds:

- ``mapping``: a synthetic GeoTIFF mapped by one and the same ViT through ``multimae-eo predict``,
  TerraTorch's tiled inference and TorchGeo's grid sampler: seconds, memory, seams;
- ``step``: the training step beside a ViT-MAE of timm's blocks of equal FLOPs, float32;
- ``loader``: the loader beside a careful per-sample Dataset with torch's DataLoader.

    make peers                                       # in the environment of make plugins
    PYTHONPATH=src:benchmarks python -m peers [--size 1408] [--rounds 3] [--parts mapping,step]
    PYTHONPATH=src:benchmarks python -m peers --quick  # everything, in small

Packages that are not installed are left out, and named. Results go to
benchmarks/results/peers_cpu.json; ``--page docs/performance.md`` puts the tables there.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from pathlib import Path
from typing import Any

import measure

from peers import chips, mae_step, mapping
from peers.ratios import ratio_text, table

BEGIN, END = "<!-- peers -->", "<!-- end of peers -->"
"""Comments around the tables on a page."""
PARTS = {"mapping": mapping.run, "step": mae_step.run, "loader": chips.run}
QUICK = {
    "size": 256, "encoder": "nano", "chip": 32, "rounds": 1, "fit_steps": 4,
    "step_encoder": "nano", "step_batch": 2, "step_rounds": 1, "chips": 600, "loader_rounds": 1,
    "seconds": 0.1,
}  # fmt: skip
"""Options of a run of seconds, whose figures mean nothing."""


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--quick", action="store_true", help="everything in small: a test")
    parser.add_argument("--require", default="", help="packages that must not be missing")
    parser.add_argument("--threads", type=int, default=mapping.cores())
    parser.add_argument("--out", type=Path, default=measure.RESULTS)
    parser.add_argument("--page", type=Path, help="the page whose tables are replaced")
    mapped = parser.add_argument_group("mapping")
    mapped.add_argument("--size", type=int, default=1408, help="side of the scene in pixels")
    mapped.add_argument("--encoder", default="tiny")
    mapped.add_argument("--chip", type=int, default=64)
    mapped.add_argument("--patch", type=int, default=8)
    mapped.add_argument("--batch", type=int, default=32)
    mapped.add_argument("--rounds", type=int, default=3)
    mapped.add_argument("--fit-steps", type=int, default=60)
    stepped = parser.add_argument_group("step")
    stepped.add_argument("--step-encoder", default="base")
    stepped.add_argument("--step-batch", type=int, default=16)
    stepped.add_argument("--step-rounds", type=int, default=4)
    loaded = parser.add_argument_group("loader")
    loaded.add_argument("--chips", type=int, default=4000)
    loaded.add_argument("--loader-rounds", type=int, default=5)
    loaded.add_argument("--seconds", type=float, default=1.0)
    options = parser.parse_args(given)
    if options.quick:
        vars(options).update(QUICK)
    unknown = set(options.parts.split(",")) - set(PARTS)
    if unknown:
        parser.error(f"--parts: {', '.join(unknown)}; valid: {', '.join(PARTS)}")
    return options


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure the parts; the record that is written."""
    record: dict[str, Any] = {"machine": measure.machine("cpu")}
    start = time.perf_counter()
    for part in options.parts.split(","):
        record[part] = PARTS[part](options)
        measure.say(f"{part}: done after {time.perf_counter() - start:.0f} s")
    record["seconds"] = round(time.perf_counter() - start)
    record["missing"] = sorted(missing(record))
    lacking = set(filter(None, options.require.split(","))) & set(record["missing"])
    if lacking:
        raise SystemExit(f"not installed: {', '.join(sorted(lacking))}; run `make plugins`")
    return record


def missing(record: dict[str, Any]) -> list[str]:
    """Peers that were left out because they are not installed."""
    lacking = [n for n, v in record.get("mapping", {}).get("versions", {}).items() if not v]
    return [*lacking, *(["timm"] if "step" in record and not record["step"]["timm"] else [])]


def report(record: dict[str, Any]) -> str:
    """The record as Markdown tables."""
    parts = []
    if "mapping" in record:
        parts.append(mapping_table(record["mapping"]))
    if "step" in record:
        parts.append(step_table(record["step"]))
    if "loader" in record:
        parts.append(loader_table(record["loader"]))
    if record["missing"]:
        parts.append(f"Not installed: {', '.join(record['missing'])}.")
    return "\n\n".join(parts)


def mapping_table(record: dict[str, Any]) -> str:
    header = (
        "overlap", "package", "s", "× the time of multimae-eo", "CPU s", "× CPU time",
        "of the model's rate", "memory, MB", "error near edges", "elsewhere", "jump across edges",
    )  # fmt: skip
    rows = []
    for overlap, packages in record["rows"].items():
        for name, row in packages.items():
            version = record["versions"].get(name, "")
            cells = [
                overlap,
                f"{name} {version}".strip(),
                f"{row['median_s']:.1f}",
                ratio_text(row),
                f"{row['cpu_s']:.1f}",
                f"{row['cpu_ratio']:.2f}",
                f"{row['share_of_model_rate']:.0%}",
            ]
            if "jump_ratio" in row:
                cells += [
                    f"{row['peak_bytes'] / 1e6:.0f}",
                    f"{row['error_near_edges']:.4f}",
                    f"{row['error_elsewhere']:.4f}",
                    f"{row['jump_ratio']:.2f}",
                ]
            rows.append([*cells, *[""] * (len(header) - len(cells))])
    return table(header, rows)


def step_table(record: dict[str, Any]) -> str:
    header = ("step", "samples/s", "GFLOP per sample", "GFLOP/s", "× the time of multimae-eo")
    rows = [
        [
            name,
            f"{row['samples_per_s']:.2f}",
            f"{row['flops_per_sample'] / 1e9:.2f}",
            f"{row['flops_per_s'] / 1e9:.0f}",
            ratio_text(row),
        ]
        for name, row in record["rows"].items()
    ]
    return table(header, rows)


def loader_table(record: dict[str, Any]) -> str:
    header = ("loader", "samples/s", "× the time of multimae-eo")
    rows = [
        [name, f"{row['samples_per_s']:,.0f}", ratio_text(row)]
        for name, row in record["rows"].items()
    ]
    return table(header, rows)


def conditions(record: dict[str, Any]) -> str:
    """The machine and its load, in a sentence."""
    machine = record["machine"]
    busy = machine["load_before"] > 0.5 * machine["cores"]
    load = (
        f"beside other processes (load {machine['load_before']:.0f})" if busy else "otherwise idle"
    )
    return (
        f"{machine['cores']} cores ({machine['device']}), {machine['threads']} threads, {load}; "
        f"torch {machine['torch'].split('+')[0]}, Python {machine['python']}."
    )


def write_page(page: Path, record: dict[str, Any]) -> None:
    """Replace the tables on a page, between two comments, with those of a record."""
    text = page.read_text(encoding="utf-8")
    tables = f"{BEGIN}\n{conditions(record)}\n\n{report(record)}\n{END}"
    changed, count = re.subn(f"{BEGIN}.*?{END}", lambda _: tables, text, flags=re.DOTALL)
    if count != 1:
        raise SystemExit(f"{page}: expected one pair of {BEGIN} and {END}, got {count}")
    page.write_text(changed, encoding="utf-8")


def main() -> None:
    options = arguments()
    record = run(options)
    path = measure.write_results("peers_cpu", record, options.out)
    if options.page:
        write_page(options.page, record)
    print(json.dumps(record["machine"]))
    print(report(record))
    print(f"\n{record['seconds']} s; {path}")


if __name__ == "__main__":
    main()
