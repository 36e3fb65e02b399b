"""Records fetched as a user fetches them, from a server on this machine."""

from __future__ import annotations

import hashlib
import io
import json
import threading
import zipfile
from pathlib import Path

import pytest
import yaml

import multimae_eo
from multimae_eo.download import fetch as module
from multimae_eo.download import records
from multimae_eo.download.fetch import configured_mirrors, fetch_record, mirror_address
from multimae_eo.download.records import PublicRecord
from multimae_eo.errors import ConfigError, DownloadError, OutputError
from tests.support.download_server import DownloadServer


def zip_of(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"top/{name.replace('__', '/')}.tif", content)
    return buffer.getvalue()


ARCHIVE = zip_of(River__1=b"r" * 50_000, Forest__2=b"f")
TABLE = b"id,split\n1,train\n"


@pytest.fixture
def server(server: DownloadServer) -> DownloadServer:
    """The folder's server, with a data set."""
    server.add("/set/a.zip", ARCHIVE)
    server.add("/set/table.csv", TABLE)
    return server


@pytest.fixture
def record(tmp_path: Path) -> PublicRecord:
    """An archive with a checksum, and a table without one."""
    return written(tmp_path / "records.yaml", md5=hashlib.md5(ARCHIVE).hexdigest())


def written(path: Path, **of_archive: object) -> PublicRecord:
    unpack = {"at_most": 1_000_000, "files": 10, "keep": ["*.tif"]}
    files = [
        {"name": "a.zip", "bytes": len(ARCHIVE), "unpack": unpack, **of_archive},
        {"name": "table.csv", "at_most": 1000},
    ]
    content = {"title": "A set", "licence": "MIT", "source": "https://a.org", "folder": "deep/set",
               "note": "no address", "files": files}  # fmt: skip
    path.write_text(yaml.safe_dump({"set": content}))
    return records.public_record("set", path)


def fetched(record: PublicRecord, out: Path, server: DownloadServer, **options: object):
    return fetch_record(record, out, mirrors=[server.address], wait=lambda seconds: None, **options)  # type: ignore[arg-type]


