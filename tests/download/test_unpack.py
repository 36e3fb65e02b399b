"""Archives that lead out of their folder, hold links or grow without end write nothing."""

from __future__ import annotations

import io
import os
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest

from multimae_eo.download import unpack as module
from multimae_eo.download.records import Unpacking
from multimae_eo.download.unpack import unpack
from multimae_eo.errors import DownloadError, OutputError

RULE = Unpacking(max_bytes=10_000_000, max_files=50, keep=("*.tif", "*.json"))
KINDS = ("a.zip", "a.tar", "a.tar.gz", "a.tar.bz2", "a.tar.xz", "a.tgz")


def write_archive(path: Path, members: dict[str, bytes]) -> Path:
    """An archive of the kind that its name states."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in members.items():
                archive.writestr(name, content)
        return path
    mode = {".gz": "w:gz", ".tgz": "w:gz", ".bz2": "w:bz2", ".xz": "w:xz"}.get(path.suffix, "w")
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def refused(path: Path, folder: Path, rule: Unpacking = RULE) -> str:
    folder.mkdir(exist_ok=True)
    with pytest.raises(DownloadError) as error:
        unpack(path, folder, rule)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    return str(error.value)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


@pytest.mark.parametrize("kind", KINDS)
def test_members_are_written_without_the_folders_that_all_share(tmp_path, kind):
    members = {
        "ds/images/River/River_1.tif": b"1",
        "ds/images/Forest/Forest_1.tif": b"22" * 70_000,
        "ds/readme.txt": b"left out",
        "ds/images/.hidden.tif": b"left out",
        "__MACOSX/ds/River_1.tif": b"left out",
    }
    path = write_archive(tmp_path / kind, members)
    counts: list[tuple[int, int]] = []
    out = tmp_path / "out"
    out.mkdir()
    names = unpack(path, out, RULE, progress=lambda done, total: counts.append((done, total)))
    assert sorted(names) == ["Forest/Forest_1.tif", "River/River_1.tif"]
    assert contents(out) == {
        "River/River_1.tif": b"1", "Forest/Forest_1.tif": b"22" * 70_000,
    }  # fmt: skip
    assert counts == [(1, 2), (2, 2)]


@pytest.mark.parametrize("kind", ["a.zip", "a.tar.gz"])
def test_one_file_and_files_at_the_top_keep_their_names(tmp_path, kind):
    for number, members in enumerate(({"a/b/c.tif": b"1"}, {"c.tif": b"1", "d/e.tif": b"2"})):
        out = tmp_path / str(number)
        out.mkdir()
        names = unpack(write_archive(tmp_path / kind, members), out, RULE)
        assert names == [n.removeprefix("a/b/") for n in members]


ESCAPES = [
    "../x.tif", "a/../../x.tif", "/tmp/x.tif", "//x.tif", "a/..", "..", "C:/x.tif", "c:x.tif",
    "a\\..\\x.tif", "\\\\host\\x.tif", "a/\x01.tif", "x" * 300 + ".tif", "a:b.tif",
]  # fmt: skip


@pytest.mark.parametrize("kind", ["a.zip", "a.tar"])
@pytest.mark.parametrize("name", ESCAPES)
def test_names_that_lead_out_are_refused_even_of_members_that_are_not_kept(tmp_path, kind, name):
    members = {"first.tif": b"1", name: b"2"}
    path = write_archive(tmp_path / kind, members)
    before = contents(tmp_path)
    assert "nothing of it was written" in refused(path, tmp_path / "out")
    assert contents(tmp_path) == before


TYPES = {
    "symbolic link": tarfile.SYMTYPE, "hard link": tarfile.LNKTYPE, "fifo": tarfile.FIFOTYPE,
    "character device": tarfile.CHRTYPE, "block device": tarfile.BLKTYPE,
}  # fmt: skip


@pytest.mark.parametrize("kind", TYPES)
def test_links_and_devices_in_a_tar_are_refused(tmp_path, kind):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("a.tif"), io.BytesIO())
        entry = tarfile.TarInfo("link.tif")
        entry.type, entry.linkname = TYPES[kind], "/etc/passwd"
        archive.addfile(entry)
    assert "is a link, a device" in refused(path, tmp_path / "out")
    assert contents(tmp_path / "out") == {}


@pytest.mark.parametrize("mode", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK])
def test_links_and_devices_in_a_zip_are_refused(tmp_path, mode):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        entry = zipfile.ZipInfo("a.tif")
        entry.create_system, entry.external_attr = 3, (mode | 0o777) << 16
        archive.writestr(entry, "/etc/passwd")
    assert "is a link or a device" in refused(path, tmp_path / "out")


def test_encrypted_members_are_refused(tmp_path):
    path = write_archive(tmp_path / "a.zip", {"a.tif": b"1"})
    data = bytearray(path.read_bytes())
    data[6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    assert "encrypted" in refused(path, tmp_path / "out")


@pytest.mark.parametrize("kind", ["a.zip", "a.tar.gz"])
def test_bombs_are_refused_before_anything_is_written(tmp_path, kind):
    path = write_archive(tmp_path / kind, {"a.tif": bytes(9_000_000), "b.tif": bytes(9_000_000)})
    assert path.stat().st_size < 100_000, "it is small"
    assert "10000000 bytes" in refused(path, tmp_path / "out")
    assert contents(tmp_path / "out") == {}
    unkept = write_archive(tmp_path / f"b{kind}", {"a.tif": b"1", "x.bin": bytes(11_000_000)})
    if kind == "a.zip":
        (tmp_path / "more").mkdir()
        with pytest.raises(DownloadError):
            unpack(unkept, tmp_path / "more", RULE)
    else:
        assert "10000000 bytes" in refused(unkept, tmp_path / "out")


@pytest.mark.parametrize("kind", ["a.zip", "a.tar"])
def test_too_many_members_are_refused(tmp_path, kind):
    many = write_archive(tmp_path / kind, {f"{i}.tif": b"" for i in range(51)})
    assert "more than 50 files" in refused(many, tmp_path / "out")
    other = write_archive(tmp_path / f"b{kind}", {f"{i}.txt": b"" for i in range(201)})
    assert "more than 200 entries" in refused(other, tmp_path / "out")


@pytest.mark.parametrize("kind", ["a.zip", "a.tar"])
def test_a_name_twice_is_refused_by_case_as_well(tmp_path, kind):
    path = write_archive(tmp_path / kind, {"A/a.tif": b"1", "a/A.tif": b"2"})
    assert "is there twice" in refused(path, tmp_path / "out")


def test_a_member_larger_than_its_header_states_is_refused(tmp_path):
    """Both headers of a zip's member lie: 10 bytes instead of 100,000."""
    path = write_archive(tmp_path / "a.zip", {"a.tif": bytes(100_000)})
    data = path.read_bytes().replace((100_000).to_bytes(4, "little"), (10).to_bytes(4, "little"))
    path.write_bytes(data)
    refused(path, tmp_path / "out")
    written = contents(tmp_path / "out")
    assert all(len(content) <= 10 for content in written.values())


