"""Several scenes, one after another or side by side on a Dask cluster.

A scene that fails is logged and tried again after the others; the rest is done. The record
(``scenes.….json`` beside the outputs) lists every scene with its state; a run that was interrupted,
or in which scenes failed, goes on with those that are not done.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from multimae_eo.dask_cluster import DaskCluster, connected
from multimae_eo.errors import ConfigError, MultiMAEError, OutputError, ScenesError
from multimae_eo.files import output_lock, read_json, reason_of, write_file
from multimae_eo.sources.input_paths import require_scene_outputs
from multimae_eo.sources.scene.scene_list import PLACEHOLDER, ListedScene
from multimae_eo.version import __version__

_MOST_AT_ONCE = 32
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SceneWork:
    """What is done with each scene.

    ``opener``: opens a spec. ``stamp``: a text that changes when the scene does; "" if
    that is not known. ``write``: writes an opened scene's output; its result is JSON-ready.
    ``settings``: what else decides the output, JSON-ready; None where that is not known (a model
    without a folder), and no scene counts as done.
    """

    opener: Callable[[Any], Any]
    stamp: Callable[[Any], str]
    write: Callable[[Any, Path], Any]
    settings: Mapping[str, object] | None


@dataclass(frozen=True, kw_only=True)
class SceneRow:
    """A scene in the record. ``state``: done or failed. ``attempts``, ``seconds``: of the run that
    ended so. ``identity``: of scene and settings. ``result``: what ``SceneWork.write`` returned."""

    scene: str
    source: str
    output: str
    state: str
    attempts: int
    seconds: float
    error: str = ""
    identity: str = ""
    result: Any = field(default=None)


def is_pattern(out: object) -> bool:
    """Whether an output is a pattern of several scenes: its path holds ``{scene}``."""
    return PLACEHOLDER in str(out)


def require_pattern(scenes: Sequence[ListedScene], out: str | Path) -> None:
    """ConfigError where several scenes have one output."""
    if len(scenes) > 1 and not is_pattern(out):
        raise ConfigError(
            f"{len(scenes)} scenes ({scenes[0].name}, {scenes[1].name}, …) need an output each: "
            f"write {PLACEHOLDER} into --out, as in maps/{PLACEHOLDER}.tif"
        )


def record_path(out: str | Path) -> Path:
    """Where the record of an output pattern is: ``maps/{scene}.tif`` has ``maps/scenes.tif.json``,
    ``stores/{scene}`` has ``stores/scenes.json``."""
    folder = Path()
    for part in Path(out).parts:
        if PLACEHOLDER in part:
            return folder / f"{part.replace(PLACEHOLDER, 'scenes')}.json"
        folder /= part
    raise ConfigError(f"{out}: holds no {PLACEHOLDER}")


def each_scene(
    scenes: Sequence[ListedScene],
    work: SceneWork,
    *,
    out: str | Path,
    retries: int = 1,
    dask: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> list[SceneRow]:
    """Do the work for every scene; returns their rows, in order.

    ``out``: with ``{scene}`` for the scene's name. ``retries``: how often scenes that failed are
    tried again, after all others. ``dask``: address of a scheduler; scenes are then worked on side
    by side, so that its workers always have blocks. ``progress``: called with the scenes done and
    in all.

    Raises ScenesError at the end where scenes failed, ConfigError or OutputError at the start for
    outputs that are inputs or another scene's.
    """
    if retries < 0:
        raise ConfigError(f"retries must be ≥ 0, got {retries}")
    outputs = {s.name: Path(str(out).replace(PLACEHOLDER, s.name)) for s in scenes}
    path = record_path(out)
    require_scene_outputs(_paths(scenes), [*outputs.values(), path])
    with output_lock(path, folder=False), _cluster(dask) as cluster:
        record = _SceneRecord(path)
        record.require_same_sources(scenes)
        remaining = list(scenes)
        for attempt in range(1, 2 + retries):
            jobs = [
                _SceneRun(scene, work, outputs[scene.name], record.rows.get(scene.name), attempt)
                for scene in remaining
            ]
            for row in _run(jobs, cluster):
                record.add(row)
                finished = [record.rows[n] for n in outputs if n in record.rows]
                count = sum(r.state == "done" for r in finished)
                _report(row, count, len(scenes), 1 + retries)
                if progress is not None:
                    progress(count, len(scenes))
            remaining = [s for s in remaining if record.rows[s.name].state != "done"]
            if not remaining:
                break
    if remaining:
        raise ScenesError(_summary(remaining, len(scenes), path))
    return [record.rows[s.name] for s in scenes]


def _paths(scenes: Sequence[ListedScene]) -> Iterator[str]:
    for scene in scenes:
        specs = scene.spec if isinstance(scene.spec, tuple) else (scene.spec,)
        yield from (str(s) for s in specs if isinstance(s, str | Path))


@contextmanager
def _cluster(address: str) -> Iterator[DaskCluster | None]:
    """The connection that all scenes share, so that the model travels once."""
    if not address:
        yield None
        return
    with connected(address) as cluster:
        yield cluster


class _SceneRecord:
    """The rows of an output pattern, on disk after every change."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[str, SceneRow] = {}
        if path.is_file():
            names = {f.name for f in fields(SceneRow)}
            content = read_json(path, OutputError, remedy="delete it to begin again")
            listed = content.get("scenes") if isinstance(content, dict) else None
            for row in listed if isinstance(listed, list) else ():
                if not isinstance(row, dict) or row.keys() != names:
                    raise OutputError(f"{path}: is no record of scenes; delete it to begin again")
                self.rows[str(row["scene"])] = SceneRow(**row)

    def require_same_sources(self, scenes: Sequence[ListedScene]) -> None:
        """OutputError where a name has been another scene's, whose output would be replaced."""
        for scene in scenes:
            row = self.rows.get(scene.name)
            if row and row.state == "done" and row.source != _source(scene):
                raise OutputError(
                    f"{row.output}: is the output of another scene, {row.source}, not of "
                    f"{_source(scene)}; choose another --out"
                )

    def add(self, row: SceneRow) -> None:
        """Add or replace a scene's row."""
        if self.rows.get(row.scene) == row:
            return
        self.rows[row.scene] = row
        content = {"software": __version__, "scenes": [asdict(r) for r in self.rows.values()]}
        write_file(self.path, json.dumps(content, indent=1).encode())