def names(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_a_record_becomes_a_folder(server, record, tmp_path):
    stages: list[tuple[str, int, int | None]] = []
    out = tmp_path / "out"
    result = fetched(record, out, server, progress=lambda *stage: stages.append(stage))
    assert result.folder == out / "deep/set"
    assert names(result.folder) == ["Forest/2.tif", "River/1.tif", "table.csv"]
    assert (result.folder / "table.csv").read_bytes() == TABLE
    assert [f.verified for f in result.files] == ["published", "first use"]
    assert [f.name for f in result.first_use] == ["table.csv"]
    assert result.files[1].sha256 == hashlib.sha256(TABLE).hexdigest()
    assert ("unpack", 2, 2) in stages
    downloads = [s for s in stages if s[0] == "download"]
    assert downloads[-1] == ("download", len(ARCHIVE) + len(TABLE), len(ARCHIVE) + len(TABLE))
    assert names(out) == [".fetched/set.json", *(f"deep/set/{n}" for n in names(result.folder))]


def test_what_is_there_is_left_as_it_is(server, record, tmp_path):
    first = fetched(record, tmp_path / "out", server)
    server.requests.clear()
    again = fetched(record, tmp_path / "out", server)
    assert again.present
    assert server.requests == []
    assert again.files == first.files
    (first.folder / "table.csv").unlink()
    with pytest.raises(OutputError, match="is gone; delete"):
        fetched(record, tmp_path / "out", server)


def test_a_folder_of_the_user_is_never_touched(server, record, tmp_path):
    (tmp_path / "out/deep/set").mkdir(parents=True)
    (tmp_path / "out/deep/set/mine.tif").write_bytes(b"mine")
    with pytest.raises(OutputError, match="was not written by fetch"):
        fetched(record, tmp_path / "out", server)
    assert names(tmp_path / "out") == ["deep/set/mine.tif"]


def test_an_interrupted_fetch_continues(server, record, tmp_path):
    server.resources["/set/a.zip"].cuts = [1000] + [0] * 20
    with pytest.raises(DownloadError):
        fetched(record, tmp_path / "out", server)
    assert not (tmp_path / "out/deep/set").exists()
    server.resources["/set/a.zip"].cuts = []
    server.resources["/set/table.csv"].statuses = [404]
    with pytest.raises(DownloadError, match=r"table\.csv"):
        fetched(record, tmp_path / "out", server)
    server.requests.clear()
    fetched(record, tmp_path / "out", server)
    assert server.requests == [("/set/table.csv", "")], "the archive was there already"
    assert len(names(tmp_path / "out/deep/set")) == 3


def test_a_kept_download_that_was_changed_is_fetched_again(server, record, tmp_path):
    server.resources["/set/table.csv"].statuses = [404]
    with pytest.raises(DownloadError):
        fetched(record, tmp_path / "out", server)
    (archive,) = (tmp_path / "out").rglob("a.zip")
    archive.write_bytes(b"x" * len(ARCHIVE))
    server.requests.clear()
    fetched(record, tmp_path / "out", server)
    assert ("/set/a.zip", "") in server.requests


def test_an_archive_that_is_refused_leaves_no_folder(server, tmp_path):
    escaping = io.BytesIO()
    with zipfile.ZipFile(escaping, "w") as archive:
        archive.writestr("../../x.tif", b"1")
    data = escaping.getvalue()
    server.add("/set/a.zip", data)
    record = written(tmp_path / "r.yaml", bytes=len(data))
    with pytest.raises(DownloadError, match="leads out of the folder"):
        fetched(record, tmp_path / "out", server)
    assert [n for n in names(tmp_path) if n.endswith(".tif")] == []
    assert not (tmp_path / "out/deep/set").exists()


def test_a_page_in_place_of_the_archive(server, record, tmp_path):
    server.add("/set/a.zip", b"<!doctype html>" + b" " * (len(ARCHIVE) - 15))
    with pytest.raises(DownloadError, match="a web page"):
        fetched(record, tmp_path / "out", server)


def test_a_recorded_checksum_is_expected_the_next_time(server, record, tmp_path):
    """Nobody publishes the table's: the first that was fetched counts."""
    result = fetched(record, tmp_path / "out", server)
    result.folder.rename(tmp_path / "moved")
    again = fetched(record, tmp_path / "out", server)
    assert [f.verified for f in again.files] == ["published", "recorded"]
    again.folder.rename(tmp_path / "moved2")
    server.add("/set/table.csv", TABLE + b"2,test\n")
    with pytest.raises(DownloadError, match="recorded when it was first fetched") as error:
        fetched(record, tmp_path / "out", server)
    path = tmp_path / "out/.fetched/set.json"
    assert f"delete {path}" in str(error.value)
    path.unlink()
    assert fetched(record, tmp_path / "out", server).files[1].verified == "first use"


@pytest.mark.parametrize("content", ["", "{}", '{"files": [{"name": 3}]}', "[1]", '{"files": [7]}'])
def test_a_damaged_list_of_checksums_is_named(server, record, tmp_path, content):
    path = tmp_path / "out/.fetched/set.json"
    path.parent.mkdir(parents=True)
    path.write_text(content)
    with pytest.raises(DownloadError, match=r"set\.json"):
        fetched(record, tmp_path / "out", server)


def test_a_disk_without_room_is_reported_before_any_request(server, record, tmp_path, monkeypatch):
    def full(path: Path, size: int) -> None:
        assert size == 2 * len(ARCHIVE), "the archive, and as much again for its content"
        raise OutputError("free space")

    monkeypatch.setattr(module, "require_space", full)
    with pytest.raises(OutputError, match="free space"):
        fetched(record, tmp_path / "out", server)
    assert server.requests == []


def test_two_at_once(server, record, tmp_path):
    """The second is refused while the first works, and finds its folder afterwards."""
    inside, go_on = threading.Event(), threading.Event()

    def hold(*stage: object) -> None:
        inside.set()
        go_on.wait(30)

    first = threading.Thread(
        target=lambda: fetched(record, tmp_path / "out", server, progress=hold)
    )
    first.start()
    assert inside.wait(30)
    with pytest.raises(OutputError, match="has been writing to it since"):
        fetched(record, tmp_path / "out", server)
    go_on.set()
    first.join(30)
    assert fetched(record, tmp_path / "out", server).present


def test_mirrors(monkeypatch):
    assert mirror_address("https://m/{file}?r={record}", "a b", "c/d e.zip") == (
        "https://m/c/d%20e.zip?r=a%20b"
    )
    monkeypatch.setenv(module.MIRRORS_VARIABLE, " https://one  http://two ")
    assert configured_mirrors(["https://zero"]) == ["https://zero", "https://one", "http://two"]
    for wrong in ("ftp://a", "/folder", "file:///a"):
        with pytest.raises(ConfigError, match="begins with https://"):
            configured_mirrors([wrong])


# The command and the Python function -----------------------------------------------------------


@pytest.fixture
def registry(record, monkeypatch):
    """The package's registry replaced by the test's."""
    monkeypatch.setattr(records, "public_records", lambda path=None: {"set": record})
    return record


def test_the_command_prints_folder_licence_and_new_checksums(
    server, registry, tmp_path, run, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MULTIMAE_EO_DATA", raising=False)
    code, out, err = run("fetch", "set", "--mirror", server.address)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "data/deep/set"
    assert lines[1] == "licence: MIT; source: https://a.org"
    assert lines[2] == "no published checksum, recorded at first use: 1 files"
    assert lines[3].split() == ["table.csv", "sha256", hashlib.sha256(TABLE).hexdigest()]
    code, out, _ = run("fetch", "set", "--mirror", server.address)
    assert out.splitlines()[0] == "data/deep/set (was there already)"
    code, out, _ = run("fetch", "set", "--json")
    assert code == 0
    assert json.loads(out)["present"] is True
    assert [f["name"] for f in json.loads(out)["files"]] == ["a.zip", "table.csv"]


def test_the_variables_name_folder_and_mirrors(server, registry, tmp_path, monkeypatch):
    monkeypatch.setenv("MULTIMAE_EO_DATA", str(tmp_path / "root"))
    monkeypatch.setenv(module.MIRRORS_VARIABLE, server.address)
    assert multimae_eo.fetch("set").folder == tmp_path / "root/deep/set"


def test_errors_of_the_command_are_one_line(server, registry, tmp_path, refused):
    out = str(tmp_path / "out")
    assert "no public address of it is confirmed" in refused("fetch", "set", "--out", out)
    assert "begins with https://" in refused("fetch", "set", "--out", out, "--mirror", "x")
    assert "no checkpoint to convert" in refused(
        "fetch", "set", "--out", out, "--convert", str(tmp_path / "model")
    )
    assert "which data set? one of set" in refused("fetch")


def test_an_unknown_name_is_a_usage_error(run):
    code, out, err = run("fetch", "eurosat")
    assert (code, out) == (2, "")
    assert "eurosat-ms" in err


def test_the_list(run):
    code, out, _ = run("fetch", "--list")
    assert code == 0
    assert "| eurosat-ms " in out
    assert "2.07 GB" in out
    assert "eurosat-100: The MD5 is TorchGeo's." in out
    code, out, _ = run("fetch", "--list", "--json")
    assert code == 0
    assert {r["name"] for r in json.loads(out)} == set(records.public_records())


def test_the_help_names_the_data_sets_and_no_function(run):
    code, out, _ = run("fetch", "--help")
    assert code == 0
    assert "mmearth64-statistics" in out
    assert "<function" not in out


def test_shells_complete_the_names(run):
    _, script, _ = run("completion", "bash")
    assert "geobench-m-eurosat" in script
    assert "--mirror" in script


def test_a_checkpoint_is_converted_in_the_same_go(server, tmp_path, run, monkeypatch):
    from tests.support.reference_model import write_checkpoint

    write_checkpoint(tmp_path / "checkpoint-999.pth")
    server.add("/checkpoint-999.pth", (tmp_path / "checkpoint-999.pth").read_bytes())
    name = "data_1M_v001_64_band_stats.json"
    level = {"mean": [1000.0] * 13, "std": [500.0] * 13}
    statistics = {"sentinel2_l1c": level, "sentinel2_l2a": level,
                  "aster": {"mean": [600.0, 5.0], "std": [50.0, 3.0]}}  # fmt: skip
    server.add(f"/{name}", json.dumps(statistics).encode())
    out, model = tmp_path / "out", tmp_path / "model"
    arguments = ["fetch", "reference-checkpoint", "--out", str(out), "--mirror",
                 f"{server.address}/{{file}}", "--convert", str(model)]  # fmt: skip
    code, printed, err = run(*arguments)
    assert code == 0, err
    assert str(model) in printed.splitlines()
    loaded = multimae_eo.MultiMAE.from_pretrained(model)
    assert loaded.statistics is not None
    code, printed, _ = run(*arguments[:-1], str(tmp_path / "again"))
    assert code == 0
    assert "was there already" in printed
