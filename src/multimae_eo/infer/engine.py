"""Windows of a scene through a model and back into one map, in memory that does not grow with it.

Windows overlap; each pixel is the weighted mean of all windows over it, with smooth weights that
fall towards a window's edge and sum to one. At the right and bottom the last window is moved back,
never shrunk; a scene smaller than a chip is padded with invalid pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from multimae_eo.errors import ConfigError, ContractError, did_you_mean
from multimae_eo.geo import Window, window_starts
from multimae_eo.infer.raster_out import RowWriter, profile_of
from multimae_eo.infer.reconstruct import Reconstructor
from multimae_eo.modality import Modality, ModalitySet
from multimae_eo.report import write_whole
from multimae_eo.sample import Sample, collate
from multimae_eo.sources.scene import Grid, Scene, require_scene_modalities

Array = npt.NDArray[np.float32]
_QUICK_LOOK = 1024


class SceneModel(Reconstructor, Protocol):
    """A reconstructor that knows the size of its chips."""

    @property
    def config(self) -> Any:
        """Its ``sizes`` are the chips' sides at pre-training, by modality."""


@dataclass(frozen=True, kw_only=True)
class SceneOptions:
    """How a scene is cut. ``chip``: side of a window (default: the model's). ``overlap``: share of
    a window's side. ``draws``: random subsets for the spread (0: no spread is written)."""

    chip: int | None = None
    overlap: float = 0.5
    batch_size: int = 16
    draws: int = 0
    seed: int = 0
    progress: Callable[[int, int], None] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if not 0 <= self.overlap < 1:
            raise ConfigError(f"overlap must be in [0, 1), got {self.overlap}")


def reconstruct_scene(
    model: SceneModel,
    scene: Scene,
    *,
    inputs: Sequence[str],
    out: Path,
    outputs: Sequence[str] | None = None,
    options: SceneOptions | None = None,
) -> list[Path]:
    """Predict modalities over a whole scene; a COG and a quick-look PNG for each.

    Writes ``out/<modality>.tif`` on the scene's grid: float32 in physical units with NaN for
    nodata, or legend ids with a colour table; with draws also ``out/<modality>.spread.tif``. A
    pixel without any valid input is nodata.

    Raises:
        ConfigError: unknown inputs or outputs. ContractError: the model's modalities differ in
        resolution. OutputError: ``out`` cannot be written.
    """
    chosen = options or SceneOptions()
    require_scene_modalities(scene, inputs)
    sizes = {model.config.sizes[n] for n in model.modalities}
    if len(sizes) > 1:
        raise ContractError(
            f"the model's modalities have chips of {sorted(sizes)} px; scenes are mapped on one "
            "grid so far"
        )
    chip = chosen.chip or sizes.pop()
    names = _outputs(model, outputs)
    writers = {
        n: RowWriter(out / f"{n}.tif", scene.grid, profile_of(model.modalities[n])) for n in names
    }
    if chosen.draws:
        for n in names:
            profile = profile_of(model.modalities[n], spread=True)
            writers[f"{n}.spread"] = RowWriter(out / f"{n}.spread.tif", scene.grid, profile)
    try:
        predict = _predictor(model, scene, list(inputs), names, chosen)
        for rows in blended_rows(predict, scene.grid, chip=chip, options=chosen):
            _write_rows(writers, model.modalities, rows)
        paths = [w.finish() for w in writers.values()]
    except BaseException:
        for writer in writers.values():
            writer.discard()
        raise
    for name in names:
        _quick_look(out / f"{name}.tif", model.modalities[name])
    return [out / f"{n}.tif" for n in names] if not chosen.draws else paths


def _outputs(model: SceneModel, outputs: Sequence[str] | None) -> list[str]:
    able = list(dict.fromkeys(t.modality for t in model.tasks if not t.patch_normalise))
    for name in outputs or ():
        if name not in able:
            raise ConfigError(f"the model cannot predict {name!r}; {did_you_mean(name, able)}")
    return [n for n in able if outputs is None or n in outputs]


Predict = Callable[[Sequence[Window]], Iterator[tuple[Window, Mapping[str, Array], Any]]]
"""From windows to (window, {name: (C, h, w)}, observed (h, w)); windows without inputs are left
out."""


def _predictor(
    model: SceneModel, scene: Scene, inputs: list[str], names: list[str], options: SceneOptions
) -> Predict:
    shared = [n for n in scene.modalities if n in model.modalities]
    known = scene.modalities.select(shared)

    def predict(
        windows: Sequence[Window],
    ) -> Iterator[tuple[Window, Mapping[str, Array], Any]]:
        read = [(w, scene.read(w, inputs)) for w in windows]
        read = [(w, s) for w, s in read if s.pixels]
        for start in range(0, len(read), options.batch_size):
            part = read[start : start + options.batch_size]
            batch = collate([s for _, s in part], known)
            said = model.reconstruct(
                batch, inputs, outputs=names, draws=options.draws, seed=options.seed
            )
            for row, (window, sample) in enumerate(part):
                values = {n: said[n].mean[row].numpy() for n in names}
                if options.draws:
                    values |= {f"{n}.spread": said[n].spread[row].numpy() for n in names}
                yield window, values, _observed(sample)

    return predict


