"""Takes the pictures of the demo and of the quickstart that README and docs show.

    multimae-eo quickstart --out quickstart
    python docs/figures/screenshots.py quickstart

Every panel of the demo, light and dark, 1920 px and 360 px wide, goes to docs/demo; the
quickstart's reconstructions and its report to docs/img. Needs Chromium on the path.
"""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from playwright.sync_api import sync_playwright

from multimae_eo.catalog import CLASS_MAPS

DOCS = Path(__file__).resolve().parent.parent
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
SLOW = 300_000
KEPT, OTHERS, FAR = 48, 128, 20
# Of thin lines and small marks, light and dark.
LINES = ("0072b2", "c2410c", "b8400a", "56b4e9", "f0883e", "0b6b5b", "6fd0b9")
# Locations of the quickstart's scene, as shares of its width and height.
WATER = ((0.66, 0.07), (0.06, 0.56), (0.94, 0.54))
LAND = ((0.47, 0.48), (0.25, 0.24), (0.84, 0.13), (0.2, 0.91))
POLYGONS = {
    "permanent water": [((0.60, 0.03), (0.70, 0.04), (0.69, 0.14), (0.62, 0.10)),
                        ((0.02, 0.60), (0.10, 0.60), (0.11, 0.68), (0.03, 0.72))],
    "bare / sparse vegetation": [((0.40, 0.44), (0.52, 0.46), (0.50, 0.55), (0.40, 0.53)),
                                 ((0.27, 0.66), (0.36, 0.66), (0.34, 0.80), (0.25, 0.78))],
    "cropland": [((0.17, 0.44), (0.22, 0.45), (0.22, 0.52), (0.17, 0.51)),
                 ((0.44, 0.93), (0.49, 0.93), (0.49, 0.98), (0.44, 0.98))],
    "tree cover": [((0.28, 0.29), (0.34, 0.29), (0.33, 0.34), (0.28, 0.34)),
                   ((0.62, 0.30), (0.67, 0.29), (0.66, 0.36), (0.62, 0.37))],
}  # fmt: skip


def main() -> None:
    """Start the demo and take all pictures."""
    quickstart = Path(sys.argv[1])
    with _served(quickstart) as address, sync_playwright() as tools:
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
        view = browser.new_context(viewport={"width": 1280, "height": 900}, color_scheme="light")
        page = view.new_page()
        page.goto((quickstart / "report.html").resolve().as_uri())
        page.wait_for_timeout(1000)
        _write(Image.open(io.BytesIO(page.screenshot())), DOCS / "img/report.png")
        browser.close()
    _reconstruction(quickstart)


