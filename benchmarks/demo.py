"""Twenty people at once: latencies of the demo over HTTP, and that nobody sees a failure.

Run:  python benchmarks/demo.py --model quickstart/model --scene quickstart/world/scene.yaml

Every client goes on its own walk: look at a location, reconstruct it four times, fetch tiles and a
value of the map. Prints a table of percentiles; exits with 1 where any answer was no 200.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np

CLIENTS, ROUNDS = 20, 1
Request = tuple[str, float, int]


def walk(address: str, number: int, about: dict[str, Any], bounds: list[float]) -> list[Request]:
    """One client's requests: (kind, seconds, status)."""
    rng = np.random.default_rng(number)
    seen: list[Request] = []
    headers = {"x-client": f"client-{number}"}
    with httpx.Client(base_url=address, headers=headers, timeout=60) as client:

        def ask(kind: str, method: str, path: str, **more: Any) -> None:
            begun = time.perf_counter()
            answer = client.request(method, path, **more)
            seen.append((kind, time.perf_counter() - begun, answer.status_code))

        west, south, east, north = bounds
        for _ in range(ROUNDS):
            location = int(rng.integers(about["locations"]))
            ask("look", "GET", f"/api/locations/{location}")
            for seed in range(4):
                body = {
                    "location": location,
                    "inputs": about["modalities"],
                    "visible": 60,
                    "seed": seed,
                }
                ask("reconstruct", "POST", "/api/reconstruct", json=body)
            side = 2 * np.pi * 6378137 / 2**13
            half = np.pi * 6378137
            for _ in range(6):
                x, y = rng.uniform(west, east), rng.uniform(south, north)
                tile = f"{int((x + half) // side)}/{int((half - y) // side)}"
                ask("tile", "GET", f"/api/layers/s{rng.integers(3)}/tiles/13/{tile}.png")
            ask("value", "GET", f"/api/layers/s0/value?x={x}&y={y}")
    return seen


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--scene", required=True)
    options = parser.parse_args()
    begun = time.perf_counter()
    command = [sys.executable, "-m", "multimae_eo.cli", "demo", "--model", options.model]
    command += ["--scene", options.scene, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            address = server.stdout.readline().strip()
            with httpx.Client(base_url=address, timeout=60) as client:
                about = client.get("/api/about").json()
                print(f"started in {time.perf_counter() - begun:.1f} s; {os.cpu_count()} cores, "
                      f"{about['parameters'] / 1e6:.1f} M parameters")  # fmt: skip
                bounds = client.get("/api/map").json()["bounds"]
                alone = time.perf_counter()
                client.get(f"/api/locations/{about['strip'][0]['location']}")
                body = {"location": about["strip"][0]["location"], "inputs": about["modalities"],
                        "visible": 60}  # fmt: skip
                client.post("/api/reconstruct", json=body)
                print(f"first look and reconstruction: {time.perf_counter() - alone:.2f} s")
            begun = time.perf_counter()
            with concurrent.futures.ThreadPoolExecutor(CLIENTS) as pool:
                walks = pool.map(lambda n: walk(address, n, about, bounds), range(CLIENTS))
                seen = [entry for one in walks for entry in one]
        finally:
            server.terminate()
    took = time.perf_counter() - begun
    failed = [code for _, _, code in seen if code != 200]
    print(f"{CLIENTS} clients, {len(seen)} requests in {took:.1f} s, {len(failed)} failures "
          f"{sorted(set(failed)) or ''}")  # fmt: skip
    print(f"{'':12}{'requests':>9}{'p50':>9}{'p95':>9}{'p99':>9}{'max':>9}")
    for kind in dict.fromkeys(k for k, _, _ in seen):
        times = np.array([t for k, t, _ in seen if k == kind])
        cells = [*np.percentile(times, [50, 95, 99]), times.max()]
        print(f"{kind:12}{len(times):9}" + "".join(f"{1000 * c:7.0f}ms" for c in cells))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))
    sys.exit(main())