def test_a_tar_header_of_gigabytes_is_refused(tmp_path):
    """A long name's size is read in one go: it must not be believed."""
    path = tmp_path / "a.tar"
    entry = tarfile.TarInfo("././@LongLink")
    entry.type, entry.size = tarfile.GNUTYPE_LONGNAME, 5 << 30
    path.write_bytes(entry.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    assert "is refused" in refused(path, tmp_path / "out")


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_archive_is_refused(tmp_path, kind):
    path = tmp_path / kind
    for content in (b"", b"<html>no</html>", os.urandom(3000)):
        path.write_bytes(content)
        refused(path, tmp_path / "out")
    assert contents(tmp_path / "out") == {}


@pytest.mark.parametrize("kind", ["a.zip", "a.tar", "a.tar.gz", "a.tar.bz2", "a.tar.xz"])
@pytest.mark.parametrize("share", [0.3, 0.7, 0.95])
def test_a_truncated_archive_is_refused(tmp_path, kind, share):
    members = {f"{i}.tif": os.urandom(20_000) for i in range(4)}
    path = write_archive(tmp_path / kind, members)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    if kind == "a.tar" and share == 0.95:
        return  # only the zeros at the end are missing
    refused(path, tmp_path / "out")


def test_a_damaged_member_is_refused(tmp_path):
    path = write_archive(tmp_path / "a.zip", {"a.tif": os.urandom(50_000)})
    data = bytearray(path.read_bytes())
    data[1000] ^= 255
    path.write_bytes(data)
    refused(path, tmp_path / "out")


@pytest.mark.parametrize("kind", ["a.zip", "a.tar.gz"])
def test_an_archive_without_a_kept_member_is_refused(tmp_path, kind):
    path = write_archive(tmp_path / kind, {"a.txt": b"1"})
    assert r"has no member like *.tif" in refused(path, tmp_path / "out")


def test_a_disk_without_room_is_reported_first(tmp_path, monkeypatch):
    path = write_archive(tmp_path / "a.zip", {"a.tif": b"1"})

    def full(folder: Path, size: int) -> None:
        raise OutputError(f"{folder}: needs {size}")

    monkeypatch.setattr(module, "require_space", full)
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputError, match="needs 1"):
        unpack(path, tmp_path / "out", RULE)
    assert contents(tmp_path / "out") == {}


def test_a_fifo_in_place_of_the_archive_is_refused(tmp_path):
    os.mkfifo(tmp_path / "a.zip")
    refused(tmp_path / "a.zip", tmp_path / "out")
