"""Takes the pictures of docs/demo.md: every panel, light and dark, 1920 px and 360 px wide.

    multimae-eo quickstart --out quickstart
    python docs/demo/pictures.py quickstart

Needs Chromium on the path.
"""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
SIZES = ((1920, 1080), (360, 740))
LONGEST = 1600  # of a phone's page; the rest repeats
SLOW = 120_000
# Locations of the quickstart's scene, as shares of its width and height.
WATER = ((0.66, 0.07), (0.06, 0.56), (0.94, 0.54))
LAND = ((0.47, 0.48), (0.25, 0.24), (0.84, 0.13), (0.2, 0.91))


def main() -> None:
    """Start the demo and take all pictures."""
    quickstart = Path(sys.argv[1])
    server = subprocess.Popen(
        [
            *(sys.executable, "-m", "multimae_eo.cli", "demo", "--port", "0"),
            *("--model", str(quickstart / "model"), "--runs", str(quickstart / "run")),
            *("--scene", str(quickstart / "world/scene.yaml")),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        address = _address(server)
        with sync_playwright() as tools:
            browser = tools.chromium.launch(
                executable_path=shutil.which("chromium") or shutil.which("chromium-browser"),
                args=FLAGS,
            )
            for width, height in SIZES:
                for scheme in ("light", "dark"):
                    view = browser.new_context(
                        viewport={"width": width, "height": height}, color_scheme=scheme
                    )
                    _panels(view.new_page(), address, f"{width}-{scheme}", whole=width == 360)
                    view.close()
            browser.close()
    finally:
        server.terminate()


def _address(server: subprocess.Popen[str]) -> str:
    assert server.stdout is not None
    for line in server.stdout:
        found = re.search(r"http://\S+", line)
        if found:
            return found.group()
    raise SystemExit("the demo did not start")


def _panels(page: Any, address: str, name: str, *, whole: bool) -> None:
    page.goto(address)
    page.wait_for_selector("#took[data-ms]", timeout=SLOW)
    box = page.locator(".modality").first.locator(".frame").first.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.4, box["y"] + box["height"] * 0.6)
    page.wait_for_timeout(600)
    _save(page, f"reconstruct-{name}", whole)

    page.click("#tab-map")
    page.wait_for_selector("#overlay-tools:not([hidden])", timeout=SLOW)
    swipe = "(e) => {e.value = 55; e.dispatchEvent(new Event('input'))}"
    page.locator("#swipe").evaluate(swipe)
    page.click("#area-view")
    page.wait_for_timeout(4000)
    _save(page, f"map-{name}", whole)

    page.click("#tab-search")
    page.wait_for_selector("#features[data-ready=true]", timeout=SLOW)
    page.wait_for_timeout(1500)
    _click(page, (0.5, 0.5))
    page.wait_for_timeout(2000)
    for tool, locations in (("#tool-a", WATER), ("#tool-b", LAND)):
        page.click(tool)
        for location in locations:
            _click(page, location)
    page.wait_for_timeout(4000)
    _save(page, f"search-{name}", whole)

    page.click("#tab-runs")
    page.wait_for_selector(".plots svg")
    page.wait_for_timeout(800)
    _save(page, f"runs-{name}", whole)


def _click(page: Any, location: tuple[float, float]) -> None:
    box = page.locator("#search-viewer canvas").bounding_box()
    side = 0.945 * min(box["width"], box["height"])
    x, y = (side * (at - 0.5) for at in location)
    page.mouse.click(box["x"] + box["width"] / 2 + x, box["y"] + box["height"] / 2 + y)
    page.wait_for_timeout(500)


def _save(page: Any, name: str, whole: bool) -> None:
    page.evaluate("window.scrollTo(0, 0)")
    page.wait_for_timeout(200)
    taken = Image.open(io.BytesIO(page.screenshot(full_page=whole)))
    taken = taken.convert("RGB").crop((0, 0, taken.width, min(taken.height, LONGEST)))
    if not whole:
        taken = taken.resize(
            (taken.width * 3 // 4, taken.height * 3 // 4), Image.Resampling.LANCZOS
        )
    taken.quantize(256, dither=Image.Dither.NONE).save(
        Path(__file__).parent / f"{name}.png", optimize=True
    )


if __name__ == "__main__":
    main()