@dataclass(frozen=True)
class _SceneRun:
    """One attempt at a scene. ``earlier``: its row of an earlier run or attempt."""

    scene: ListedScene
    work: SceneWork
    out: Path
    earlier: SceneRow | None
    attempt: int

    def __call__(self) -> SceneRow:
        """Its row, whatever happens."""
        start = time.monotonic()
        state, error, identity, result = "done", "", "", None
        try:
            opened = self.work.opener(self.scene.spec)
            identity = self._identity(opened)
            if self.earlier and self._is_done(identity):
                return self.earlier
            result = self.work.write(opened, self.out)
        except Exception as problem:
            state, identity = "failed", ""
            error = str(problem) if isinstance(problem, MultiMAEError) else _named(problem)
            error = " ".join(error.split())
            _log.debug("%s", self.scene.name, exc_info=problem)
        return SceneRow(
            scene=self.scene.name,
            source=_source(self.scene),
            output=str(self.out),
            state=state,
            attempts=self.attempt,
            seconds=round(time.monotonic() - start, 3),
            error=error,
            identity=identity,
            result=result,
        )

    def _is_done(self, identity: str) -> bool:
        earlier = self.earlier
        same = earlier and (earlier.state, earlier.identity) == ("done", identity)
        return bool(identity and same and self.out.exists())

    def _identity(self, opened: Any) -> str:
        if self.work.settings is None:
            return ""
        parts = [__version__, dict(self.work.settings), self.work.stamp(opened)]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _source(scene: ListedScene) -> str:
    """Where a scene is from, the same from every folder."""
    specs = scene.spec if isinstance(scene.spec, tuple) else (scene.spec,)
    texts = [
        str(s.resolve()) if isinstance(s, Path) and s.exists() else t
        for s, t in zip(specs, scene.text.split(", ") if len(specs) > 1 else [scene.text],
                        strict=True)
    ]  # fmt: skip
    return ", ".join(texts)


def _named(problem: Exception) -> str:
    text = reason_of(problem)
    name = type(problem).__name__
    return text if name in text else f"{name}: {text}"


def _run(jobs: Sequence[_SceneRun], cluster: DaskCluster | None) -> Iterator[SceneRow]:
    """Rows as scenes end: one after another, or as many at once as keep a cluster busy."""
    if cluster is None:
        yield from (job() for job in jobs)
        return
    # A scene has a handful of blocks at least; the first ones still wait for their last while the
    # next are computed.
    at_once = max(1, min(len(jobs), _MOST_AT_ONCE, 2 + cluster.threads // 4))
    pool = ThreadPoolExecutor(at_once, thread_name_prefix="scene")
    try:
        for future in as_completed([pool.submit(job) for job in jobs]):
            yield future.result()
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        cluster.abandon()  # or the threads would wait for it
        raise
    pool.shutdown()


def _report(row: SceneRow, count: int, total: int, attempts: int) -> None:
    if row.state == "done":
        _log.info("%d of %d scenes: %s: done", count, total, row.output)
        return
    again = "; it is tried again after the others" if row.attempts < attempts else ""
    _log.warning(
        "scene %s failed, attempt %d of %d: %s%s",
        row.scene, row.attempts, attempts, row.error, again,
    )  # fmt: skip


def _summary(failed: Iterable[ListedScene], total: int, path: Path) -> str:
    names = [s.name for s in failed]
    listed = ", ".join(names[:5]) + (", …" if names[5:] else "")
    return (
        f"{len(names)} of {total} scenes failed ({listed}); the others are done. Reasons are in "
        f"{path}; run again to go on with those that failed"
    )
