"""One file from a server on this machine that cuts connections and sends other things."""

from __future__ import annotations

import hashlib
import shutil
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from multimae_eo.download import transfer
from multimae_eo.download.records import Checksum, PublicFile
from multimae_eo.download.transfer import INCOMPLETE, FileDownload, Progress, require_space
from multimae_eo.errors import DownloadError, OutputError
from tests.support.download_server import DownloadServer

BODY = np.random.default_rng(0).bytes(700_000)
MD5 = Checksum(algorithm="md5", digits=hashlib.md5(BODY, usedforsecurity=False).hexdigest())
SHA = hashlib.sha256(BODY).hexdigest()


def job(server: DownloadServer, target: Path, *paths: str, size: int | None = len(BODY),
        max_bytes: int = 2_000_000, checksum: Checksum | None = MD5,
        waits: list[float] | None = None, progress: Progress | None = None,
        ) -> FileDownload:  # fmt: skip
    file = PublicFile(
        name=target.name, address="", size=size, max_bytes=size or max_bytes, checksum=checksum,
        unpacking=None,
    )  # fmt: skip
    waited = [] if waits is None else waits
    return FileDownload(
        file=file, target=target, wait=waited.append, checksum=checksum, progress=progress,
        addresses=[p if "://" in p else server.address + p for p in paths or ("/file",)],
    )  # fmt: skip


def refused(transfer: FileDownload) -> str:
    with pytest.raises(DownloadError) as error:
        transfer.run()
    assert "\n" not in str(error.value)
    assert not transfer.target.exists()
    return str(error.value)


def test_a_file_arrives_and_is_verified(server, tmp_path):
    server.add("/file", BODY)
    seen: list[tuple[int, int | None]] = []
    target = tmp_path / "a.bin"
    download = job(server, target, progress=lambda done, total: seen.append((done, total))).run()
    assert target.read_bytes() == BODY
    assert (download.size, download.sha256) == (len(BODY), SHA)
    assert download.address == f"{server.address}/file"
    assert seen[-1] == (len(BODY), len(BODY))
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"], "nothing is left of the download"


def test_cut_connections_continue_where_they_ended(server, tmp_path):
    server.add("/file", BODY, cuts=[100_000, 0, 50_000])
    waits: list[float] = []
    job(server, tmp_path / "a.bin", waits=waits).run()
    assert (tmp_path / "a.bin").read_bytes() == BODY
    assert [part for _, part in server.requests] == [
        "", "bytes=100000-", "bytes=100000-", "bytes=150000-",
    ]  # fmt: skip
    assert len(waits) == 3


def test_attempts_without_a_new_byte_come_to_an_end(server, tmp_path):
    server.add("/file", BODY, cuts=[1000] + [0] * 20)
    waits: list[float] = []
    assert "the connection ended" in refused(job(server, tmp_path / "a.bin", waits=waits))
    assert len(server.requests) == 6
    assert waits == sorted(waits), "it waits longer each time"
    assert (tmp_path / f"a.bin{INCOMPLETE}").stat().st_size == 1000, "kept for the next run"


def test_a_later_run_continues(server, tmp_path):
    server.add("/file", BODY, cuts=[300_000] + [0] * 20)
    refused(job(server, tmp_path / "a.bin"))
    server.requests.clear()
    server.resources["/file"].cuts.clear()
    job(server, tmp_path / "a.bin").run()
    assert server.requests == [("/file", "bytes=300000-")]
    assert (tmp_path / "a.bin").read_bytes() == BODY


@pytest.mark.parametrize("checksum", [MD5, None])
def test_an_interrupt_keeps_what_has_arrived(server, tmp_path, checksum):
    server.add("/file", BODY)

    def interrupt(done: int, total: int | None) -> None:
        if done > 300_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        job(server, tmp_path / "a.bin", checksum=checksum, progress=interrupt).run()
    kept = (tmp_path / f"a.bin{INCOMPLETE}").stat().st_size
    assert 0 < kept < len(BODY)
    server.requests.clear()
    job(server, tmp_path / "a.bin", checksum=checksum).run()
    assert server.requests == [("/file", f"bytes={kept}-")]
    assert (tmp_path / "a.bin").read_bytes() == BODY