def _reconstruction(quickstart: Path) -> None:
    """Two test chips: two modalities given, two predicted."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "pictures"
        subprocess.run(
            [
                *(sys.executable, "-m", "multimae_eo.cli", "reconstruct", "--out", str(out)),
                *("--model", str(quickstart / "model"), "--data", str(quickstart / "store")),
                *("--inputs", "rgb,ired", "--outputs", "elevation,landcover"),
                *("--split", "test", "--limit", "2"),
            ],
            check=True,
        )
        sheet = Image.open(out / "reconstruction.png").convert("RGB")
        size = (sheet.width * 2 // 3, sheet.height * 2 // 3)
        _write(sheet.resize(size, Image.Resampling.LANCZOS), DOCS / "img/quickstart.png")


@contextmanager
def _served(quickstart: Path) -> Iterator[str]:
    """The demo of a quickstart, and its address."""
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
        assert server.stdout is not None
        for line in server.stdout:
            if found := re.search(r"http://\S+", line):
                yield found.group()
                return
        raise SystemExit("the demo did not start")
    finally:
        server.terminate()


def _panels(page: Any, address: str, name: str, *, whole: bool) -> None:
    page.set_default_timeout(SLOW)
    quiet = _Quiet(page)
    page.goto(address)
    page.wait_for_selector("#took[data-ms]")
    box = page.locator(".modality").first.locator(".frame").first.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.4, box["y"] + box["height"] * 0.6)
    quiet()
    _save(page, f"reconstruct-{name}", whole)

    page.click("#tab-map")
    page.wait_for_selector("#overlay-tools:not([hidden])")
    page.locator("#swipe").evaluate("(e) => {e.value = 55; e.dispatchEvent(new Event('input'))}")
    page.click("#area-view")
    page.wait_for_selector("#area table")
    quiet()
    _save(page, f"map-{name}", whole)

    page.click("#tab-search")
    page.wait_for_selector("#features[data-ready=true]")
    quiet()
    _click(page, "#search-viewer", (0.5, 0.5))
    for tool, locations in (("#tool-a", WATER), ("#tool-b", LAND)):
        page.click(tool)
        for location in locations:
            _click(page, "#search-viewer", location)
    quiet()
    _save(page, f"search-{name}", whole)

    page.click("#tab-label")
    _draw(page)
    page.wait_for_selector("#label-map[data-share]")
    page.mouse.move(5, 5)
    quiet()
    _save(page, f"label-{name}", whole)

    page.click("#tab-runs")
    page.wait_for_selector(".plots svg")
    quiet()
    _save(page, f"runs-{name}", whole)


def _draw(page: Any) -> None:
    """Polygons of several classes."""
    page.wait_for_selector("#label-polygons[data-count='0']")
    for index, (label, polygons) in enumerate(POLYGONS.items()):
        if index > 1:
            page.click("#label-add")
        page.locator("#label-classes input[type=text]").nth(index).fill(label)
        page.locator("#label-classes input[type=radio]").nth(index).check()
        for corners in polygons:
            for corner in (*corners, corners[0]):
                _click(page, "#label-viewer", corner)


class _Quiet:
    """Waits until a page has asked for nothing for a while."""

    def __init__(self, page: Any) -> None:
        self._page, self._open, self._last = page, 0, time.monotonic()
        page.on("request", lambda _: self._count(1))
        page.on("requestfinished", lambda _: self._count(-1))
        page.on("requestfailed", lambda _: self._count(-1))

    def _count(self, step: int) -> None:
        self._open, self._last = self._open + step, time.monotonic()

    def __call__(self) -> None:
        while self._open > 0 or time.monotonic() - self._last < 2:
            self._page.wait_for_timeout(250)


def _click(page: Any, viewer: str, location: tuple[float, float]) -> None:
    page.locator(f"{viewer} canvas").scroll_into_view_if_needed()
    box = page.locator(f"{viewer} canvas").bounding_box()
    side = 0.945 * min(box["width"], box["height"])
    x, y = (side * (at - 0.5) for at in location)
    page.mouse.click(box["x"] + box["width"] / 2 + x, box["y"] + box["height"] / 2 + y)
    page.wait_for_timeout(300)


def _save(page: Any, name: str, whole: bool) -> None:
    page.evaluate("window.scrollTo(0, 0)")
    page.wait_for_timeout(200)
    taken = Image.open(io.BytesIO(page.screenshot(full_page=whole)))
    taken = taken.convert("RGB").crop((0, 0, taken.width, min(taken.height, LONGEST)))
    if not whole:
        size = (taken.width * 3 // 4, taken.height * 3 // 4)
        taken = taken.resize(size, Image.Resampling.LANCZOS)
    _write(taken, DOCS / f"demo/{name}.png")


def _write(image: Image.Image, path: Path) -> None:
    """In 256 colours: the commonest and those of classes as they are, then those of most pixels,
    then those that lie far from all of these, so that legends and thin lines keep theirs."""
    whole = image.convert("RGB")
    pixels = np.asarray(whole).reshape(-1, 3)
    found, of_pixel, count = np.unique(pixels, axis=0, return_inverse=True, return_counts=True)
    classes = [c.color for c in CLASS_MAPS["esa_worldcover"].classes]
    lines = [tuple(bytes.fromhex(digits)) for digits in LINES]
    kept = np.array([*classes, *lines], np.uint8)
    table = np.concatenate([found[np.argsort(-count)[:KEPT]], kept, _palette(whole, OTHERS)])
    shown = table[_nearest(found, table)].astype(int)
    far = found[np.abs(found - shown).max(axis=1) > FAR]
    if len(far):
        table = np.concatenate([table, _palette(Image.fromarray(far[None]), 256 - len(table))])
    index = _nearest(found, table)[of_pixel.reshape(-1)].astype(np.uint8)
    coded = Image.fromarray(index.reshape(whole.height, whole.width), "P")
    coded.putpalette(table.tobytes())
    coded.save(path, optimize=True)
    sys.stdout.write(f"{path}\n")


def _palette(image: Image.Image, count: int) -> np.ndarray:
    """At most ``count`` colours of an image by median cut, uint8 (n, 3)."""
    colors = image.quantize(count, dither=Image.Dither.NONE).getpalette() or []
    return np.array(colors[: 3 * count], np.uint8).reshape(-1, 3)


def _nearest(colors: np.ndarray, table: np.ndarray) -> np.ndarray:
    """The index of the nearest colour of a table; Pillow's own search is approximate."""
    parts = np.array_split(colors.astype(np.float32), max(1, len(colors) // 4096))
    gaps = (((part[:, None] - table[None]) ** 2).sum(axis=2) for part in parts)
    return np.concatenate([g.argmin(axis=1) for g in gaps])


if __name__ == "__main__":
    main()
