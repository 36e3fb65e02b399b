"""Sources drafted, examined and prepared: ``init``, ``inspect`` and ``prepare``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multimae_eo.api.loading import load_source
from multimae_eo.errors import ConfigError, OutputError
from multimae_eo.files import write_file

if TYPE_CHECKING:
    from multimae_eo.doctor.finding import Diagnosis
    from multimae_eo.sources.base import Source
    from multimae_eo.sources.draft.yaml_draft import Draft
    from multimae_eo.store.reader import ChipStore


def init(paths: str | Path | Sequence[str | Path], *, out: str | Path | None = None) -> Draft:
    """Draft a dataset or scene file from the files that are there.

    Args:
        paths: Folders or files: class folders, images and masks, tables, rasters of an area.
        out: File to write (YAML); paths in it are relative to its folder. None writes nothing.

    Returns:
        The draft: ``text()`` is the file, ``evidence`` what was recognised and from what, and
        ``blanks`` the keys that the files leave open, which are ``???`` in the file.

    Raises:
        ConfigError: no such path. DataError: nothing that is recognised. FormatError: an image
        that cannot be read. OutputError: ``out`` exists, or cannot be written.
    """
    from multimae_eo.sources.draft.drafting import draft_of

    listed = [paths] if isinstance(paths, (str, Path)) else list(paths)
    target = None if out is None else Path(out)
    if target is not None and target.exists():
        raise OutputError(f"{target}: exists; remove it, or choose another --out")
    draft = draft_of([Path(path) for path in listed])
    if target is not None:
        write_file(target, draft.text(target.parent).encode())
    return draft


def inspect(
    source: Source | str | Path,
    *,
    chips: int = 2000,
    html: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Diagnosis:
    """Examine a source for faults: the data doctor.

    Args:
        source: A source, or what ``open_source`` opens.
        chips: Examine at most so many chips, sampled evenly within each split.
        html: Report to write, with pictures.
        progress: Called with the chips done and the chips in all.

    Returns:
        The diagnosis: ``findings``, worst first, and a summary of each band and class map.

    Raises:
        ConfigError: no such source, or ``chips`` < 1. OutputError: the report cannot be written.
    """
    from multimae_eo.doctor import inspect as examine

    opened, _ = load_source(source)
    diagnosis = examine(opened, chips=chips, progress=progress)
    if html is not None:
        from multimae_eo.doctor.page import write_page

        write_page(diagnosis, opened, Path(html))
    return diagnosis


def prepare(
    source: Source | str | Path,
    *,
    out: str | Path,
    workers: int = 1,
    dask: str = "",
    shard_chips: int = 512,
    append: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> ChipStore:
    """Write a source into a chip store, with statistics; called again, it resumes.

    Args:
        source: A source, or what ``open_source`` opens.
        out: Folder of the chip store.
        workers: Number of reading processes.
        dask: Address of a Dask scheduler whose workers read instead.
        shard_chips: Chips per shard.
        append: Add the source's chips to a finished store.
        progress: Called with the chips done and the chips in all.

    Returns:
        The chip store, opened: pixels in the source's own integer type, (C, H, W) per modality.

    Raises:
        ConfigError: options out of range, or ``{scene}`` in ``out``, which ``prepare_scenes``
        takes. DataError: chips that cannot be read. OutputError: ``out`` holds something else or
        cannot be written.
    """
    from multimae_eo.scenes.each_scene import is_pattern
    from multimae_eo.store.append import append as append_chips
    from multimae_eo.store.writer import prepare as write_store

    if append and (dask or is_pattern(out)):
        raise ConfigError("append: adds the chips of one source, in this process or several")
    if is_pattern(out):
        raise ConfigError(f"{out}: a store of each scene is written by prepare_scenes")
    opened = _open(source, shared=bool(dask))
    if append:
        return append_chips(opened, Path(out), workers=workers, progress=progress)
    path = Path(out).resolve() if dask else Path(out)
    return write_store(
        opened, path, workers=workers, dask=dask, shard_chips=shard_chips, progress=progress
    )


def prepare_scenes(
    scenes: object,
    *,
    out: str | Path,
    workers: int = 1,
    dask: str = "",
    retries: int = 1,
    shard_chips: int = 512,
    progress: Callable[[int, int], None] | None = None,
) -> list[ChipStore]:
    """Write each of several scenes into a chip store of its own; called again, it resumes.

    Args:
        scenes: What ``list_scenes`` takes: paths, a pattern, a folder, a list, a STAC file.
        out: Folders of the stores, with ``{scene}`` for the scene's name. ``open_source`` opens
            the folder that holds them as one source.
        workers, dask, shard_chips: As for ``prepare``.
        retries: How often scenes that failed are tried again, after all others.
        progress: Called with the scenes done and the scenes in all.

    Returns:
        The store of each scene, in order.

    Raises:
        ConfigError: options out of range, or no ``{scene}`` in ``out``. ScenesError: some scenes
        failed; the others are written.
    """
    from multimae_eo.scenes.each_scene import SceneWork, each_scene, is_pattern
    from multimae_eo.sources.scene.scene_list import list_scenes
    from multimae_eo.store.reader import ChipStore
    from multimae_eo.store.writer import prepare as write_store

    if not is_pattern(out):
        raise ConfigError(f"{out}: needs {{scene}} for the scene's name, as in stores/{{scene}}")

    def write(opened: Source, path: Path) -> str:
        target = path.resolve() if dask else path
        write_store(opened, target, workers=workers, dask=dask, shard_chips=shard_chips)
        return str(path)

    # A store that is finished is left as it is by ``prepare``, which compares its plan.
    work = SceneWork(
        opener=lambda spec: _open(spec, shared=bool(dask)),
        stamp=lambda _: "",
        write=write,
        settings=None,
    )
    rows = each_scene(
        list_scenes(scenes), work, out=out, retries=retries, dask=dask, progress=progress
    )
    return [ChipStore(Path(row.result)) for row in rows]


def _open(source: Any, *, shared: bool) -> Source:
    """A source. ``shared``: other machines open its files, by absolute paths."""
    from multimae_eo.sources.input_paths import absolute_spec
    from multimae_eo.sources.scene.chips import SceneChips
    from multimae_eo.sources.stac.item_scene import ItemScene

    if isinstance(source, ItemScene):
        return SceneChips(source.to_scene())
    if shared and isinstance(source, (str, Path)):
        source = absolute_spec(str(source))
    return load_source(source)[0]