def test_without_a_checksum_a_changed_file_starts_again(server, tmp_path):
    """Else the file would be put together from two versions."""
    resource = server.add("/file", BODY, cuts=[300_000] + [0] * 20)
    refused(job(server, tmp_path / "a.bin", checksum=None, size=None))
    changed = BODY[::-1]
    server.add("/file", changed, tag='"2"')
    assert resource.tag != '"2"'
    job(server, tmp_path / "a.bin", checksum=None, size=None).run()
    assert (tmp_path / "a.bin").read_bytes() == changed


@pytest.mark.parametrize("tag", ["", 'W/"1"'])
def test_without_a_checksum_and_a_version_nothing_is_continued(server, tmp_path, tag):
    server.add("/file", BODY, cuts=[300_000], tag=tag)
    job(server, tmp_path / "a.bin", checksum=None).run()
    assert [part for _, part in server.requests] == ["", ""]
    assert (tmp_path / "a.bin").read_bytes() == BODY


def test_a_server_without_ranges_starts_again(server, tmp_path):
    server.add("/file", BODY, cuts=[300_000], ranges=False)
    job(server, tmp_path / "a.bin").run()
    assert (tmp_path / "a.bin").read_bytes() == BODY


def test_another_part_than_requested_is_refused(server, tmp_path):
    server.add("/file", BODY, cuts=[300_000], shift=10)
    message = refused(job(server, tmp_path / "a.bin"))
    assert "sends the bytes from 300010 instead of from 300000" in message


def test_a_part_that_was_damaged_meanwhile_is_fetched_again(server, tmp_path):
    server.add("/file", BODY)
    (tmp_path / f"a.bin{INCOMPLETE}").write_bytes(b"x" * 1000)
    job(server, tmp_path / "a.bin").run()
    assert [part for _, part in server.requests] == ["bytes=1000-", ""]
    assert (tmp_path / "a.bin").read_bytes() == BODY


def test_a_part_that_holds_everything_is_only_verified(server, tmp_path):
    server.add("/file", BODY)
    (tmp_path / f"a.bin{INCOMPLETE}").write_bytes(BODY)
    job(server, tmp_path / "a.bin").run()
    assert server.requests == []
    (tmp_path / "a.bin").rename(tmp_path / f"b.bin{INCOMPLETE}")
    job(server, tmp_path / "b.bin", size=None).run()
    assert server.requests == [("/file", f"bytes={len(BODY)}-")], "416: there is no more"


@pytest.mark.parametrize("algorithm", ["md5", "sha256"])
def test_a_wrong_checksum_is_refused_and_leaves_nothing(server, tmp_path, algorithm):
    server.add("/file", BODY[:-1] + bytes([BODY[-1] ^ 1]))
    digits = MD5.digits if algorithm == "md5" else SHA
    checksum = Checksum(algorithm=algorithm, digits=digits)
    message = refused(job(server, tmp_path / "a.bin", checksum=checksum))
    assert f"its {algorithm} is" in message
    assert f"expected {digits}" in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("status", [401, 403, 404, 410, 451])
def test_a_refusal_is_not_tried_again(server, tmp_path, status):
    server.add("/file", BODY, statuses=[status] * 9)
    assert f"status is {status}" in refused(job(server, tmp_path / "a.bin"))
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_tried_again(server, tmp_path, status):
    server.add("/file", BODY, statuses=[status, status])
    waits: list[float] = []
    job(server, tmp_path / "a.bin", waits=waits).run()
    assert len(waits) == 2
    assert (tmp_path / "a.bin").read_bytes() == BODY


def test_it_waits_as_long_as_the_server_asks_but_not_for_ever(server, tmp_path):
    server.add("/file", BODY, statuses=[429, 503], headers={"Retry-After": "7"})
    waits: list[float] = []
    job(server, tmp_path / "a.bin", waits=waits).run()
    assert waits == [7, 7]
    server.add("/file", BODY, statuses=[429], headers={"Retry-After": "999999"})
    job(server, tmp_path / "b.bin", waits=waits).run()
    assert waits[2:] == [60]


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"<!DOCTYPE html><html>log in</html>", "application/zip"),
        (b"\n <HTML><body>error", "application/octet-stream"),
        (b"anything", "text/html; charset=utf-8"),
    ],
)
def test_a_page_instead_of_the_file_is_refused(server, tmp_path, body, kind):
    server.add("/file", body, kind=kind)
    assert "a web page" in refused(job(server, tmp_path / "a.bin", size=None, checksum=None))


