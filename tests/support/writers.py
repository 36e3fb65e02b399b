"""Every command that writes, at toy size: for tests of locks, full disks and the like.

``{made}``: the folder of the fixture ``made``. ``{fine}``: a fine-tuned model folder. ``{out}``:
the output. A command of which ``folder`` is false writes one file.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.paths import SHARED

_MODEL = ("--model", "{made}/run/model")
_STORE = ("--data", "{made}/store")
_SCENE = ("--scene", "{made}/world/scene.yaml")
_CPU = ("--device", "cpu")
_LABELLED = (*_MODEL, *_STORE, "--inputs", "rgb")
_SMALL = ("--run.epochs=1", "--data.batch_size=8", "--run.accelerator=cpu")


@dataclass(frozen=True)
class Writer:
    """A command. ``suffix``: of a single output file. ``shared``: options by which several
    processes do it."""

    arguments: tuple[str, ...]
    suffix: str = ""
    folder: bool = True
    shared: tuple[str, ...] = ()

    def command(self, made: Any, fine: Path, out: Path) -> list[str]:
        """The arguments, for an output without its suffix."""
        places = {"{made}": str(made.folder), "{fine}": str(fine), "{out}": f"{out}{self.suffix}"}
        words = []
        for word in (*self.arguments, "--out", "{out}"):
            for name, value in places.items():
                word = word.replace(name, value)  # noqa: PLW2901
            words.append(word)
        return [*words, *made.small] if words[0] == "pretrain" else words


WRITERS = {
    "prepare": Writer(
        ("prepare", "{made}/world/dataset.yaml", "--shard_chips", "5"), shared=("--workers", "2")
    ),
    "pretrain": Writer(
        ("pretrain", "--recipe", "quickstart", *_STORE), shared=("--data.workers=2",)
    ),
    "finetune": Writer(
        ("finetune", *_LABELLED, "--task", "classification", *_SMALL), shared=("--data.workers=2",)
    ),
    "evaluate": Writer(("evaluate", "--model", "{fine}", *_STORE, *_CPU)),
    "probe": Writer(("probe", *_LABELLED, "--methods", "knn", *_CPU)),
    "reconstruct-chips": Writer(("reconstruct", *_LABELLED, "--limit", "1", *_CPU)),
    "reconstruct-scene": Writer(
        ("reconstruct", *_MODEL, *_SCENE, "--inputs", "rgb", "--outputs", "elevation", *_CPU)
    ),
    "predict": Writer(("predict", "--model", "{fine}", *_SCENE, *_CPU), ".tif", folder=False),
    "embed-chips": Writer(("embed", *_MODEL, *_STORE, *_CPU), ".parquet", folder=False),
    "embed-scene": Writer(("embed", *_MODEL, *_SCENE, *_CPU), ".parquet", folder=False),
    "compare": Writer(
        ("compare", "{made}/world/scene.yaml", "{made}/world/scene.yaml", *_MODEL, *_CPU)
    ),
    "assess": Writer(
        ("assess", "--map", "{made}/world/scene/landcover.tif", "--draw", "20",
         "--expected", "0.85"),
        ".gpkg", folder=False,
    ),
    "export-torch": Writer(("export", *_MODEL, "--format", "torch"), ".pt2", folder=False),
    "quickstart": Writer(("quickstart", "--world_only", "--chips", "4")),
    "study": Writer(
        ("study", *_LABELLED, "--task", "classification", "--methods", "knn", "--features", "mean",
         "--seeds", "1", *_CPU)
    ),
}  # fmt: skip
_CHECKPOINT = SHARED / "fixtures/reference_checkpoint/six_modalities/checkpoint-999.pth"
if _CHECKPOINT.is_file():
    WRITERS["convert"] = Writer(("convert", str(_CHECKPOINT)))
