"""From a scene to its map: train on the western half of Aberystwyth, map and score the eastern.

    python examples/map_aberystwyth.py OUT [--epochs 12]

Every step is a command of ``multimae-eo``, which is shown; run again, it goes on where it was. The
"truth" is the class map that comes with the scene, another model's output. Scores are of the
eastern half only, beside those of the commonest class of the western half.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import rasterio

from multimae_eo.cli import main as multimae_eo
from multimae_eo.sources.scene.scene import Scene

HERE = Path(__file__).resolve().parent
WEST, SCENE = HERE / "aberystwyth_west.yaml", HERE / "scene_aberystwyth.yaml"
INPUTS = {"optical": "optical", "optical_elevation": "optical,elevation"}
Ids = npt.NDArray[np.int64]


def run(command: str) -> None:
    """Show and run one command; end where it fails."""
    sys.stderr.write(f"$ multimae-eo {command}\n")
    code = multimae_eo(shlex.split(command))
    if code:
        sys.exit(code)


def scores(said: Ids, truth: Ids, classes: int) -> dict[str, float]:
    """Pixel accuracy, and the mean over classes of intersection over union."""
    shares = []
    for i in range(classes):
        union = ((said == i) | (truth == i)).sum()
        if union:
            shares.append(float(((said == i) & (truth == i)).sum() / union))
    return {"accuracy": float((said == truth).mean()), "miou": float(np.mean(shares))}


def east(scene: Scene, out: Path) -> dict[str, dict[str, float]]:
    """Scores of the maps on the eastern half, where all that is compared is valid."""
    known = scene.read(scene.grid.extent, ["optical", "landcover"])
    ids = scene.modalities["landcover"].class_ids
    truth = np.searchsorted(ids, known.pixels["landcover"][0])
    ok = np.ones(truth.shape, dtype=bool)
    for valid in known.valid.values():
        ok &= valid.any(axis=0)
    half = scene.grid.width // 2
    commonest = int(np.bincount(truth[:, :half][ok[:, :half]]).argmax())
    ok[:, :half] = False
    found = {"commonest class": scores(np.full(ok.sum(), commonest), truth[ok], len(ids))}
    for stem in INPUTS:
        with rasterio.open(out / f"{stem}.tif") as file:
            said = file.read(1).astype(np.int64)
        if (said[ok] == 255).any():
            sys.exit(f"{stem}.tif has nodata where the scene has none")
        found[stem] = scores(said[ok], truth[ok], len(ids))
    return found


def main() -> None:
    """All steps in order; the scores are written last."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--epochs", type=int, default=12, help="of fine-tuning")
    asked = parser.parse_args()
    out, epochs = asked.out, asked.epochs
    run(f"prepare {WEST} --out {out}/store")
    run(
        f"pretrain --recipe quickstart --data {out}/store --out {out}/pretrained "
        "--modalities=[optical,elevation] --model.stride={} --data.chip 64 "
        "--masking.num_visible_tokens 24 --run.epochs 25"
    )
    for stem, inputs in INPUTS.items():
        run(
            f"finetune --model {out}/pretrained/model --data {out}/store --task segmentation "
            f"--inputs {inputs} --head convnext --head.width 32 --head.depth 1 "
            f"--optim.lr 4e-3 --optim.warmup_epochs 1 --run.epochs {epochs} --run.accelerator cpu "
            f"--out {out}/{stem}"
        )
        run(
            f"predict --model {out}/{stem}/model --scene {SCENE} --inputs {inputs} "
            f"--confidence --device cpu --out {out}/{stem}.tif"
        )
    run(
        f"reconstruct --model {out}/pretrained/model --scene {SCENE} --inputs optical "
        f"--outputs elevation --samples 4 --error --device cpu --out {out}/relief"
    )
    found = east(Scene(SCENE), out)
    (out / "scores.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    for name, score in found.items():
        sys.stdout.write(f"{name:20} accuracy {score['accuracy']:.3f}  mIoU {score['miou']:.3f}\n")


if __name__ == "__main__":
    main()
