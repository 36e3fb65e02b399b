"""Files made to harm: refused in one line, at once, in little memory, and nothing of them runs."""

from __future__ import annotations

import json
import os
import struct
import time
import zlib
from pathlib import Path

import pytest

pytest.importorskip("rasterio")
if not hasattr(os, "mkfifo") or not Path("/proc/self/statm").exists():
    pytest.skip("a Unix matter", allow_module_level=True)

from multimae_eo.errors import CheckpointError, ConfigError, FormatError
from multimae_eo.sources.geobench.safe_pickle import load_pickle
from multimae_eo.sources.hdf5 import open_hdf5
from multimae_eo.sources.yaml_section import parse_yaml
from tests.fuzz.harness import Bench

LAUGHS = "\n".join(
    [f"a0: &a0 [{', '.join(['x'] * 9)}]"]
    + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
)
MERGES = "\n".join(
    ["b0: &b0 {k: 1}"] + [f"b{i}: &b{i} {{<<: [{', '.join([f'*b{i - 1}'] * 9)}]}}"
                          for i in range(1, 12)]
)  # fmt: skip


@pytest.fixture(autouse=True)
def _at_once():
    begun = time.process_time()
    yield
    assert time.process_time() - begun < 8  # the fixtures' imports included


@pytest.mark.parametrize(
    "text",
    [LAUGHS, MERGES, "a: &a [*a]", "[" * 5000, "!!bool maybe", "!!int " + "9" * 5000,
     "!!timestamp 1", "!!python/object/apply:os.system [id]", "a: 1\na: 2", "\x0b"],
)  # fmt: skip
def test_yaml(text):
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text, "x.yaml")
    assert str(caught.value).startswith("x.yaml")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("kind", ["dataset-yaml", "recipe-yaml", "scene-yaml", "run-recipe"])
def test_laughs_in_every_yaml(tmp_path, kind):
    bench = Bench(kind, tmp_path / "input")
    assert not (problem := bench.problem(bench.files[0], LAUGHS.encode())), problem


@pytest.mark.parametrize(
    "kind",
    ["dataset-yaml", "recipe-yaml", "scene-yaml", "store-json", "store-index", "store-npy",
     "model-json", "model-weights", "geoparquet", "run-recipe", "run-metrics", "checkpoint-pth",
     "mmearth-h5", "mmearth-json", "geobench-json", "split-csv"],
)  # fmt: skip
def test_a_pipe_in_a_files_place(tmp_path, kind):
    bench = Bench(kind, tmp_path / "input")
    path = bench.files[0]
    path.unlink()
    os.mkfifo(path)
    from tests.fuzz.harness import run_case

    assert not (problem := run_case(bench.folder, bench.kind.command)), problem


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [("encoder", "width", 10**9), ("encoder", "width", 60_000), ("encoder", "depth", 10**9),
     ("encoder", "depth", 1000), ("decoder", "width", 60_000), ("encoder", "width", "x"),
     ("encoder", "mlp_ratio", 1e9)],
)  # fmt: skip
def test_a_model_larger_than_its_weights(tmp_path, part, key, value):
    from multimae_eo.model_folder.folder import load_model

    bench = Bench("model-weights", tmp_path / "input")
    path = bench.folder / "model/config.json"
    config = json.loads(path.read_text())
    config["model"][part][key] = value
    path.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="model"):
        load_model(bench.folder / "model")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(tmp_path, value):
    from safetensors.torch import load_file, save_file

    from multimae_eo.model_folder.folder import load_model

    bench = Bench("model-weights", tmp_path / "input")
    weights = load_file(bench.files[0])
    name = sorted(weights)[3]
    weights[name].view(-1)[0] = value
    save_file(weights, bench.files[0])
    with pytest.raises(CheckpointError, match=f"{name}: 1 of .* NaN or infinite"):
        load_model(bench.folder / "model")


def test_statistics_that_are_not_finite(tmp_path):
    from multimae_eo.model_folder.folder import load_model

    bench = Bench("model-weights", tmp_path / "input")
    path = bench.folder / "model/modalities.json"
    path.write_text(path.read_text().replace('"mean": [\n', '"mean": [NaN, ', 1))
    with pytest.raises(CheckpointError):
        load_model(bench.folder / "model")


