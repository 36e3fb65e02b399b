"""The page in a real Chromium: every panel is used as a person would."""

from __future__ import annotations

import importlib
import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

REQUIRED = os.environ.get("MULTIMAE_EO_TEST_BROWSER") == "required"
needs = importlib.import_module if REQUIRED else pytest.importorskip
needs("fastapi")
needs("rasterio")
sync_api = needs("playwright.sync_api")

from multimae_eo.sources.vector.vector_labels import VectorLabels, VectorSpec  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--no-first-run",
]  # fmt: skip
PANELS = ("reconstruct", "map", "search", "label", "runs")

pytestmark = pytest.mark.skipif(CHROMIUM is None and not REQUIRED, reason="no chromium on the PATH")


@pytest.fixture(scope="module")
def address(made, model, scene) -> Iterator[str]:
    from multimae_eo.demo.server import create_app
    from multimae_eo.demo.services import DemoData

    with served(create_app(model, DemoData(scene=scene, runs=made.folder / "run"))) as found:
        yield found


@contextmanager
def served(app: Any) -> Iterator[str]:
    import uvicorn

    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
    server.should_exit = True
    thread.join(10)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield found
        found.close()


@pytest.fixture
def opened(browser, address):
    """Opens the page; what its console complains of fails the test."""
    complaints: list[str] = []
    contexts = []

    def open_page(panel: str = "reconstruct", *, at: str = address, **options: Any) -> Any:
        context = browser.new_context(**({"viewport": {"width": 1280, "height": 900}} | options))
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20000)
        page.on("pageerror", lambda e: complaints.append(str(e)))
        page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
        page.goto(f"{at}#{panel}")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not complaints