def _observed(sample: Sample) -> npt.NDArray[np.bool_]:
    """Pixels where any input was observed: bool (H, W)."""
    first = next(iter(sample.pixels.values()))
    found = np.zeros(first.shape[-2:], dtype=bool)
    for name in sample.pixels:
        found |= True if name not in sample.valid else sample.valid[name].any(axis=0)
    return found


@dataclass(frozen=True)
class Rows:
    """Finished rows: values (C, n, W) per name, and which pixels were observed (n, W)."""

    values: Mapping[str, Array]
    observed: npt.NDArray[np.bool_]


def blend_weights(chip: int) -> Array:
    """Smooth weights of a window, (chip, chip): a raised cosine in each direction, all > 0."""
    wave = np.sin(np.pi * (np.arange(chip) + 0.5) / chip) ** 2
    return np.outer(wave, wave).astype(np.float32)


def blended_rows(
    predict: Predict, grid: Grid, *, chip: int, options: SceneOptions
) -> Iterator[Rows]:
    """Run all windows, a row of windows at a time, and give rows as soon as they are final."""
    step = max(1, round(chip * (1 - options.overlap)))
    tops = window_starts(grid.height, chip, step)
    lefts = window_starts(grid.width, chip, step)
    weights = blend_weights(chip)
    sums: dict[str, Array] = {}
    total = np.zeros((chip, grid.width), np.float32)
    observed = np.zeros((chip, grid.width), dtype=bool)
    for number, top in enumerate(tops):
        windows = [Window(row=top, col=left, height=chip, width=chip) for left in lefts]
        for window, values, seen in predict(windows):
            width = min(chip, grid.width - window.col)
            at = slice(window.col, window.col + width)
            weight = weights[:, :width]
            total[:, at] += weight
            observed[:, at] |= seen[:, :width]
            for name, value in values.items():
                if name not in sums:
                    sums[name] = np.zeros((len(value), chip, grid.width), np.float32)
                sums[name][:, :, at] += value[:, :, :width] * weight
        last = number == len(tops) - 1
        done = min(chip, grid.height - top) if last else tops[number + 1] - top
        share: Array = np.maximum(total[:done], np.float32(1e-30))
        yield Rows({n: s[:, :done] / share for n, s in sums.items()}, observed[:done].copy())
        _shift(total[None], done)
        _shift(observed[None], done)
        for s in sums.values():
            _shift(s, done)
        if options.progress is not None:
            options.progress(number + 1, len(tops))


def _shift(rows: npt.NDArray[Any], count: int) -> None:
    """Drop the first rows and make room for new ones at the end."""
    rows[:, : rows.shape[1] - count] = rows[:, count:].copy()
    rows[:, rows.shape[1] - count :] = 0


def _write_rows(writers: Mapping[str, RowWriter], modalities: ModalitySet, rows: Rows) -> None:
    for key, writer in writers.items():
        modality = modalities[key.removesuffix(".spread")]
        count, width = rows.observed.shape
        values = rows.values.get(key)
        nodata = writer.profile.nodata
        if values is None:
            # No window with any input so far: nothing was observed in these rows.
            block = np.full((len(writer.profile.bands), count, width), nodata, np.float32)
        else:
            if modality.categorical and not key.endswith(".spread"):
                ids = np.array(modality.class_ids)
                values = ids[values.argmax(axis=0)][None]
            block = np.where(rows.observed, values, nodata)
        writer.write(block)


def _quick_look(path: Path, modality: Modality) -> None:
    """A PNG beside a raster, at most 1024 px a side."""
    import io

    import rasterio
    from PIL import Image

    from multimae_eo.infer.pictures import class_picture, picture
    from multimae_eo.infer.scores import legend_index

    with rasterio.open(path) as dataset:
        scale = max(1, -(-max(dataset.shape) // _QUICK_LOOK))
        shape = (-(-dataset.height // scale), -(-dataset.width // scale))
        values = dataset.read(out_shape=(dataset.count, *shape))
        ok = np.isfinite(values) if values.dtype.kind == "f" else values != dataset.nodata
    if modality.categorical:
        image = class_picture(modality, legend_index(values[0], modality), ok)
    else:
        image = picture(modality, np.where(ok, values, 0.0).astype(np.float64), valid=ok)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    write_whole(path.with_name(path.name + ".png"), buffer.getvalue())
