"""The application: what it answers, what it refuses, and that fuzzing finds no server error."""

from __future__ import annotations

import asyncio
import base64
import concurrent.futures
import io
import json
from contextlib import asynccontextmanager
from typing import cast

import numpy as np
import pytest
import yaml
from PIL import Image
from starlette.requests import Request

pytest.importorskip("fastapi")
rasterio = pytest.importorskip("rasterio")

from fastapi.testclient import TestClient  # noqa: E402
from rasterio.warp import transform  # noqa: E402

from multimae_eo import open_source  # noqa: E402
from multimae_eo.cli import main  # noqa: E402
from multimae_eo.demo.guard import Limits  # noqa: E402
from multimae_eo.demo.map_layers import frame_over  # noqa: E402
from multimae_eo.demo.server import PAGE, create_app  # noqa: E402
from multimae_eo.demo.services import DemoData  # noqa: E402
from multimae_eo.errors import ConfigError  # noqa: E402

LIMITS = Limits(hosts=("testserver",), rate=1e6, burst=10**6)


def picture(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def asked(client, **more):
    about = client.get("/api/about").json()
    return {
        "location": about["strip"][0]["location"],
        "inputs": ["rgb"],
        "visible": 9,
        "samples": 1,
    } | more


# What it answers ----------------------------------------------------------------------------------


def test_the_page_is_whole_and_comes_from_here_only(on_scene):
    for name, kind in PAGE.items():
        answer = on_scene.get(f"/{name}")
        assert answer.status_code == 200
        assert answer.headers["content-type"] == kind
        outside = [w for w in answer.text.replace('"', " ").split() if w.startswith("http")]
        assert all(w.startswith("http://www.w3.org/") for w in outside), outside
    assert on_scene.get("/").text == on_scene.get("/index.html").text
    for line in on_scene.get("/main.js").text.splitlines():
        if line.startswith("import"):
            assert line.split('"')[1].removeprefix("./") in PAGE


def test_a_reconstruction_comes_with_pictures_and_scores(on_scene):
    result = on_scene.post("/api/reconstruct", json=asked(on_scene)).json()
    assert result["visible"] == 9
    for kind in ("filled", "prediction", "std", "error"):
        data = result["modalities"]["elevation"][kind]["src"].split(",")[1]
        assert picture(base64.b64decode(data)).shape == (64, 64, 3)
    assert set(result["scores"]) == {"rgb", "elevation", "landcover"}


def test_fewer_visible_patches_change_the_numbers(on_scene):
    scores = [
        on_scene.post("/api/reconstruct", json=asked(on_scene, visible=n)).json()["scores"]
        for n in (1, 60)
    ]
    assert scores[0]["elevation"]["rmse"] != scores[1]["elevation"]["rmse"]


def test_a_map_is_made_drawn_measured_and_downloaded(on_scene, finished, scene, tmp_path):
    about = on_scene.get("/api/map").json()
    (key,) = [o["id"] for o in about["overlays"] if o["title"].startswith("landcover")]
    assert on_scene.get(f"/api/layers/{key}/map.tif").status_code == 404, "not made yet"
    finished(on_scene, f"/api/layers/{key}/make", f"/api/layers/{key}/state")
    data = on_scene.get(f"/api/layers/{key}/map.tif")
    (tmp_path / "map.tif").write_bytes(data.content)
    with rasterio.open(tmp_path / "map.tif") as file:
        assert file.shape == (scene.grid.height, scene.grid.width)
        assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
    frame = frame_over(tuple(about["bounds"]), 256)
    z = 12
    side = 2 * np.pi * 6378137 / 2**z
    half = np.pi * 6378137
    x, y = int((frame.west + half) // side), int((half - frame.north) // side)
    for layer in ("s0", key):
        tile = picture(on_scene.get(f"/api/layers/{layer}/tiles/{z}/{x}/{y}.png").content)
        assert tile.shape == (256, 256, 4)
        assert 0 < (tile[..., 3] > 0).mean() < 1
    west, south, east, north = about["bounds"]
    area = {"layer": key, "west": west, "south": south, "east": east, "north": north}
    result = on_scene.post("/api/area", json=area).json()
    assert sum(c["share"] for c in result["classes"]) == pytest.approx(1)
    legend = on_scene.get(f"/api/layers/{key}/legend").json()
    assert {c["name"] for c in result["classes"]} <= {c["name"] for c in legend["classes"]}


def test_similar_places_and_a_map_from_clicks(on_scene, finished):
    finished(on_scene, "/api/features", "/api/features")
    west, south, east, north = on_scene.get("/api/map").json()["bounds"]

    def point(u, v):
        return {"x": west + u * (east - west), "y": south + v * (north - south)}

    result = on_scene.post("/api/similar", json={"point": point(0.5, 0.5), "count": 4}).json()
    first, *others = result["similar"]
    assert first["location"] == result["location"]
    alike = [o["similarity"] for o in others]
    assert alike == sorted(alike, reverse=True)
    assert all(-1 <= a <= 1 for a in alike)
    for other in others:
        a, b = first["bounds"], other["bounds"]
        apart = max(a[0] - b[2], b[0] - a[2], a[1] - b[3], b[1] - a[3])
        assert apart > -40, "neighbours do not overlap; their boxes may, a little, for rotation"
    body = {"a": [point(0.3, 0.3)], "b": [point(0.7, 0.7)]}
    few = on_scene.post("/api/few-shot", json=body).json()
    image = picture(base64.b64decode(few["probability"].split(",")[1]))
    assert 0.8 < (image[..., 3] > 0).mean() <= 1
    assert 0 < few["share"] < 1
    assert 0 < few["entropy_mean"] <= 1
    swapped = on_scene.post("/api/few-shot", json={"a": body["b"], "b": body["a"]}).json()
    assert swapped["share"] == pytest.approx(1 - few["share"], abs=0.01)
    same = on_scene.post("/api/few-shot", json={"a": [point(0.3, 0.3)], "b": [point(0.3, 0.3)]})
    assert same.status_code == 400
    assert on_scene.post("/api/similar", json={"point": {"x": 0.0, "y": 0.0}}).status_code == 404


def test_tiles_and_legends_follow_the_palette(on_scene, scene):
    landcover = scene.modalities["landcover"]
    key = f"s{list(scene.modalities).index('landcover')}"
    west, south, east, north = on_scene.get("/api/map").json()["bounds"]
    frame = frame_over((west, south, east, north), 256)
    half, z = np.pi * 6378137, 13
    side = 2 * half / 2**z
    x, y = int((frame.west + half) // side), int((half - frame.north) // side)
    seen = {}
    for palette in ("official", "safe"):
        legend = on_scene.get(f"/api/layers/{key}/legend?palette={palette}").json()["classes"]
        tile = on_scene.get(f"/api/layers/{key}/tiles/{z}/{x}/{y}.png?palette={palette}").content
        pixels = picture(tile)
        used = {tuple(c) for c in pixels[pixels[..., 3] > 0][:, :3].tolist()}
        named = {tuple(bytes.fromhex(c["color"][1:])) for c in legend}
        assert used
        assert used <= named, "every colour of the map is in its legend"
        seen[palette] = [c["color"] for c in legend]
    assert seen["official"] == ["#{:02x}{:02x}{:02x}".format(*c.color) for c in landcover.classes]
    assert set(seen["safe"]) & set(seen["official"]) <= {"#f0f0f0"}, "snow is as white in both"
    assert on_scene.get(f"/api/layers/{key}/legend?palette=pink").status_code == 422


def squares(bounds, places, side=0.06):
    """Drawn polygons: (label, u, v) as shares of the bounds."""
    west, south, east, north = bounds
    width, height = side * (east - west), side * (north - south)
    rings = []
    for label, u, v in places:
        x, y = west + u * (east - west), south + v * (north - south)
        ring = [[x, y], [x, y + height], [x + width, y + height], [x + width, y]]
        rings.append({"label": label, "ring": ring})
    return rings


@pytest.mark.parametrize("crs", ["wgs84", "scene"])
def test_drawn_polygons_are_labels_of_the_scene(on_scene, scene, made, tmp_path, crs):
    """As a reader of vector labels reads them, pixel by pixel."""
    bounds = on_scene.get("/api/map").json()["bounds"]
    polygons = squares(bounds, [("water", 0.2, 0.3), ("crops", 0.5, 0.5), ("water", 0.7, 0.2)])
    answer = on_scene.post("/api/labels/geojson", json={"polygons": polygons, "crs": crs})
    collection = answer.json()
    assert ("crs" in collection) == (crs == "scene")
    (tmp_path / "labels.geojson").write_text(answer.text)
    layers = yaml.safe_load((made.folder / "world/scene.yaml").read_text())
    layers["root"] = str(made.folder / "world")
    layers["chips"] = {"size": 32}
    layers["labels"] = {"vector": str(tmp_path / "labels.geojson"), "column": "class"}
    (tmp_path / "labelled.yaml").write_text(yaml.safe_dump(layers))
    source = open_source(tmp_path / "labelled.yaml")
    assert source.class_names == ("crops", "water")
    counts = np.zeros(2)
    for i in range(len(source)):
        label = source.read(i).label
        counts += [(label == 0).sum(), (label == 1).sum()]
    pixel = abs(scene.grid.transform.a)
    for ring, found in zip((polygons[1], polygons[0]), (counts[0], counts[1] / 2), strict=True):
        xs, ys = transform("EPSG:3857", scene.grid.crs, *np.array(ring["ring"]).T)
        area = 0.5 * abs(np.dot(xs, np.roll(ys, 1)) - np.dot(ys, np.roll(xs, 1))) / pixel**2
        assert found == pytest.approx(area, rel=0.1)


def test_a_map_follows_from_drawn_polygons(on_scene, finished, scene):
    """Drawn where the scene's own class map says what is there, it finds the same elsewhere."""
    finished(on_scene, "/api/features", "/api/features")
    bounds = on_scene.get("/api/map").json()["bounds"]
    places = [("a", 0.2, 0.3), ("b", 0.5, 0.5), ("c", 0.7, 0.2)]
    body = {"polygons": squares(bounds, places)}
    result = on_scene.post("/api/labels/map", json=body).json()
    assert [c["name"] for c in result["classes"]] == ["a", "b", "c"]
    assert all(c["patches"] > 0 for c in result["classes"])
    assert sum(c["share"] for c in result["classes"]) == pytest.approx(1)
    assert 0 < result["entropy_mean"] <= np.log2(3)
    image = picture(base64.b64decode(result["map"].split(",")[1]))
    left, _, right, top = result["bounds"]
    step = (right - left) / image.shape[1]
    colours = {c["name"]: tuple(bytes.fromhex(c["color"][1:])) for c in result["classes"]}
    for polygon in body["polygons"]:
        x, y = np.mean(polygon["ring"], axis=0)
        pixel = image[int((top - y) / step), int((x - left) / step)]
        assert tuple(pixel[:3]) == colours[polygon["label"]], "its own examples are of its class"
    other = on_scene.post("/api/labels/map", json=body | {"palette": "safe"}).json()
    assert [c["share"] for c in other["classes"]] == [c["share"] for c in result["classes"]]


@pytest.mark.parametrize(("places", "reason"), [
    ([("a", 0.2, 0.3)], "two classes"),
    ([("a", 0.2, 0.3), ("b", 0.2, 0.3)], "alone"),
    ([("a", 0.2, 0.3), ("b", 4.0, 4.0)], "alone"),
])  # fmt: skip
def test_labels_that_make_no_map_are_refused(on_scene, finished, places, reason):
    finished(on_scene, "/api/features", "/api/features")
    polygons = squares(on_scene.get("/api/map").json()["bounds"], places)
    answer = on_scene.post("/api/labels/map", json={"polygons": polygons})
    assert answer.status_code == 400
    assert reason in answer.json()["detail"]


def test_a_crossing_outline_is_refused(on_scene):
    ring = [[0.0, 0.0], [1.0, 1.0], [1.0, 0.0], [0.0, 1.0]]
    body = {"polygons": [{"label": "a", "ring": ring}]}
    answer = on_scene.post("/api/labels/geojson", json=body)
    assert answer.status_code == 400
    assert "polygon 1 (a): its outline crosses itself" in answer.json()["detail"]


def test_colours_of_named_classes_are_their_class_maps(on_scene):
    names = ["Tree cover", "Cropland", "Cropland", "Mangroves"]
    found = on_scene.post("/api/labels/colors", json={"names": names}).json()
    assert found == ["#006400", "#f096ff", "#f096ff", "#00cf75"]
    safe = on_scene.post("/api/labels/colors", json={"names": names, "palette": "safe"}).json()
    assert len(set(safe)) == 3
    assert not set(safe) & set(found)
    assert len(on_scene.post("/api/labels/colors", json={"names": ["a"]}).json()) == 1


@pytest.mark.slow
def test_chips_have_neighbours_but_no_map(on_chips, finished):
    finished(on_chips, "/api/features", "/api/features")
    location = asked(on_chips)["location"]
    result = on_chips.post("/api/similar", json={"location": location, "count": 3}).json()
    assert result["similar"][0]["location"] == location
    assert len({s["location"] for s in result["similar"]}) == 3
    assert on_chips.get("/api/map").status_code == 404
    points = {"a": [{"x": 0.0, "y": 0.0}], "b": [{"x": 1.0, "y": 1.0}]}
    assert on_chips.post("/api/few-shot", json=points).status_code == 400
    assert on_chips.get("/api/runs").status_code == 404
    polygons = squares((0, 0, 1, 1), [("a", 0, 0)])
    assert on_chips.post("/api/labels/geojson", json={"polygons": polygons}).status_code == 404


def test_a_runs_numbers_are_those_of_its_file(on_scene, folder):
    import csv

    (run,) = on_scene.get("/api/runs").json()
    result = on_scene.get(f"/api/runs/{run['run']}").json()
    with (folder / "run/metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    last = [float(r["val/loss"]) for r in rows if r["val/loss"]][-1]
    curves = {c["role"]: c for c in result["losses"][0]["curves"]}
    assert curves["validation"]["y"][-1] == pytest.approx(last)
    assert {loss["title"] for loss in result["losses"]} >= {"rgb", "elevation", "landcover"}
    for n in range(len(result["pictures"])):
        assert picture(on_scene.get(f"/api/runs/0/pictures/{n}.png").content).ndim == 3
    assert on_scene.get(f"/api/runs/0/pictures/{len(result['pictures'])}.png").status_code == 404


def test_many_users_at_once_see_no_failure(on_scene):
    def one(i):
        body = asked(on_scene, seed=i)
        return on_scene.post("/api/reconstruct", json=body, headers={"x-client": f"c{i}"})

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        codes = [a.status_code for a in pool.map(one, range(24))]
    assert codes == [200] * 24


# What it refuses ----------------------------------------------------------------------------------


def test_every_answer_is_guarded(on_scene):
    for path in ("/", "/api/about", "/api/nothing", "/api/locations/99999"):
        headers = on_scene.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "script-src 'self'" in policy
        assert "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "localhost:x"])
def test_other_hosts_are_refused(on_scene, host):
    """A page elsewhere that lets its name point here (DNS rebinding) gets nothing."""
    assert on_scene.get("/api/about", headers={"host": host}).status_code == 400


def test_other_sites_pages_are_refused(on_scene):
    answer = on_scene.post("/api/features", headers={"origin": "https://evil.example"})
    assert answer.status_code == 403
    assert on_scene.get("/api/about", headers={"origin": "http://testserver"}).status_code == 200


@pytest.mark.parametrize("path", [
    "/../../etc/passwd", "/..%2f..%2fetc%2fpasswd", "/%2e%2e/%2e%2e/etc/passwd", "/style.css/../x",
    "/api/layers/..%2f..%2fetc/map.tif", "/api/layers/o0%00/map.tif", "/api/layers/s0/map.tif",
    "/api/runs/..%2f/pictures/0.png", "/api/runs/0/pictures/..%2f..%2frecipe.yaml",
    "/api/runs/0/pictures/-1.png", "/api/locations/%2e%2e/picture.png",
    "/api/layers/s0/tiles/1/2/..%2fx.png", "//etc/passwd", "/recipe.yaml", "/server.py",
])  # fmt: skip
def test_no_path_reaches_the_file_system(on_scene, path):
    answer = on_scene.get(path)
    assert answer.status_code in (404, 422)
    assert "root:" not in answer.text


def test_too_much_is_refused(on_scene):
    big = json.dumps(asked(on_scene) | {"pad": "x" * 70000})
    headers = {"content-type": "application/json"}
    assert on_scene.post("/api/reconstruct", content=big, headers=headers).status_code == 413

    def chunks():
        for _ in range(100):
            yield b"x" * 1000

    assert on_scene.post("/api/reconstruct", content=chunks(), headers=headers).status_code == 413
    lying = {**headers, "content-length": "-5"}
    assert on_scene.get("/api/about", headers=lying).status_code == 413


@pytest.mark.parametrize("change", [
    {"location": "1"}, {"location": -1}, {"location": 1.5}, {"location": 2**40}, {"inputs": []},
    {"inputs": "rgb"}, {"inputs": ["rgb"] * 40}, {"masks": {"rgb": "2"}}, {"masks": {"rgb": ""}},
    {"visible": 0}, {"alpha": 0.0}, {"samples": 9}, {"samples": True}, {"path": "/etc/passwd"},
])  # fmt: skip
def test_malformed_requests_are_refused_in_one_line(on_scene, change):
    answer = on_scene.post("/api/reconstruct", json=asked(on_scene, **change))
    assert answer.status_code == 422
    assert isinstance(answer.json()["detail"], str)
    assert next(iter(change)) in answer.json()["detail"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"a": NaN}'])
def test_what_is_no_json_is_refused(on_scene, body):
    headers = {"content-type": "application/json"}
    for path in ("/api/reconstruct", "/api/similar", "/api/few-shot", "/api/area"):
        assert on_scene.post(path, content=body, headers=headers).status_code in (400, 422)


def test_a_flood_is_slowed(model, chips):
    limits = Limits(hosts=("testserver",), rate=1, burst=5)
    with TestClient(create_app(model, DemoData(source=chips), limits=limits)) as client:
        answers = [client.get("/api/about") for _ in range(12)]
    codes = [a.status_code for a in answers]
    assert codes[:5] == [200] * 5
    assert codes[-1] == 429
    assert answers[-1].headers["retry-after"] == "1"


def test_a_client_that_leaves_frees_its_place(on_scene):
    """The work of a request whose client is gone is given up."""
    from multimae_eo.demo.dispatch import run_job
    from multimae_eo.demo.jobs import JobQueue, SupersededError

    class Gone:
        async def is_disconnected(self):
            return True

    queue = JobQueue("gone", threads=1, waiting=1)
    cancellations = []

    def work(cancellation):
        cancellations.append(cancellation)
        for _ in range(1000):
            cancellation.check()
            asyncio.run(asyncio.sleep(0.01))

    with pytest.raises(SupersededError):
        asyncio.run(run_job(cast("Request", Gone()), queue, work))
    with pytest.raises(SupersededError):
        cancellations[0].check()
    queue.close()


@pytest.mark.slow
def test_schemathesis_finds_no_server_error(made, model, scene):
    schemathesis = pytest.importorskip("schemathesis")
    from hypothesis import HealthCheck, Phase, settings

    app = create_app(model, DemoData(scene=scene, runs=made.folder / "run"), limits=LIMITS)
    # It starts and stops the application as it likes; this one stays open.
    app.router.lifespan_context = _nothing
    schema = schemathesis.openapi.from_asgi("/api/openapi.json", app)
    from schemathesis.checks import not_a_server_error

    tried = []

    for result in schema.get_all_operations():
        operation = result.ok()

        @settings(max_examples=12, deadline=None, database=None,
                  suppress_health_check=list(HealthCheck), phases=[Phase.generate])  # fmt: skip
        @schemathesis_given(operation)
        def fuzz(case):
            answer = case.call(headers={"host": "testserver"})
            case.validate_response(answer, checks=[not_a_server_error])
            tried.append(answer.status_code)

        fuzz()
    assert len(tried) > 100
    assert max(tried) < 500
    assert 200 in tried


@asynccontextmanager
async def _nothing(_):
    yield


def schemathesis_given(operation):
    from hypothesis import given

    return given(case=operation.as_strategy())


# The command --------------------------------------------------------------------------------------


def test_the_command_loads_everything_and_answers(made, capsys):
    code = main(["demo", "--model", made / "run/model", "--scene", made / "world/scene.yaml",
                 "--runs", made / "run", "--check"])  # fmt: skip
    assert code == 0
    assert capsys.readouterr().out.startswith("ready after ")


@pytest.mark.parametrize(("more", "output"), [
    ([], "either --scene or --data"),
    (["--data", "STORE", "--map", "x.tif"], "give --scene"),
    (["--data", "STORE", "--port", "99999"], "--port"),
    (["--data", "STORE", "--runs", "STORE"], "no run folder"),
    (["--data", "STORE", "--threads", "-1"], "--threads"),
    (["--data", "STORE", "--allow_host", "http://a.example"], "--allow_host http://a.example: ex"),
    (["--data", "STORE", "--allow-host", "a.example:80"], "without scheme and port"),
])  # fmt: skip
def test_user_errors_are_told_in_one_line(made, refused, more, output):
    words = [made / "store" if m == "STORE" else m for m in more]
    assert output in refused("demo", "--model", made / "run/model", *words)


@pytest.mark.parametrize(("arguments", "hosts", "local_address"), [
    ([], (), False),
    (["--host", "192.168.7.7"], ("192.168.7.7",), False),
    (["--host", "fe80::1"], ("[fe80::1]",), False),
    (["--host", "0.0.0.0"], (), True),
    (["--host", "0.0.0.0", "--allow-host", "A.example", "--allow_host", "b"], ("a.example", "b"),
     True),
])  # fmt: skip
def test_names_that_the_command_serves(arguments, hosts, local_address):
    from multimae_eo.cli.main import parse
    from multimae_eo.cli.tour_commands import Demo
    from multimae_eo.demo.guard import LOOPBACK

    command = parse(["demo", "--model", "m", "--data", "d", *arguments])
    assert isinstance(command, Demo)
    limits = command._limits()
    assert (set(limits.hosts), limits.local_address) == ({*LOOPBACK, *hosts}, local_address)


def test_a_missing_extra_is_named(made, refused, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "uvicorn", None)
    result = refused("demo", "--model", made / "run/model", "--data", made / "store")
    assert "pip install 'multimae-eo[demo]'" in result


def test_what_is_shown_is_one_thing():
    with pytest.raises(ConfigError, match="either"):
        DemoData()