def until(true: Any, seconds: float = 20) -> None:
    """Waits here: the page's policy lets nobody evaluate text in it, its tests neither."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def shown(page: Any) -> int:
    return int(page.locator("#shown").get_attribute("data-visible"))


def answered(page: Any, act: Any, path: str = "/api/reconstruct") -> dict[str, Any]:
    with page.expect_response(lambda r: path in r.url and r.status == 200) as waiting:
        act()
    result: dict[str, Any] = waiting.value.json()
    page.wait_for_timeout(100)
    return result


def ready(page: Any) -> None:
    page.wait_for_selector("#shown[data-visible]")


@pytest.mark.slow
def test_painting_a_mask_changes_the_numbers(opened):
    page = opened()
    ready(page)
    everything = answered(page, lambda: page.click("#show-all"))
    assert everything["visible"] == everything["tokens"]
    assert page.locator("#scores").inner_text() == "Nothing is masked."
    box = page.locator("canvas.paint").first.bounding_box()
    page.mouse.move(box["x"] + 5, box["y"] + 5)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] - 5, box["y"] + 8, steps=12)
    page.mouse.up()
    until(lambda: page.locator("#scores [data-score=rgb]").count() == 1)
    page.wait_for_timeout(700)
    hidden = everything["visible"] - shown(page)
    assert 1 <= hidden <= 8, "a stroke over the first row of patches"
    page.click("#reveal")
    page.mouse.click(box["x"] + 5, box["y"] + 5)
    until(lambda: everything["visible"] - shown(page) == hidden - 1)


@pytest.mark.slow
def test_a_mask_is_painted_with_the_keyboard(opened):
    page = opened()
    ready(page)
    answered(page, lambda: page.click("#show-all"))
    whole = shown(page)
    page.locator("canvas.paint").first.focus()
    page.keyboard.press("ArrowRight")
    result = answered(page, lambda: page.keyboard.press("Space"))
    assert result["visible"] == whole - 1
    assert result["masks"]["rgb"].index("1") == 1, "the second patch"


@pytest.mark.slow
def test_a_modality_is_dropped_and_imagined(opened):
    page = opened()
    ready(page)
    result = answered(page, lambda: page.locator("input[data-modality=elevation]").uncheck())
    assert "0" not in result["masks"]["elevation"]
    assert "elevation" in result["scores"]
    assert page.locator("article.modality.off .name").inner_text() == "elevation"


@pytest.mark.slow
def test_sliders_and_seeds_ask_again(opened):
    page = opened()
    ready(page)

    def slide(name: str, value: float) -> None:
        page.evaluate(
            "([n, v]) => { const s = document.getElementById(n); s.value = v; "
            "s.dispatchEvent(new Event('input')); }",
            [name, value],
        )

    few = answered(page, lambda: slide("visible", 5))
    many = answered(page, lambda: slide("visible", 60))
    assert few["visible"] < many["visible"]
    sharp = answered(page, lambda: slide("alpha", -2))
    shares = [m.count("0") for m in sharp["masks"].values()]
    assert max(shares) >= 0.5 * min(sum(shares), 64), "most of the tokens are of few modalities"
    other = answered(page, lambda: page.click("#reseed"))
    assert other["masks"] != sharp["masks"]


def test_values_and_a_spectrum_are_told_at_the_cursor(opened):
    page = opened()
    ready(page)
    box = page.locator("canvas.paint").first.bounding_box()
    page.mouse.move(box["x"] + 30, box["y"] + 30)
    rows = page.locator("#values tbody tr")
    assert rows.count() == 5, "three bands, a height, a class"
    assert page.locator("#values tbody").inner_text().count("m\n") >= 1
    assert page.locator("#spectrum polyline").count() == 2


@pytest.mark.slow
def test_the_map_swipes_measures_and_gives_its_file(opened, tmp_path):
    page = opened("map")
    page.wait_for_selector("#overlay-tools:not([hidden])")
    canvas = page.locator("#map-viewer canvas")
    ink = (
        "([from, to]) => { const c = document.querySelector('#map-viewer canvas'); "
        "const d = c.getContext('2d').getImageData(c.width * from, 0, c.width * (to - from), "
        "c.height).data; let s = 0; for (let i = 0; i < d.length; i += 4) s += d[i]; return s; }"
    )
    page.wait_for_timeout(1200)
    left, right = (page.evaluate(ink, part) for part in ([0.3, 0.5], [0.5, 0.7]))
    page.evaluate(
        "() => { const s = document.getElementById('swipe'); s.value = 50; "
        "s.dispatchEvent(new Event('input')); }"
    )
    page.wait_for_timeout(300)
    assert page.evaluate(ink, [0.3, 0.5]) == left, "left of the handle the map stays"
    assert page.evaluate(ink, [0.5, 0.7]) != right, "right of it the scene shows"
    page.click("#draw")
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.45, box["y"] + box["height"] * 0.4)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.55, box["y"] + box["height"] * 0.6, steps=5)
    page.mouse.up()
    page.wait_for_selector("#area table")
    assert "ha" in page.locator("#area").inner_text()
    page.mouse.click(box["x"] + box["width"] * 0.5, box["y"] + box["height"] * 0.5)
    page.wait_for_selector("#open-location:not([disabled])")
    with page.expect_download() as download:
        page.click("#download")
    download.value.save_as(tmp_path / "map.tif")
    assert (tmp_path / "map.tif").read_bytes()[:2] in (b"II", b"MM")
    answered(page, lambda: page.click("#open-location"))
    assert page.locator("#panel-reconstruct").is_visible()


@pytest.mark.slow
def test_a_maps_areas_are_told_with_their_intervals(opened, made, model, scene, tmp_path):
    from multimae_eo import assess
    from multimae_eo.demo.server import create_app
    from multimae_eo.demo.services import DemoData

    path = made.folder / "world/scene/landcover.tif"
    assess(path, reference=path, out=tmp_path)
    app = create_app(model, DemoData(scene=scene, map=path, accuracy=tmp_path / "accuracy.json"))
    with served(app) as address:
        page = opened("map", at=address)
        page.wait_for_selector("#overlay-accuracy table")
        text = page.locator("#overlay-accuracy").inner_text()
        assert "100 % (100 % – 100 %)" in text
        assert "producer’s" in text
        page.select_option("#overlay", value="")
        until(lambda: not page.locator("#overlay-accuracy table").count())
        page.close()  # before its server ends


@pytest.mark.slow
def test_the_map_moves_with_the_keyboard_and_the_wheel(opened):
    page = opened("map")
    page.wait_for_selector("#overlay-tools:not([hidden])")
    canvas = page.locator("#map-viewer canvas")
    image = "() => document.querySelector('#map-viewer canvas').toDataURL().length"
    page.wait_for_timeout(1000)
    seen = [page.evaluate(image)]
    canvas.focus()
    for key in ("ArrowRight", "+", "0"):
        page.keyboard.press(key)
        page.wait_for_timeout(400)
        seen.append(page.evaluate(image))
    assert seen[1] != seen[0]
    assert seen[2] != seen[1]
    canvas.hover()
    page.mouse.wheel(0, -300)
    page.wait_for_timeout(300)
    assert page.evaluate(image) != seen[3]


@pytest.mark.slow
def test_clicks_find_places_and_make_a_map(opened):
    page = opened("search")
    page.wait_for_selector("#features[data-ready=true]")
    box = page.locator("#search-viewer canvas").bounding_box()

    def click(u: float, v: float) -> None:
        page.mouse.click(box["x"] + box["width"] * u, box["y"] + box["height"] * v)

    click(0.5, 0.5)
    page.wait_for_selector("#results button img")
    assert page.locator("#results button").first.inner_text() == "query"
    page.click("#tool-a")
    click(0.46, 0.4)
    page.click("#tool-b")
    click(0.54, 0.6)
    page.wait_for_selector("#few[data-share]")
    first = page.locator("#few").get_attribute("data-share")
    click(0.5, 0.7)
    until(lambda: page.locator("#few").get_attribute("data-share") != first)
    assert "1 + 2 clicks" in page.locator("#few").inner_text()
    page.click("#few-entropy")
    assert "uncertain" in page.locator("#few-legend").inner_text()
    answered(page, lambda: page.locator("#results button").nth(1).click())
    assert page.locator("#panel-reconstruct").is_visible()


def colours(page: Any, box: str) -> list[str]:
    """Of the swatches of a legend."""
    found: list[str] = page.locator(f"{box} .swatch").evaluate_all(
        "all => all.map((s) => getComputedStyle(s).backgroundColor)"
    )
    return found


def colours_of(page: Any, canvas: str) -> set[str]:
    """The commonest colours of a canvas."""
    count = (
        "(c) => { const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data; "
        "const n = new Map(); for (let i = 0; i < d.length; i += 4) { if (d[i + 3] < 255) continue;"
        " const k = `rgb(${d[i]}, ${d[i + 1]}, ${d[i + 2]})`; n.set(k, (n.get(k) ?? 0) + 1); } "
        "return [...n].sort((a, b) => b[1] - a[1]).slice(0, 40).map((e) => e[0]); }"
    )
    return set(page.locator(canvas).evaluate(count))


@pytest.mark.slow
def test_class_colours_are_the_class_maps_own_until_switched(opened, scene):
    """Map and legend change together, and stay so on the next visit."""
    page = opened("map")
    page.wait_for_selector("#overlay-tools:not([hidden])")
    (key,) = [f"s{i}" for i, m in enumerate(scene.modalities.values()) if m.categorical]
    page.select_option("#overlay", "")
    page.select_option("#layer", key)
    official = [f"rgb({r}, {g}, {b})" for r, g, b in
                (c.color for c in scene.modalities["landcover"].classes)]  # fmt: skip
    until(lambda: colours(page, "#layer-legend") == official)
    until(lambda: len(colours_of(page, "#map-viewer canvas") & set(official)) > 2)
    page.locator("#safe").focus()
    page.keyboard.press("Space")
    until(lambda: colours(page, "#layer-legend") != official)
    safe = set(colours(page, "#layer-legend"))
    until(lambda: len(colours_of(page, "#map-viewer canvas") & safe) > 2)
    assert not colours_of(page, "#map-viewer canvas") & (set(official) - safe)
    page.click("#tab-reconstruct")
    ready(page)
    until(lambda: set(colours(page, "article[aria-label=landcover] .classes")) == safe)
    page.reload()
    assert page.locator("#safe").is_checked()


def drawn(page: Any, corners: list[tuple[float, float]]) -> None:
    """Clicks corners, as shares of the viewer, and the first one again."""
    box = page.locator("#label-viewer canvas").bounding_box()
    for u, v in [*corners, corners[0]]:
        page.mouse.click(box["x"] + box["width"] * u, box["y"] + box["height"] * v)


@pytest.mark.slow
def test_polygons_are_drawn_mapped_and_downloaded(opened, scene, tmp_path):
    page = opened("label")
    page.wait_for_selector("#label-polygons[data-count='0']")
    page.locator("#label-classes input[type=text]").first.fill("Cropland")
    page.locator("#label-classes input[type=text]").nth(1).fill("Tree cover")
    page.locator("#label-classes input[type=radio]").first.check()
    until(lambda: colours(page, "#label-classes") == ["rgb(240, 150, 255)", "rgb(0, 100, 0)"])
    drawn(page, [(0.4, 0.2), (0.48, 0.22), (0.45, 0.4)])
    page.wait_for_selector("#label-polygons[data-count='1']")
    page.locator("#label-classes input[type=radio]").nth(1).check()
    drawn(page, [(0.55, 0.6), (0.62, 0.62), (0.6, 0.8), (0.53, 0.75)])
    page.wait_for_selector("#label-map[data-share]")
    assert "2 polygons" in page.locator("#label-map").inner_text()
    assert "Tree cover" in page.locator("#label-legend").inner_text()
    page.click("#safe")
    until(lambda: "rgb(240, 150, 255)" not in colours(page, "#label-legend"))
    assert colours(page, "#label-classes") != ["rgb(240, 150, 255)", "rgb(0, 100, 0)"]
    page.select_option("#label-crs", "scene")
    with page.expect_download() as download:
        page.click("#label-save")
    assert download.value.suggested_filename == "labels.geojson"
    download.value.save_as(tmp_path / "labels.geojson")
    labels = VectorLabels(VectorSpec(path=tmp_path / "labels.geojson", column="class"))
    assert labels.classes == ("Cropland", "Tree cover")
    on_scene = labels.on(scene.grid.crs, scene.grid.footprint(scene.grid.extent).bounds, "scene")
    assert len(on_scene) == 2
    page.reload()
    page.wait_for_selector("#label-polygons[data-count='2']")
    page.locator("#label-polygons button").first.click()
    page.wait_for_selector("#label-polygons[data-count='1']")
    assert page.locator("#label-polygons option:checked").inner_text() == "Tree cover"


@pytest.mark.slow
def test_polygons_are_drawn_with_the_keyboard(opened):
    page = opened("label", viewport={"width": 360, "height": 740})
    page.wait_for_selector("#label-polygons[data-count='0']")
    page.locator("#label-viewer canvas").focus()
    for key in ("Enter", "ArrowRight", "Enter", "ArrowDown", "Enter", "ArrowDown", "Enter",
                "Backspace"):  # fmt: skip
        page.keyboard.press(key)
    assert "3 points" in page.locator("#label-help").inner_text()
    page.select_option("#label-chosen", "1")
    assert page.locator("#label-classes input[type=radio]").nth(1).is_checked()
    page.locator("#label-viewer canvas").focus()
    page.keyboard.press("f")
    page.wait_for_selector("#label-polygons[data-count='1']")
    assert page.locator("#label-status").text_content().startswith("Polygon 1, class 2")
    page.keyboard.press("Enter")
    page.keyboard.press("Escape")
    assert "corners" in page.locator("#label-help").inner_text()
    page.keyboard.press("Backspace")
    page.wait_for_selector("#label-polygons[data-count='0']")


@pytest.mark.slow
def test_an_outline_that_crosses_itself_is_not_taken(opened):
    page = opened("label")
    page.wait_for_selector("#label-polygons[data-count='0']")
    drawn(page, [(0.4, 0.3), (0.6, 0.6), (0.6, 0.3), (0.4, 0.6)])
    page.wait_for_selector("#alert:not([hidden])")
    assert "crosses itself" in page.locator("#alert").inner_text()
    page.click("#label-undo")
    page.click("#label-finish")
    page.wait_for_selector("#label-polygons[data-count='1']")


@pytest.mark.slow
def test_runs_show_curves(opened):
    page = opened("runs")
    page.wait_for_selector(".plots svg")
    assert page.locator(".plots .card").count() >= 4
    assert page.locator(".fact").count() >= 3


@pytest.mark.slow
def test_tabs_are_moved_through_with_arrows(opened):
    page = opened()
    ready(page)
    page.locator("#tab-reconstruct").focus()
    for panel in (*PANELS[1:], PANELS[0]):
        page.keyboard.press("ArrowRight")
        assert page.locator(f"#panel-{panel}").is_visible()
        assert page.locator(f"#tab-{panel}").get_attribute("aria-selected") == "true"
        page.wait_for_timeout(300)


@pytest.mark.slow
@pytest.mark.parametrize("width", [360, 1920])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_panel_fits_reads_and_is_labelled(opened, width, scheme):
    """No sideways scrolling, text at a contrast of 4.5 or more, a name for every control."""
    page = opened(viewport={"width": width, "height": 800}, color_scheme=scheme)
    ready(page)
    for panel in PANELS:
        page.click(f"#tab-{panel}")
        page.wait_for_timeout(400)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, panel
        assert page.evaluate(NAMELESS) == [], panel
        low = page.evaluate(FAINT)
        assert low == [], (panel, low)
    assert page.locator("html").get_attribute("data-theme") == scheme
    page.click("#theme")
    assert page.locator("html").get_attribute("data-theme") != scheme


@pytest.mark.slow
def test_a_slow_page_is_not_waited_for(opened):
    """Moving on aborts: of many slides only the last is shown."""
    page = opened()
    ready(page)
    begun = time.perf_counter()
    for value in range(5, 60, 5):
        page.evaluate(
            "v => { const s = document.getElementById('visible'); s.value = v; "
            "s.dispatchEvent(new Event('input')); }",
            value,
        )
    until(lambda: abs(shown(page) - 0.55 * 192) < 2)
    assert time.perf_counter() - begun < 15


NAMELESS = """() => [...document.querySelectorAll('button, select, input, a, img, [tabindex]')]
  .filter((e) => e.checkVisibility() && e.id !== 'main')
  .filter((e) => !(e.getAttribute('aria-label') || e.textContent.trim() || e.hasAttribute('alt') ||
    e.labels?.length || e.querySelector('img[alt]')))
  .map((e) => e.outerHTML.slice(0, 90))"""

FAINT = """() => {
  const parse = (c) => (c.match(/[\\d.]+/g) || []).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((s, v, i) => s + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (e) => {
    for (; e; e = e.parentElement) {
      const c = parse(getComputedStyle(e).backgroundColor);
      if (c.length === 3 || c[3] > 0.99) return c;
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const e of document.querySelectorAll('body *')) {
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || !e.checkVisibility() || e.disabled || e.closest('option, script')) continue;
    const style = getComputedStyle(e);
    const ink = parse(e instanceof SVGElement ? style.fill : style.color);
    const [a, b] = [light(ink), light(ground(e))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) found.push([e.textContent.trim().slice(0, 30), ratio.toFixed(2)]);
  }
  return found;
}"""
