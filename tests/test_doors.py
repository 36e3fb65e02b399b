"""Files of others are read through doors: functions that bound size and depth, refuse pipes, and
turn whatever a library raises into one line. No other line of ``src`` opens a file to read it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.support.paths import ROOT

SRC = ROOT / "src" / "multimae_eo"
READS = {
    "yaml.load", "yaml.safe_load", "yaml.safe_load_all", "json.load", "json.loads", "np.load",
    "np.fromfile", "np.memmap", "np.loadtxt", "np.genfromtxt", "h5py.File", "rasterio.open",
    "pq.read_table", "pq.ParquetFile", "pq.read_schema", "torch.load", "onnx.load", "safe_open",
    "load_file", "pickle.load", "pickle.loads", "pystac.read_file", "Image.open", "zipfile.ZipFile",
    "tarfile.open", "ET.parse", "ET.fromstring", "open", "io.open", "os.open",
}  # fmt: skip
METHODS = {"open", "read_text", "read_bytes"}

# (file, call) → why it may stand there.
ALLOWED = {
    ("api/accuracy.py", "open"): "ClassMap.open, by way of open_dataset",
    ("api/map_making.py", "open"): "ClassMapRaster.open, by way of open_dataset",
    ("cli/data_commands.py", "read_text"): "a draft that this command has just written",
    ("cli/main.py", "os.open"): "the null device",
    ("convert/reference.py", "torch.load"): "the door of .pth files: weights only, errors caught",
    ("demo/server.py", "read_bytes"): "the page's files, which the package holds",
    ("download/records.py", "read_text"): "the package's registry",
    ("download/transfer.py", "open"): "a download that is written, and its checksum",
    ("download/unpack.py", "open"): "members, inside `reading`; the archive, after require_regular",
    ("download/unpack.py", "tarfile.open"): "inside `reading`, after require_regular",
    ("download/unpack.py", "zipfile.ZipFile"): "inside `reading`, after require_regular",
    ("evaluation/trials.py", "json.loads"): "inside TrialFiles.get, the door of kept trials",
    ("evaluation/trials.py", "np.load"): "inside TrialFiles.get, the door of kept trials",
    ("evaluation/map_plan.py", "json.loads"): "settings that this process has just made",
    ("evaluation/map_plan.py", "read_bytes"): "a checksum of labels that read_features read",
    ("evaluation/map_record.py", "open"): "ClassMapRaster.open, by way of open_dataset",
    ("export/files.py", "onnx.load"): "inside read_record, the door of exported graphs",
    ("export/files.py", "zipfile.ZipFile"): "inside read_record, the door of exported graphs",
    ("files.py", "json.loads"): "parse_json, the door; and locks, whose damage is an ended holder",
    ("files.py", "open"): "a lock, of at most 4 KB",
    ("files.py", "os.open"): "to sync a file, or to make a lock",
    ("files.py", "read_bytes"): "/proc",
    ("files.py", "read_text"): "read_text, the door",
    ("inference/search.py", "pq.ParquetFile"): "inside `reading`, after require_regular",
    (
        "inference/vector_codes.py",
        "json.loads",
    ): "metadata of a file that was opened, errors caught",
    ("info/files.py", "pq.ParquetFile"): "inside `reading`, after require_regular",
    ("model_folder/checks.py", "safe_open"): "inside the door of model folders, require_regular",
    ("model_folder/folder.py", "load_file"): "inside the door of model folders, after its checks",
    ("model_folder/folder.py", "read_bytes"): "a checksum of files that were loaded",
    ("reports/html.py", "Image.open"): "the header of bytes that were read, errors caught",
    ("reports/html.py", "read_bytes"): "after require_regular, errors caught",
    ("runtime.py", "read_text"): "/sys/fs/cgroup",
    ("scenes/blocks.py", "json.loads"): "the plan that this process has just made",
    ("scenes/blocks.py", "open"): "rows that this command wrote",
    ("scenes/embedding_pairs.py", "pq.ParquetFile"): "inside `reading`, after require_regular",
    ("scenes/geoparquet.py", "np.memmap"): "rows that this command wrote",
    ("scenes/quick_look.py", "rasterio.open"): "a map that this command wrote",
    ("scenes/raster_output.py", "rasterio.open"): "a map that this command writes",
    ("sources/unsupported_files.py", "open"): "512 bytes of a regular file, errors caught",
    ("sources/dataset/chip_files.py", "pq.read_table"): "inside `reading`, after require_regular",
    ("sources/dataset/dataset_file.py", "open"): "of this package, by way of read_raster",
    ("sources/geobench2/tortilla.py", "open"): "inside `reading`, after require_regular",
    ("sources/geobench2/tortilla.py", "pq.read_table"): "of bounded size, inside `reading`",
    ("sources/geobench2/tortilla.py", "rasterio.open"): "GeoTIFF's driver, inside `reading`",
    ("sources/hdf5.py", "h5py.File"): "open_hdf5, the door",
    ("sources/point_series.py", "pq.read_table"): "inside `reading`, after require_regular",
    (
        "sources/products/product.py",
        "ET.fromstring",
    ): "of bounded size, without entities, errors caught",
    ("sources/raster/reading.py", "Image.open"): "inside _reading, the door of rasters",
    ("sources/raster/reading.py", "np.load"): "inside _reading, the door of rasters",
    ("sources/raster/reading.py", "open"): "64 bytes of a regular file",
    ("sources/raster/reading.py", "rasterio.open"): "open_dataset, the door: one driver",
    ("sources/raster/vrt.py", "ET.fromstring"): "of bounded size, without entities, errors caught",
    ("sources/raster/vrt.py", "read_bytes"): "of a regular file of bounded size",
    ("sources/scene/scene.py", "read_bytes"): "a checksum of a scene file that load_yaml read",
    ("sources/stac/items.py", "open"): "a STAC API's address, inside item_errors",
    ("sources/stac/items.py", "pystac.read_file"): "inside item_errors, the door of catalogues",
    ("sources/synthetic.py", "open"): "a raster in memory that is written",
    ("sources/vector/vector_file.py", "open"): "64 bytes, inside `reading`, after require_regular",
    ("sources/vector/vector_file.py", "pq.read_schema"): "inside `reading`, after require_regular",
    ("sources/vector/vector_file.py", "pq.read_table"): "inside `reading`, after require_regular",
    ("store/append.py", "pq.read_table"): "inside `reading`, after require_regular",
    ("store/layout.py", "open"): "a checksum of a store's files",
    ("store/reader.py", "np.load"): "after require_regular, errors caught",
    ("store/reader.py", "pq.ParquetFile"): "after require_regular, errors caught",
    ("store/writer.py", "json.loads"): "the plan that this process has just made",
    ("train/options.py", "yaml.safe_load"): "YAML that this process has just made",
    ("train/recipe.py", "read_text"): "the package's recipes",
    ("train/run.py", "torch.load"): "read_checkpoint, the door of checkpoints: weights only",
    ("train/run.py", "zipfile.ZipFile"): "read_checkpoint, the door of checkpoints",
}


def calls(path: Path) -> Iterator[str]:
    """Calls in a file that read a file or parse one's content, by name."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call) or _writes(node):
            continue
        if ast.unparse(node.func) in READS:
            yield ast.unparse(node.func)
        elif isinstance(node.func, ast.Attribute) and node.func.attr in METHODS:
            yield node.func.attr


def _writes(call: ast.Call) -> bool:
    """Whether a call opens a file to write to it."""
    arguments = [*call.args, *(k.value for k in call.keywords)]
    modes = [a.value for a in arguments if isinstance(a, ast.Constant)]
    return any(isinstance(m, str) and m[:1] in "wax" and len(m) <= 3 and m for m in modes)


def test_nothing_is_read_past_the_doors():
    found = {
        (path.relative_to(SRC).as_posix(), call)
        for path in sorted(SRC.rglob("*.py"))
        for call in calls(path)
    }
    beyond = sorted(f"{file}: {call}" for file, call in found - set(ALLOWED))
    assert not beyond, f"read through a door (files.read_json, load_yaml, open_dataset …): {beyond}"
    assert sorted(set(ALLOWED) - found) == [], "no longer read there"


def test_reading_is_recognised(tmp_path):
    text = (
        "json.load(f)\npath.open()\npath.open('wb')\nopen(p, mode='w')\nnp.load(p)\np.read_text()"
    )
    (tmp_path / "a.py").write_text(text)
    assert list(calls(tmp_path / "a.py")) == ["json.load", "open", "np.load", "read_text"]
