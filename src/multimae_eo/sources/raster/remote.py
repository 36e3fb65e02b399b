"""Rasters on servers and in zip files, through GDAL: names, settings, and another attempt.

Only what a user names is fetched, in ranges: no directory is listed and no file beside it looked
for. ``https://``, ``s3://``, ``gs://``, ``/vsicurl/``, ``/vsis3/``, ``/vsigs/`` and ``/vsizip/``.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from multimae_eo.errors import FormatError, MultiMAEError

T = TypeVar("T")
ATTEMPTS = 3
_DELAY_SECONDS = 0.5
# A Path has one slash where an address has two.
_ADDRESS = re.compile(r"(?:/vsicurl/)?(https?|s3|gs):/+(.+)", re.DOTALL)
_GDAL = re.compile(r"/+(vsicurl|vsis3|vsigs)/+(.+)", re.DOTALL)
_ZIP = re.compile(r"/+vsizip/+(.+)", re.DOTALL)
_PREFIX = {"s3": "/vsis3/", "gs": "/vsigs/"}
_SETTINGS = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "GDAL_HTTP_MERGE_CONSECUTIVE_RANGES": "YES",
    "GDAL_HTTP_MULTIPLEX": "YES",
    "GDAL_HTTP_CONNECTTIMEOUT": "10",
    "GDAL_HTTP_TIMEOUT": "60",
    "GDAL_HTTP_LOW_SPEED_TIME": "20",
    "GDAL_HTTP_LOW_SPEED_LIMIT": "100",
    "GDAL_HTTP_MAX_RETRY": "3",
    "GDAL_HTTP_RETRY_DELAY": "0.5",
    "GDAL_INGESTED_BYTES_AT_OPEN": "32768",
    "CPL_VSIL_CURL_CHUNK_SIZE": "65536",
    "CPL_VSIL_CURL_CACHE_SIZE": str(64 * 2**20),
    "VSI_CACHE": "TRUE",
    "VSI_CACHE_SIZE": str(16 * 2**20),
}


def is_remote(path: Path | str) -> bool:
    """Whether a path is an address, or a file within a zip file, that GDAL opens."""
    text = str(path)
    return any(p.fullmatch(text) for p in (_ADDRESS, _GDAL, _ZIP))


def gdal_name(path: Path | str) -> str:
    """The name by which GDAL opens a remote raster; any other path as it is.

    >>> gdal_name("https:/host/a.tif")
    '/vsicurl/https://host/a.tif'
    """
    text = str(path)
    if match := _ADDRESS.fullmatch(text):
        scheme, rest = match[1], match[2]
        return f"{_PREFIX[scheme]}{rest}" if scheme in _PREFIX else f"/vsicurl/{scheme}://{rest}"
    if match := _ZIP.fullmatch(text):
        inside = match[1]
        if is_remote(f"/{inside}"):
            return f"/vsizip/{gdal_name(f'/{inside}')}"
        if is_remote(inside):
            return f"/vsizip/{gdal_name(inside)}"
        # A Path has one slash where an absolute name has two.
        archive = inside[: inside.lower().find(".zip") + 4]
        return f"/vsizip/{inside}" if os.path.exists(archive) else f"/vsizip//{inside}"
    return text


def folder_of(parent: Path, text: str) -> Path:
    """A ``root:`` beside its file: an address, or a folder relative to ``parent``."""
    return Path(text) if is_remote(text) else parent / text


def suffix_of(path: Path | str) -> str:
    """A path's suffix in lower case, without the query of an address."""
    text = str(path)
    return Path(text.split("?", maxsplit=1)[0] if is_remote(text) else text).suffix.lower()


@contextmanager
def remote_settings(path: Path | str) -> Iterator[None]:
    """GDAL's settings for a remote raster in this thread; nothing for a local one."""
    if not is_remote(path):
        yield
        return
    import rasterio

    with rasterio.Env(**_SETTINGS):
        yield


def with_attempts(path: Path | str, action: Callable[[], T], again: Callable[[], object]) -> T:
    """What ``action`` returns; of a remote raster it is repeated after an error, ``again`` first.

    FormatError when the last attempt fails.
    """
    if not is_remote(path):
        return action()
    from rasterio import Env
    from rasterio._err import CPLE_BaseError
    from rasterio.errors import RasterioError

    name = gdal_name(path)
    # GDAL remembers failures: further attempts do without its cache.
    fresh = {"CPL_VSIL_CURL_NON_CACHED": name}
    for attempt in range(ATTEMPTS):
        try:
            with Env(**_SETTINGS, **(fresh if attempt else {})):
                return action()
        except MultiMAEError as error:
            if not isinstance(error.__cause__, (RasterioError, CPLE_BaseError, OSError)):
                raise
            reason = error.__cause__
        except (RasterioError, CPLE_BaseError, OSError) as error:
            reason = error
        if attempt + 1 < ATTEMPTS:
            again()
            time.sleep(_DELAY_SECONDS * 2**attempt)
    text = " ".join(str(reason).split()).replace(name, "it")
    shown = name.removeprefix("/vsicurl/")
    raise FormatError(
        f"{shown}: cannot be read after {ATTEMPTS} attempts: {text[:200]}; check the address, your "
        "access to it and the connection"
    ) from reason
