"""Zarr, NetCDF and xarray objects as rasters: the same pixels, masks and maps as a GeoTIFF's."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import multimae_eo
from multimae_eo.catalog import make_modality
from multimae_eo.errors import BandError, ConfigError, FormatError
from multimae_eo.geo import Window
from multimae_eo.modality import ModalitySet
from multimae_eo.sources.raster.arrays import cube_name, cube_rasters
from multimae_eo.sources.raster.reading import read_header, read_raster
from multimae_eo.sources.scene.scene import Scene
from multimae_eo.sources.scene.single_raster import RasterRule
from tests.support.paths import DATA

rasterio = pytest.importorskip("rasterio")
xr = pytest.importorskip("xarray")
pytest.importorskip("zarr")
pytest.importorskip("h5netcdf")
rioxarray = pytest.importorskip("rioxarray")

from tests.support.scene_files import optical_scene, write  # noqa: E402

RGB = make_modality("rgb", sensor_name="sentinel2", bands=("B4", "B3", "B2"))
RGB = replace(RGB, scale=1e-4)
SET = ModalitySet([RGB])
RULE = RasterRule(level="l2a")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """``s2.tif`` and the same as cubes, all written by rioxarray."""
    made = tmp_path_factory.mktemp("cubes")
    optical_scene(made, 40, 60, hole=np.s_[:16, :16])
    stack = rioxarray.open_rasterio(made / "s2.tif")
    stack.name = "optical"
    (made / "stack").mkdir()
    stack.to_dataset().to_zarr(made / "stack/s2.zarr")
    stack.to_dataset().to_netcdf(made / "stack/s2.nc", engine="h5netcdf")
    named = stack.assign_coords(band=list(stack.attrs["long_name"]))
    variables = named.to_dataset(dim="band")
    for name in variables.data_vars:
        variables[name].attrs = {"_FillValue": 0}
    variables.to_zarr(made / "variables/s2.zarr")
    named.isel(y=slice(None, None, -1)).to_dataset(name="optical").to_zarr(made / "south/s2.zarr")
    return made


CUBES = [
    "stack/s2.zarr",
    "stack/s2.nc",
    "variables/s2.zarr",
    "south/s2.zarr",
    "stack/s2.zarr::optical",
]


@pytest.mark.parametrize("name", CUBES)
def test_a_cube_has_the_header_and_pixels_of_the_geotiff(folder, name):
    expected, raster = read_raster(folder / "s2.tif"), read_raster(folder / name)
    ours, theirs = raster.header, expected.header
    at = [ours.names.index(n) for n in theirs.names]
    assert theirs.names == ("B4", "B3", "B2")
    assert sorted(ours.names) == sorted(theirs.names)
    for field in ("shape", "dtype", "nodata", "transform", "crs", "geometry", "alpha"):
        assert getattr(ours, field) == getattr(theirs, field), field
    assert np.array_equal(raster.pixels[at], expected.pixels)
    assert np.array_equal(raster.observed(at), expected.observed([0, 1, 2]))
    assert ours.south_up == (name == "south/s2.zarr")


@pytest.mark.parametrize("name", [*CUBES, "memory", "dask"])
def test_a_cube_gives_the_same_map_byte_for_byte(make_model, folder, tmp_path, name):
    model = make_model().eval()

    def mapped(scene: Any, out: Path) -> bytes:
        options: Any = {
            "inputs": ["rgb"],
            "outputs": ["elevation"],
            "level": "l2a",
            "device": "cpu",
        }
        paths = multimae_eo.reconstruct(model, scene=scene, out=out, **options)
        assert isinstance(paths, list)
        return paths[0].read_bytes()

    if name in ("memory", "dask"):
        chunks = {"y": 16, "x": 16} if name == "dask" else None
        scene: Any = rioxarray.open_rasterio(folder / "s2.tif", chunks=chunks)
        scene.name = "s2"  # which is in a warning among the map's tags
    else:
        scene = folder / name
    assert mapped(scene, tmp_path / "b") == mapped(folder / "s2.tif", tmp_path / "a")


def test_windows_are_read_lazily(folder):
    """Of a Dask array only the chunks of the window are computed."""
    dask = pytest.importorskip("dask.array")
    read = []

    def block(block_info):
        place = block_info[None]["chunk-location"]
        read.append(place)
        return np.full(block_info[None]["chunk-shape"], sum(place) + 1, np.uint16)

    pixels = dask.map_blocks(block, chunks=((3,), (16,) * 8, (16,) * 8), dtype=np.uint16)
    array = xr.DataArray(
        pixels, dims=("band", "y", "x"), name="optical",
        coords={
            "band": ["B4", "B3", "B2"],
            "y": 5.8e6 - 10 * np.arange(128) - 5, "x": 5e5 + 10 * np.arange(128) + 5,
        },
        attrs={"crs": "EPSG:32630"},
    )  # fmt: skip
    scene = Scene.of_arrays(array, SET, RULE)
    assert read == []
    from multimae_eo.geo import Window

    sample = scene.read(Window(row=32, col=48, height=16, width=32))
    assert set(read) == {(0, 2, 3), (0, 2, 4)}
    assert sample.pixels["rgb"][0, 0, [0, 16]].tolist() == [6, 7]


def test_embed_and_open_source_take_arrays(make_model, folder, tmp_path):
    array = rioxarray.open_rasterio(folder / "s2.tif")
    out = tmp_path / "e.parquet"
    options: Any = {"inputs": ["rgb"], "level": "l2a", "device": "cpu"}
    assert multimae_eo.embed(make_model().eval(), scene=array, out=out, **options) == 11
    source = multimae_eo.open_source(array, modalities=SET, chips={"size": 20}, level="l2a")
    assert len(source) == 6
    cube = folder / "variables/s2.zarr"
    again = multimae_eo.open_source(cube, modalities=SET, chips={"size": 20}, level="l2a")
    for index in range(6):
        ours, theirs = source.read(index), again.read(index)
        assert np.array_equal(ours.pixels["rgb"], theirs.pixels["rgb"])
        assert ours.calibration["rgb"].scale == 1e-4
    copied = pickle.loads(pickle.dumps(source))
    assert np.array_equal(copied.read(3).pixels["rgb"], source.read(3).pixels["rgb"])
    with pytest.raises(ConfigError, match=r"modalities=… .* and chips="):
        multimae_eo.open_source(array)
    with pytest.raises(ConfigError, match="give modalities"):
        multimae_eo.open_source(cube, chips={"size": 20})


def test_scale_and_fill_value_are_obeyed_as_tags_are(folder, tmp_path):
    """``scale_factor`` and ``add_offset`` of an undecoded array; a decoded one is physical."""
    from multimae_eo.geo import Window

    dn = np.load(folder / "red.npy")
    write(tmp_path / "t.tif", dn, ("B4", "B3", "B2"))
    with rasterio.open(tmp_path / "t.tif", "r+") as file:
        file.scales, file.offsets = (2e-4,) * 3, (-0.1,) * 3
    raw = rioxarray.open_rasterio(tmp_path / "t.tif")
    raw.name = "optical"
    raw.to_dataset().to_zarr(tmp_path / "t.zarr")
    decoded = rioxarray.open_rasterio(tmp_path / "t.tif", mask_and_scale=True)
    window = Window(row=0, col=0, height=40, width=60)
    expected = Scene.of_raster(tmp_path / "t.tif", SET, RULE).read(window)
    for data in (raw, tmp_path / "t.zarr"):
        opened = (
            Scene.of_raster(data, SET, RULE) if isinstance(data, Path)
            else Scene.of_arrays(data, SET, RULE)
        )  # fmt: skip
        sample = opened.read(window)
        assert sample.calibration == expected.calibration
        assert sample.calibration["rgb"].scale == 2e-4
        assert np.array_equal(sample.pixels["rgb"], expected.pixels["rgb"])
        assert np.array_equal(sample.valid["rgb"], expected.valid["rgb"])
    sample = Scene.of_arrays(decoded, SET, RULE).read(window)
    assert (sample.calibration["rgb"].scale, sample.calibration["rgb"].offset) == (1.0, 0.0)
    assert np.array_equal(sample.valid["rgb"], expected.valid["rgb"])
    physical = expected.pixels["rgb"] * 2e-4 - 0.1
    ok = np.broadcast_to(expected.valid["rgb"], physical.shape)
    assert np.abs(sample.pixels["rgb"] - physical)[ok].max() < 1e-6


def test_variables_of_several_grids_are_several_rasters(folder, tmp_path):
    stack = xr.open_zarr(folder / "variables/s2.zarr", mask_and_scale=False)
    half = stack[["B4"]].isel(y=slice(0, 40, 2), x=slice(0, 60, 2)).rename(
        B4="B11", y="northing", x="easting"
    )  # fmt: skip
    cube = xr.merge([stack, half])
    cube["scl"] = cube["B4"].astype("uint8")
    cube.to_zarr(tmp_path / "mixed.zarr")
    names = [p.name for p in cube_rasters(tmp_path / "mixed.zarr")]
    assert sorted(names) == ["mixed.zarr::B11", "mixed.zarr::B2+B3+B4", "mixed.zarr::scl"]
    with pytest.raises(FormatError, match=r"several grids or dtypes.*mixed\.zarr::B"):
        read_header(tmp_path / "mixed.zarr")
    scene = Scene.of_raster(tmp_path / "mixed.zarr", SET, RULE)
    assert scene.grid.height == 40


def dated(folder: Path, count: int = 3):
    stack = xr.open_zarr(folder / "variables/s2.zarr", mask_and_scale=False)
    times = np.array(["2021-05-27", "2021-06-11", "2021-06-30"], "datetime64[ns]")[:count]
    cube = xr.concat([stack + i for i in range(count)], dim=xr.Variable("time", times))
    return cube.assign_coords(spatial_ref=stack.spatial_ref)


def test_a_date_is_chosen_by_name(folder, tmp_path):
    cube = dated(folder).astype("uint16")
    for name in cube.data_vars:
        cube[name].attrs = {"_FillValue": 0}
    cube.to_zarr(tmp_path / "dates.zarr")
    first = read_raster(folder / "s2.tif").pixels[::-1]
    for text, change in (("@2021-05", 0), ("@2021-06-11", 1), ("::B3@2021-06-30", 2)):
        pixels = read_raster(tmp_path / f"dates.zarr{text}").pixels
        assert np.array_equal(pixels, (first if "::" not in text else first[1:2]) + change)
    with pytest.raises(FormatError, match=r"3 dates.*name one: .*dates.zarr@2021-05-27"):
        read_header(tmp_path / "dates.zarr")
    with pytest.raises(FormatError, match="2 dates"):
        read_header(tmp_path / "dates.zarr@2021-06")
    with pytest.raises(FormatError, match="no date '2020-01-01'"):
        read_header(tmp_path / "dates.zarr@2020-01-01")
    scene = Scene.of_raster(tmp_path / "dates.zarr@2021-06-11", SET, RULE)
    assert scene.time == "2021-06-11T00:00:00"


def test_dates_of_a_cube_are_a_series(folder, tmp_path):
    """All, those of a part of a year, from a scene file, and in memory."""
    cube = dated(folder).astype("uint16")
    for name in cube.data_vars:
        cube[name].attrs = {"_FillValue": 0}
    cube.to_zarr(tmp_path / "dates.zarr")
    text = (folder / "scene.yaml").read_text()
    (tmp_path / "scene.yaml").write_text(text.replace("s2.tif", '"dates.zarr@{date}"'))
    memory = cube.transpose("y", "time", "x")
    scenes = [
        Scene.of_raster(tmp_path / "dates.zarr", SET, RULE),
        Scene(tmp_path / "scene.yaml"),
        Scene.of_arrays(memory, SET, replace(RULE, scale=1e-4)),
    ]
    image = Scene(folder / "scene.yaml").read(Window(row=10, col=20, height=8, width=9))
    for scene in scenes:
        sample = scene.read(Window(row=10, col=20, height=8, width=9))
        assert sample.pixels["rgb"].shape == (3, 3, 8, 9)
        assert [float(d) for d in sample.dates["rgb"]] == [18774.0, 18789.0, 18808.0]
        for date in range(3):
            assert np.array_equal(sample.pixels["rgb"][date], image.pixels["rgb"] + date)
        assert scene.time is None or scene is scenes[1]
    june = Scene.of_raster(tmp_path / "dates.zarr@2021-06", SET, RULE)
    assert june.dates == {"rgb": (18789.0, 18808.0)}


def test_a_scene_file_names_variables(folder, tmp_path):
    text = (folder / "scene.yaml").read_text()
    for path in ("variables/s2.zarr::B2+B3+B4", "stack/s2.zarr", "stack/s2.nc::optical"):
        (tmp_path / "scene.yaml").write_text(text.replace("s2.tif", str(folder / path)))
        scene, expected = Scene(tmp_path / "scene.yaml"), Scene(folder / "scene.yaml")
        assert scene.grid == expected.grid
        ours, theirs = (s.read(s.grid.extent) for s in (scene, expected))
        assert np.array_equal(ours.pixels["rgb"], theirs.pixels["rgb"])
    alone = "[{0}::B4, {0}::B3, {0}::B2]".format(folder / "variables/s2.zarr")
    (tmp_path / "scene.yaml").write_text(text.replace("s2.tif", alone))
    stacked = Scene(tmp_path / "scene.yaml")
    assert np.array_equal(stacked.read(stacked.grid.extent).pixels["rgb"], theirs.pixels["rgb"])


def broken(cube, kind: str):  # noqa: PLR0911 - a fault each
    """A cube with one fault."""
    if kind == "unsorted":
        return cube.isel(x=[0, 2, 1, *range(3, 60)])
    if kind == "uneven":
        return cube.isel(x=[*range(50), *range(52, 60)])
    if kind == "no crs":
        return cube.drop_vars("spatial_ref")
    if kind == "text times":
        return cube.expand_dims(time=["2021-05-27"])
    if kind == "numbered times":
        return cube.expand_dims(time=[0])
    if kind == "other dims":
        return cube.rename(x="a")
    if kind == "four dims":
        return cube.expand_dims(run=[0]).expand_dims(member=[0])
    if kind == "swapped":
        geographic = cube.rio.write_crs("EPSG:4326")
        return geographic.assign_coords(
            y=100 + 1e-4 * np.arange(40), x=50 + 1e-4 * np.arange(60)
        )  # fmt: skip
    if kind == "swapped names":
        geographic = cube.rio.write_crs("EPSG:4326").assign_coords(
            y=10 + 1e-4 * np.arange(40), x=50 + 1e-4 * np.arange(60)
        )
        geographic["y"].attrs["units"] = "degrees_east"
        return geographic
    geographic = cube.rio.write_crs("EPSG:4326")
    return geographic.assign_coords(y=5.8e6 - np.arange(40), x=5e5 + np.arange(60))


FAULTS = {
    "unsorted": r"'x': is not sorted \(500015 is followed|'x': is not sorted .*sortby",
    "uneven": r"'x': is not evenly spaced \(steps of 10 to 30\)",
    "no crs": "has no CRS",
    "text times": r"'time' holds .*2021-05-27.*not dates; convert it: .*to_datetime",
    "numbered times": "'time' holds .*0.*not dates",
    "other dims": r"which of its dimensions \(y, a\) are rows and columns\? rename",
    "four dims": "besides rows and columns it has the dimensions member, run",
    "swapped": r"'y' \(100 to 100\.004\) holds longitudes: longitude and latitude are swapped",
    "swapped names": "longitude and latitude are swapped; rename them",
    "metres": "are no degrees, but its CRS is geographic",
}


@pytest.mark.parametrize("kind", FAULTS)
def test_a_broken_cube_is_refused_in_one_line(folder, tmp_path, kind):
    cube = xr.open_zarr(folder / "variables/s2.zarr", mask_and_scale=False)
    faulty = broken(cube, kind)
    with pytest.raises(FormatError, match=FAULTS[kind]) as raised:
        Scene.of_arrays(faulty, SET, RULE)
    assert "\n" not in str(raised.value)
    for name in faulty.data_vars:
        faulty[name].encoding = {}
    faulty.drop_encoding().to_zarr(tmp_path / "faulty.zarr")
    with pytest.raises(FormatError, match=FAULTS[kind]):
        Scene.of_raster(tmp_path / "faulty.zarr", SET, RULE)


def test_what_is_no_cube_is_refused(folder, refused, make_model, tmp_path):
    with pytest.raises(FormatError, match="no variable 'red'; "):
        read_header(folder / "variables/s2.zarr::red")
    with pytest.raises(FormatError, match=r"none\.zarr: no such file"):
        read_header(tmp_path / "none.zarr")
    (tmp_path / "junk.nc").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(200))
    with pytest.raises(FormatError, match="cannot be read as NetCDF"):
        read_header(tmp_path / "junk.nc")
    (tmp_path / "junk.zarr").mkdir()
    (tmp_path / "junk.zarr/zarr.json").write_text("{")
    with pytest.raises(FormatError, match="cannot be read as Zarr"):
        read_header(tmp_path / "junk.zarr")
    xr.Dataset({"a": ("t", [1, 2])}).to_zarr(tmp_path / "flat.zarr")
    with pytest.raises(FormatError, match="holds no raster"):
        read_header(tmp_path / "flat.zarr")
    with pytest.raises(BandError, match=r"B4"):
        Scene.of_raster(folder / "variables/s2.zarr::B3+B2", SET, RULE)
    make_model().save_pretrained(tmp_path / "model")
    message = refused(
        "embed", "--model", str(tmp_path / "model"), "--device", "cpu", "--inputs", "rgb",
        "--scene", str(folder / "variables/s2.zarr"), "--out", str(tmp_path / "e.parquet"),
    )  # fmt: skip
    assert "--level l1c or l2a" in message
    message = refused("prepare", str(folder / "stack/s2.zarr"), "--out", str(tmp_path / "store"))
    assert "name its variable in a scene file" in message


def test_paths_are_taken_for_cubes_by_name_or_content(folder, tmp_path):
    assert cube_name("a/b.zarr::red+nir@2021-05-27").names == ("red", "nir")
    assert str(cube_name("a/b.nc@2021")) == "a/b.nc@2021"
    assert cube_name("a/b.tif") is None
    (tmp_path / "odd.nc@1.tif").write_bytes(b"")
    assert cube_name(tmp_path / "odd.nc@1.tif") is None
    link = tmp_path / "cube"
    link.symlink_to(folder / "stack/s2.zarr")
    assert cube_name(link) is not None
    assert read_header(link).count == 3


@pytest.mark.slow
@pytest.mark.skipif(not (DATA / "scene_aberystwyth").exists(), reason="its data need rasterio")
def test_a_real_scene_as_zarr_gives_the_same_map(make_model, tmp_path):
    from rasterio.merge import merge

    tiles = sorted((DATA / "scene_aberystwyth").rglob("*.tif"))
    stacks = [p for p in tiles if rasterio.open(p).count == 10]
    assert len(stacks) == 16
    pixels, transform = merge(stacks)
    with rasterio.open(stacks[0]) as file:
        crs = file.crs
    part = pixels[[2, 1, 0], 300:460, 300:500].astype("uint16")
    moved = transform @ type(transform).translation(300, 300)
    write(tmp_path / "s.tif", part, ("B4", "B3", "B2"), crs=crs, transform=moved)
    rioxarray.open_rasterio(tmp_path / "s.tif").to_dataset(name="optical").to_zarr(
        tmp_path / "s.zarr"
    )
    maps = []
    for name in ("s.tif", "s.zarr"):
        paths = multimae_eo.reconstruct(
            make_model().eval(), scene=tmp_path / name, out=tmp_path / f"{name}.out",
            inputs=["rgb"], outputs=["elevation"], level="l2a", scale=1e-3, device="cpu",
        )  # fmt: skip
        assert isinstance(paths, list)
        maps.append(paths[0].read_bytes())
    assert maps[0] == maps[1]
