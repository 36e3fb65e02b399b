"""Scenes with several dates: read window by window, mapped, embedded, cut into chips."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from multimae_eo.errors import ConfigError, MultiMAEError
from multimae_eo.geo import Window
from multimae_eo.network.config import HeadConfig
from multimae_eo.network.predictor import Predictor
from multimae_eo.network.target import Target
from multimae_eo.sample import collate
from multimae_eo.scenes.embed import embed_scene
from multimae_eo.scenes.job import SceneOptions
from multimae_eo.scenes.predict import predict_scene
from multimae_eo.scenes.reconstruct import reconstruct_scene
from multimae_eo.sources.acquisition_dates import days_since_1970
from multimae_eo.sources.scene.chips import open_scene
from multimae_eo.sources.scene.scene import Scene

rasterio = pytest.importorskip("rasterio")

from tests.support.product_files import s2_numbers, write_safe  # noqa: E402
from tests.support.scene_files import write  # noqa: E402

DATES = ("2021-03-01", "2021-05-11", "2021-05-30", "2021-09-04")
LAYER = 'path: "s2/{date}.tif", sensor: sentinel2, bands: [B4, B3, B2], scale: 1.0e-4, level: l2a'


def dated_scene(folder: Path, height: int = 40, width: int = 56, more: str = "") -> Path:
    """Four dates; the second lacks the left half, the third everything but one window."""
    rng = np.random.default_rng(3)
    for number, date in enumerate(DATES):
        pixels = rng.integers(500, 4000, (3, height, width)).astype(np.uint16)
        if number == 1:
            pixels[:, :, : width // 2] = 0
        if number == 2:
            pixels[:, :, : width - 16] = 0
            pixels[:, : height - 16] = 0
        (folder / "s2").mkdir(exist_ok=True, parents=True)
        write(folder / "s2" / f"{date}.tif", pixels, ("B4", "B3", "B2"))
    path = folder / "scene.yaml"
    path.write_text(f"name: farm\nmodalities:\n  rgb: {{{LAYER}}}\n{more}")
    return path


@pytest.fixture
def mapper(make_model) -> Predictor:
    """Weighs dates by attention, so that order, number and dates of acquisitions matter."""
    torch.manual_seed(1)
    target = Target(kind="map", classes=("forest", "grass", "water"))
    config = HeadConfig(name="linear", width=16, dates="attention")
    predictor = Predictor(make_model(), target, config).eval()
    for parameter in predictor.head.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return predictor


def test_a_window_has_the_dates_with_a_valid_pixel(tmp_path):
    scene = Scene(dated_scene(tmp_path))
    days = [days_since_1970(d) for d in DATES]
    assert scene.dates == {"rgb": tuple(days)}
    left = scene.read(Window(row=0, col=0, height=16, width=16))
    right = scene.read(Window(row=24, col=40, height=16, width=16))
    assert list(left.dates["rgb"]) == [days[0], days[3]]
    assert list(right.dates["rgb"]) == days
    for date, pixels in zip(DATES, right.pixels["rgb"], strict=True):
        with rasterio.open(tmp_path / "s2" / f"{date}.tif") as file:
            assert np.array_equal(pixels, file.read(window=((24, 40), (40, 56))))
    partly = scene.read(Window(row=0, col=20, height=16, width=16))
    assert partly.pixels["rgb"].shape == (3, 3, 16, 16)
    assert not partly.valid["rgb"][1, 0, :, :8].any()
    assert partly.valid["rgb"][1, 0, :, 8:].all()


def test_a_map_is_what_each_window_gives(mapper, tmp_path):
    """Windows of one batch differ in their number of dates; each is predicted as if alone."""
    scene = Scene(dated_scene(tmp_path, 32, 48))
    options = SceneOptions(overlap=0.0, batch_size=4, precision="32-true")
    (path,) = predict_scene(mapper, scene, out=tmp_path / "map.tif", options=options)
    expected = np.full((32, 48), -1)
    counts = set()
    for row in range(0, 32, 16):
        for col in range(0, 48, 16):
            sample = scene.read(Window(row=row, col=col, height=16, width=16))
            counts.add(len(sample.dates["rgb"]))
            with torch.no_grad():
                scores = mapper.predict(collate([sample], scene.modalities), ["rgb"])
            expected[row : row + 16, col : col + 16] = scores[0].argmax(dim=0)
    assert counts == {2, 3, 4}
    with rasterio.open(path) as file:
        assert np.array_equal(file.read(1), expected)
    assert len(np.unique(expected)) > 1


def test_dates_change_the_map(mapper, tmp_path):
    """The same pixels on other days are another season."""
    maps = []
    for name, shift in (("a", 0), ("b", 4)):
        scene = dated_scene(tmp_path / name)
        for date in DATES:
            month = int(date[5:7]) + shift
            if shift and month <= 12:
                file = scene.parent / "s2" / f"{date}.tif"
                file.rename(file.with_name(f"{date[:5]}{month:02d}{date[7:]}.tif"))
        paths = predict_scene(
            mapper, Scene(scene), out=tmp_path / f"{name}.tif",
            options=SceneOptions(precision="32-true"),
        )  # fmt: skip
        with rasterio.open(paths[0]) as file:
            maps.append(file.read(1))
    assert (maps[0] != maps[1]).any()


@pytest.mark.slow
def test_processes_and_batches_change_no_byte(mapper, tmp_path):
    scene = Scene(dated_scene(tmp_path, 500, 24))
    written = []
    for name, options in {
        "one": SceneOptions(batch_size=1, precision="32-true"),
        "many": SceneOptions(batch_size=7, precision="32-true"),
        "two": SceneOptions(batch_size=7, precision="32-true", workers=2),
    }.items():
        (path,) = predict_scene(mapper, scene, out=tmp_path / f"{name}.tif", options=options)
        written.append(path.read_bytes())
    assert written[1] == written[2]
    with rasterio.open(tmp_path / "one.tif") as one, rasterio.open(tmp_path / "many.tif") as many:
        assert np.mean(one.read(1) != many.read(1)) < 1e-3


def test_a_scene_of_dates_is_embedded(make_model, tmp_path):
    import pyarrow.parquet

    model, scene = make_model().eval(), Scene(dated_scene(tmp_path, 32, 48))
    out = tmp_path / "vectors.parquet"
    options = SceneOptions(precision="32-true")
    assert embed_scene(model, scene, out, options=options) == 6
    table = pyarrow.parquet.read_table(out).to_pydict()
    vectors = dict(zip(table["key"], table["vector"], strict=True))
    sample = scene.read(Window(row=16, col=32, height=16, width=16))
    with torch.no_grad():
        alone = model.encode(collate([sample], scene.modalities), ["rgb"]).pooled[0]
    key = next(k for k in vectors if k.endswith("16,32"))
    np.testing.assert_allclose(vectors[key], alone.numpy(), atol=1e-5)


def test_chips_of_a_scene_are_series(tmp_path):
    source = open_scene(dated_scene(tmp_path, more="chips: {size: 8}\n"))
    assert len(source) == 35
    sample = source.read(len(source) - 1)
    assert list(sample.dates["rgb"]) == [days_since_1970(d) for d in DATES]
    assert sample.pixels["rgb"].shape == (4, 3, 8, 8)


def test_polygons_label_chips_of_a_series(tmp_path):
    """What ``map`` trains on."""
    pytest.importorskip("pyogrio")
    ring = [[500100, 5799900], [500200, 5799900], [500200, 5799800], [500100, 5799800]]
    feature = {
        "type": "Feature",
        "properties": {"crop": "maize"},
        "geometry": {"type": "Polygon", "coordinates": [[*ring, ring[0]]]},
    }
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32630"}}
    collection = {"type": "FeatureCollection", "crs": crs, "features": [feature]}
    (tmp_path / "fields.geojson").write_text(json.dumps(collection))
    more = "chips: {size: 8}\nlabels: {vector: fields.geojson, column: crop}\n"
    source = open_scene(dated_scene(tmp_path, more=more))
    chips = [source.read(i) for i in range(len(source))]
    assert sum(int((c.label == 0).sum()) for c in chips) == 100
    assert all(len(c.dates["rgb"]) >= 2 for c in chips)


def test_dates_of_tiles_are_mosaics(tmp_path):
    """Wildcards beside the date: several files of a date are one image."""
    rng = np.random.default_rng(0)
    whole = {d: rng.integers(1, 4000, (3, 16, 32)).astype(np.uint16) for d in DATES[:2]}
    transform = rasterio.transform.from_origin
    for date, pixels in whole.items():
        for tile, left in (("west", 0), ("east", 16)):
            (tmp_path / tile).mkdir(exist_ok=True)
            write(
                tmp_path / tile / f"S2_{date.replace('-', '')}T101010.tif",
                pixels[:, :, left : left + 16], ("B4", "B3", "B2"),
                transform=transform(500000 + 10 * left, 5800000, 10, 10),
            )  # fmt: skip
    (tmp_path / "west" / "S2_mean.tif").touch()  # not a date: left out
    path = tmp_path / "scene.yaml"
    path.write_text(f"modalities:\n  rgb: {{{LAYER.replace('s2/{date}', '*/S2_{date}')}}}\n")
    sample = Scene(path).read(Window(row=0, col=0, height=16, width=32))
    assert np.array_equal(sample.pixels["rgb"], np.stack(list(whole.values())))
    assert sample.dates["rgb"][0] == days_since_1970("2021-03-01T10:10:10")


def test_products_are_a_series_with_their_clouds(tmp_path):
    """A pattern of SAFE folders: dates, offsets and cloud masks are those of each product."""
    days = {"20230527": None, "20230606": np.full((1, 24, 24), 9, np.uint8)}
    days["20230606"][:, :, :12] = 4  # cloud on the right half
    for day, classes in days.items():
        offset = -1000 if day == "20230527" else None
        safe = write_safe(
            tmp_path / "made",
            s2_numbers(),
            offset=offset,
            classes=classes,
            baseline="02.14" if offset is None else "05.10",
        )
        target = tmp_path / safe.name.replace("20230527T1121", f"{day}T1121")
        shutil.move(safe, target)
        file = next(target.glob("MTD*.xml"))
        file.write_text(file.read_text().replace("2023-05-27", f"{day[:4]}-{day[4:6]}-{day[6:]}"))
    path = tmp_path / "scene.yaml"
    path.write_text('modalities:\n  rgb: {product: "S2B_*.SAFE", bands: [B4, B3, B2]}\n')
    sample = Scene(path).read(Window(row=0, col=0, height=48, width=48))
    assert list(sample.dates["rgb"]) == [
        days_since_1970("2023-05-27"),
        days_since_1970("2023-06-06"),
    ]
    calibration = sample.calibration["rgb"]
    physical = sample.pixels["rgb"] * calibration.scale + calibration.offset
    seen = sample.valid["rgb"][:, 0]
    assert seen[0].all()
    assert seen[1, :, :24].all()
    assert not seen[1, :, 24:].any()
    raised = physical[1, :, :, :24] - physical[0, :, :, :24]
    np.testing.assert_allclose(raised, 0.1, atol=1e-6, err_msg="offsets of -0.1 and none")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("s2/{date}.tif", "s3/{date}.tif"), "no file matches"),
        (('"s2/{date}.tif"', '["s2/{date}.tif", "s2/2021-03-01.tif"]'), "stands alone"),
        (("2021-03-01", "2021-02-31"), "no date of the calendar"),
    ],
)
def test_what_is_no_series_is_refused(tmp_path, change, message):
    path = dated_scene(tmp_path)
    if change[0] == DATES[0]:
        (tmp_path / "s2" / f"{change[0]}.tif").rename(tmp_path / "s2" / f"{change[1]}.tif")
    path.write_text(path.read_text().replace(*change))
    with pytest.raises(MultiMAEError, match=message):
        Scene(path)


def test_a_series_is_no_output_of_a_scene_and_no_label(make_model, tmp_path):
    scene, model = Scene(dated_scene(tmp_path)), make_model()
    with pytest.raises(ConfigError, match="rgb has 4 dates"):
        reconstruct_scene(model, scene, outputs=["rgb"], inputs=["rgb"], out=tmp_path / "out")
    options = SceneOptions(precision="32-true")
    paths = reconstruct_scene(model, scene, inputs=["rgb"], out=tmp_path / "out", options=options)
    assert sorted(p.stem for p in paths) == ["elevation", "landcover"]
    text = "chips: {size: 8, label: rgb}\n"
    with pytest.raises(ConfigError, match="label"):
        Scene(dated_scene(tmp_path / "b", more=text))