def doubled(rounds: int, *, key: bool) -> bytes:
    """A tuple of two equal tuples, and so on; as a key of a dictionary, or in a list."""
    code = b"N\x85q\x00" + b"".join(
        b"h" + bytes([i]) + b"h" + bytes([i]) + b"\x86q" + bytes([i + 1]) for i in range(rounds)
    )
    last = b"h" + bytes([rounds])
    return b"\x80\x02" + code + (b"}" + last + b"Ns." if key else b"]" + last + b"a.")


@pytest.mark.parametrize("key", [True, False])
def test_a_pickle_that_makes_much_of_little(key):
    data = doubled(40, key=key)
    assert len(data) < 400
    with pytest.raises(FormatError, match="pickle cannot be decoded"):
        load_pickle(data, "x")


@pytest.mark.parametrize("kind", ["external", "soft", "virtual", "elsewhere"])
def test_hdf5_that_points_out_of_itself(tmp_path, kind):
    import h5py

    other = tmp_path / "secret.bin"
    other.write_bytes(bytes(64))
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        if kind == "external":
            file["x"] = h5py.ExternalLink(str(other), "/x")
        elif kind == "soft":
            file["x"] = h5py.SoftLink("/x")
        elif kind == "virtual":
            layout = h5py.VirtualLayout((4,), "u1")
            layout[:] = h5py.VirtualSource(str(other), "x", (4,))
            file.create_virtual_dataset("x", layout)
        else:
            file.create_dataset("x", (8,), "u1", external=[(str(other), 0, 8)])
    with pytest.raises(FormatError, match=r"a\.h5: 'x' (is a link|keeps its data)"):
        open_hdf5(path)


def test_hdf5_groups_are_looked_through(tmp_path):
    import h5py

    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["a/b/data"] = [1, 2]
        file["a/b/itself"] = file["a"]
    open_hdf5(path).close()
    with h5py.File(path, "a") as file:
        file["a/b/x"] = h5py.ExternalLink("other.h5", "/x")
    with pytest.raises(FormatError, match=r"a\.h5: 'x' is a link"):
        open_hdf5(path)


def test_exported_graphs_geojson_and_vrt_are_read_through_doors(tmp_path):
    from multimae_eo.export.files import read_record
    from multimae_eo.sources.raster import vrt
    from multimae_eo.sources.stac.stac_file import _geojson

    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FormatError, match="is a pipe"):
        read_record(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="is a pipe"):
        _geojson(tmp_path / "pipe")
    area = tmp_path / "area.json"
    for text in ('{"type": "FeatureCollection", "features": [1]}', "[" * 5000, "[1]", "null",
                 '{"type": "Polygon"}'):  # fmt: skip
        area.write_text(text)
        with pytest.raises(ConfigError, match=r"area\.json: ") as caught:
            _geojson(area)
        assert "\n" not in str(caught.value)
    huge = tmp_path / "huge.vrt"
    with huge.open("wb") as file:
        file.truncate(vrt._MOST_BYTES + 1)
    with pytest.raises(FormatError, match="a VRT of more than"):
        vrt.require_beside(huge)


def png(width: int, height: int) -> bytes:
    """The header of a picture, and next to no pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000)))
        + chunk(b"IEND", b"")
    )  # fmt: skip


@pytest.mark.parametrize("size", [(60_000, 60_000), (2**31 - 1, 2**31 - 1), (16, 2**31 - 1)])
def test_a_picture_of_absurd_size(tmp_path, size):
    bench = Bench("png", tmp_path / "input")
    assert not (problem := bench.problem(bench.files[0], png(*size))), problem


@pytest.mark.parametrize("name", ["a.gpkg", "a.geojson", "a.shp", "a.fgb", "a.parquet"])
def test_a_vector_file_that_names_others_is_not_opened(tmp_path, name):
    from multimae_eo.sources.vector.vector_file import read_features

    path = tmp_path / name
    source = "<OGRVRTDataSource><OGRVRTLayer name='x'><SrcDataSource>/etc/passwd</SrcDataSource>"
    path.write_text(source + "</OGRVRTLayer></OGRVRTDataSource>")
    with pytest.raises(FormatError, match="is no GeoPackage, GeoJSON"):
        read_features(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(FormatError, match="is a pipe"):
        read_features(path)