def test_other_sizes_than_published_are_refused_before_the_body(server, tmp_path):
    server.add("/file", BODY + b"1")
    assert f"has {len(BODY) + 1} bytes" in refused(job(server, tmp_path / "a.bin"))
    server.add("/file", BODY)
    message = refused(job(server, tmp_path / "b.bin", size=None, max_bytes=1000))
    assert "at most 1000 are accepted" in message


def test_a_body_without_an_end_is_cut_off(server, tmp_path):
    """Nothing declares its size: it is counted."""
    server.add("/file", BODY, length=False)
    message = refused(job(server, tmp_path / "a.bin", size=None, max_bytes=300_000, checksum=None))
    assert "sends more than 300000 bytes" in message
    job(server, tmp_path / "b.bin", size=None).run()
    assert (tmp_path / "b.bin").read_bytes() == BODY


def test_a_compressed_answer_is_refused(server, tmp_path):
    server.add("/file", BODY, headers={"Content-Encoding": "gzip"})
    assert "encoded as gzip" in refused(job(server, tmp_path / "a.bin"))


def test_redirects_are_followed(server, tmp_path):
    server.add("/old", redirect="/new")
    server.add("/new", BODY, cuts=[100_000])
    download = job(server, tmp_path / "a.bin", "/old").run()
    assert (tmp_path / "a.bin").read_bytes() == BODY
    assert download.address.endswith("/old"), "what is published, not where it is today"


@pytest.mark.parametrize("target", ["file:///etc/hostname", "ftp://127.0.0.1/a", "/loop"])
def test_redirects_elsewhere_or_in_circles_are_not(server, tmp_path, target):
    server.add("/loop", redirect=target)
    refused(job(server, tmp_path / "a.bin", "/loop"))


def test_https_is_never_left():
    handler = transfer._SafeRedirects()
    request = urllib.request.Request("https://example.org/a")
    with pytest.raises(DownloadError, match="redirects to http:"):
        handler.redirect_request(request, None, 302, "", {}, "http://example.org/a")


@pytest.mark.parametrize(
    "address", ["file:///etc/hostname", "ftp://host/a", "nothing", "http://[x"]
)
def test_other_addresses_are_refused(server, tmp_path, address):
    transfer = job(server, tmp_path / "a.bin")
    transfer.addresses = [address]
    refused(transfer)


def test_mirrors_are_tried_in_order_and_named_with_their_reasons(server, tmp_path):
    server.add("/page", b"<html>", kind="text/html")
    server.add("/wrong", BODY[::-1])
    server.add("/right", BODY)
    paths = ("/absent", "/page", "/wrong", "/right")
    download = job(server, tmp_path / "a.bin", *paths).run()
    assert download.address.endswith("/right")
    message = refused(job(server, tmp_path / "b.bin", *paths[:3]))
    for text in ("/absent: ", "404", "/page: ", "/wrong: "):
        assert text in message
    nobody = job(server, tmp_path / "c.bin")
    nobody.addresses = []
    assert "--mirror" in refused(nobody)


def test_no_server_at_all(server, tmp_path):
    waits: list[float] = []
    message = refused(job(server, tmp_path / "a.bin", "http://127.0.0.1:9/a", waits=waits))
    assert "refused" in message.lower()
    assert len(waits) == 4


def test_a_full_disk_is_reported_before_the_body(server, tmp_path, monkeypatch):
    server.add("/file", BODY)

    class Usage:
        free = 50_000_100

    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage)
    with pytest.raises(OutputError, match="free space"):
        job(server, tmp_path / "a.bin").run()
    with pytest.raises(OutputError):
        require_space(tmp_path / "deep/er", 101)
    require_space(tmp_path / "deep/er", 100)
