"""Mask patches and modalities of a location, and reconstruct them from the visible ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from multimae_eo.demo.chip_locations import Locations
from multimae_eo.demo.drawing import (
    Palette,
    class_entries,
    data_uri,
    in_palette,
    in_palettes,
    packed,
    png,
    ramp,
    ramp_of,
)
from multimae_eo.demo.jobs import Cancellation
from multimae_eo.errors import ConfigError, did_you_mean
from multimae_eo.geo import Window
from multimae_eo.metrics.reconstruction_scores import ReconstructionScores
from multimae_eo.network.masking import sample_states
from multimae_eo.network.multimae import MultiMAE
from multimae_eo.network.reconstruction import Reconstructed, predict_masked
from multimae_eo.network.tokens import TokenLayout, TokenState
from multimae_eo.network.windows import Blend, chip_windows, extent
from multimae_eo.reports.panels import Panel, PanelKind, Ranges, panel, panel_title
from multimae_eo.reports.pictures import describe, look_of, picture
from multimae_eo.reports.views import ChipView, chip_views
from multimae_eo.sample import Batch, Sample, collate
from multimae_eo.scenes.engine import computing
from multimae_eo.scenes.job import SceneOptions

Mask = npt.NDArray[np.bool_]
_VALUES = 1 << 20  # numbers sent per location: beyond them the page gets pictures only


@dataclass(frozen=True, kw_only=True)
class MaskOptions:
    """Which patches are visible. ``inputs``: modalities with any visible patch.

    ``masks``: per modality, rows of 0 and 1, where 1 masks a patch; or, without them, the number of
    ``visible`` tokens (all inputs together) and their balance over modalities (``alpha``, the
    Dirichlet concentration). ``samples``: random halves of the visible tokens for the std.
    ``palette``: of classes.
    """

    inputs: Sequence[str]
    masks: Mapping[str, str] | None = None
    visible: int = 1
    alpha: float = 1.0
    seed: int = 0
    samples: int = 4
    palette: Palette = "official"


@dataclass(frozen=True)
class _LocationView:
    """A location as a batch of one, the windows it is encoded in, and its grid of tokens."""

    batch: Batch
    windows: list[dict[str, Window]]
    layout: TokenLayout
    sides: Mapping[str, tuple[int, int]]
    observed: torch.Tensor = field(repr=False)


class ReconstructService:
    """Reconstructs the locations of one source or scene with one model. Keeps nothing of a user."""

    def __init__(
        self, model: MultiMAE, locations: Locations, options: SceneOptions | None = None
    ) -> None:
        self._options = options or SceneOptions()
        self.model, self.locations = model.eval(), locations
        # Scores are in the data's units; outputs that the data lack are only drawn.
        self.all = model.modalities
        self._drawn = in_palettes(model.modalities)
        predictable = dict.fromkeys(t.modality for t in model.tasks if t.reconstructs)
        self.outputs = list(predictable)

    def thumbnail(self, number: int, palette: Palette = "official") -> bytes:
        """The first modality of a location, as a PNG."""
        sample = self.locations.read(number)
        view = self._chip_view(self._batch(sample), {}, MaskOptions(inputs=()))
        name = next(n for n in self.locations.modalities if n in view.truth)
        drawn = in_palette(self.locations.modalities[name], palette)
        return png(picture(drawn, view.truth[name], valid=view.valid[name]))

    def look(self, number: int, palette: Palette = "official") -> dict[str, object]:
        """A location's observations: per modality a picture, values, bands and grid of tokens."""
        sample = self.locations.read(number)
        view = self._view(sample)
        chip = self._chip_view(view.batch, {}, MaskOptions(inputs=(), palette=palette))
        modalities = []
        for name, modality in self._drawn[palette].items():
            rows, cols = view.layout.grids[name]
            entry = {
                "name": name,
                "description": describe(modality),
                "unit": modality.unit,
                "categorical": modality.categorical,
                "bands": [{"name": b.name, "um": b.wavelength_um} for b in modality.bands],
                "classes": class_entries(modality),
                "ramp": ramp_of(modality),
                "look": look_of(modality).name.lower(),
                "grid": [rows, cols],
                "size": list(view.sides[name]),
                "token": self.model.config.inputs[name].token_pixels,
                "output": name in self.outputs,
                "observed": None,
            }
            if name in chip.truth:
                drawn = panel(chip, name, "truth", Ranges(1.0, 1.0))
                entry["observed"] = _picture(drawn) | _values(chip.truth[name], chip.valid[name])
            modalities.append(entry)
        tokens = int(view.observed.sum())
        return {
            "location": number,
            "title": self.locations.title(number),
            "tokens": tokens,
            "modalities": modalities,
        }

    def reconstruct(
        self, number: int, options: MaskOptions, cancellation: Cancellation | None = None
    ) -> dict[str, Any]:
        """Pictures, values, and scores on masked pixels of all tasks, from the visible patches.

        Raises DataError for an unknown location, ConfigError for unknown inputs or masks that do
        not fit, SupersededError when it is cancelled.
        """
        cancellation = cancellation or Cancellation()
        view = self._view(self.locations.read(number))
        states = self._states(view, options)
        predictions = self._predict(view, states, options, cancellation)
        masked = self._masked_pixels(view, states)
        scores = self._scores(view, predictions, masked)
        cancellation.check()
        chip = self._chip_view(view.batch, predictions, options)
        scored = replace(chip, valid={n: v & masked[n] for n, v in chip.valid.items()})
        modalities = {n: self._draw(n, chip, scored, masked[n]) for n in predictions}
        visible = states == TokenState.VISIBLE
        masks = {
            n: "".join("0" if s else "1" for s in visible[0, part].tolist())
            for n, part in view.layout.slices.items()
        }
        return {
            "location": number,
            "visible": int(visible.sum()),
            "tokens": int(view.observed.sum()),
            "masks": masks,
            "modalities": modalities,
            "scores": scores,
        }

    # Visible and masked tokens --------------------------------------------------------------------

    def _batch(self, sample: Sample) -> Batch:
        return collate([sample], self.locations.modalities)

    def _view(self, sample: Sample) -> _LocationView:
        batch = self._batch(sample)
        config = self.model.config
        # Windows that overlap by half have to end on edges of every modality's tokens.
        counts = [config.sizes[n] // i.token_pixels for n, i in config.inputs.items()]
        exact = all(config.sizes[n] % i.token_pixels == 0 for n, i in config.inputs.items())
        overlap = 0.5 if exact and math.gcd(*counts) % 2 == 0 else 0.0
        cut = chip_windows(config.sizes, batch, overlap) if exact else []
        windows = [dict(w) for w in cut]
        patches = self.model.patchify(batch.to(self._options.device))
        sides = {n: extent(windows, n) if windows else s for n, s in patches.chip_sizes.items()}
        layout = TokenLayout({n: config.inputs[n].grid(*sides[n]) for n in self.model.modalities})
        observed = torch.zeros(1, layout.count, dtype=torch.bool)
        for name, part in layout.slices.items():
            columns = patches.layout.slices[name]
            if name in patches.values:
                observed[:, part] = (
                    True if patches.observed is None else patches.observed[:, columns].cpu()
                )
        return _LocationView(batch, windows, layout, sides, observed)

    def _states(self, view: _LocationView, options: MaskOptions) -> torch.Tensor:
        for name in options.inputs:
            if name not in self.model.modalities:
                raise ConfigError(f"no input {name!r}; {did_you_mean(name, self.model.modalities)}")
        inputs = tuple(n for n in self.model.modalities if n in options.inputs)
        visible = view.layout.columns(inputs)[None] & view.observed
        if options.masks is None:
            if not bool(visible.any()):
                raise ConfigError("inputs: nothing is observed in them here; choose others")
            return sample_states(
                view.layout,
                view.observed,
                batch_size=1,
                num_visible_tokens=options.visible,
                alpha=options.alpha,
                inputs=inputs,
                generator=torch.Generator().manual_seed(options.seed),
            )
        for name, text in options.masks.items():
            if name not in view.layout.slices:
                raise ConfigError(f"masks: no modality {name!r}; "
                                  f"{did_you_mean(name, view.layout.slices)}")  # fmt: skip
            part = view.layout.slices[name]
            if len(text) != part.stop - part.start or set(text) - {"0", "1"}:
                raise ConfigError(
                    f"masks: {name} needs {part.stop - part.start} digits 0 or 1, one per patch"
                )
            visible[0, part] &= torch.tensor([c == "0" for c in text])
        if not bool(visible.any()):
            raise ConfigError("everything is masked: leave at least one patch visible")
        masked = torch.where(view.observed, int(TokenState.MASKED), int(TokenState.ABSENT))
        return torch.where(visible, int(TokenState.VISIBLE), masked).to(torch.int8)

    # Predictions ----------------------------------------------------------------------------------

    @torch.no_grad()
    def _predict(
        self,
        view: _LocationView,
        states: torch.Tensor,
        options: MaskOptions,
        cancellation: Cancellation,
    ) -> dict[str, Reconstructed]:
        means = self._blended(view, states)
        sums = {n: [torch.zeros_like(m), torch.zeros_like(m)] for n, m in means.items()}
        random = torch.Generator().manual_seed(options.seed + 1)
        for _ in range(options.samples):
            cancellation.check()
            for name, draw in self._blended(view, _half(states, random)).items():
                sums[name][0] += draw - means[name]
                sums[name][1] += (draw - means[name]).square()
        reconstructed = {}
        for name, mean in means.items():
            if self.model.modalities[name].categorical:
                std = -(mean * mean.clamp_min(1e-9).log()).sum(dim=1, keepdim=True)
            else:
                first, second = (s / max(options.samples, 1) for s in sums[name])
                std = (second - first.square()).clamp_min(0).sqrt()
            reconstructed[name] = Reconstructed(mean, std)
        return reconstructed

    def _blended(self, view: _LocationView, states: torch.Tensor) -> dict[str, torch.Tensor]:
        if not view.windows:
            return self._predict_masked(view.batch, states)
        stacked = _stacked([view.batch.cut(w) for w in view.windows])
        window_states = torch.cat([self._window_states(view, states, w) for w in view.windows])
        predictions = self._predict_masked(stacked, window_states)
        blended = {}
        for name, values in predictions.items():
            blend = Blend(1, view.sides[name])
            for row, window in enumerate(view.windows):
                blend.add(values[row : row + 1], torch.tensor([0]), window[name])
            blended[name] = blend.mean()
        return blended

    def _predict_masked(self, batch: Batch, states: torch.Tensor) -> dict[str, torch.Tensor]:
        with computing(self._options):
            predictions = predict_masked(self.model, batch.to(self._options.device), states)
        return {name: values.cpu() for name, values in predictions.items()}

    def _window_states(
        self, view: _LocationView, states: torch.Tensor, window: Mapping[str, Window]
    ) -> torch.Tensor:
        parts = []
        for name, (rows, cols) in view.layout.grids.items():
            side, part = self.model.config.inputs[name].token_pixels, window[name]
            grid = states[0, view.layout.slices[name]].reshape(rows, cols)
            top, left = part.row // side, part.col // side
            down, across = part.height // side, part.width // side
            parts.append(grid[top : top + down, left : left + across].reshape(-1))
        return torch.cat(parts)[None]

    # Scores and pictures --------------------------------------------------------------------------

    def _masked_pixels(self, view: _LocationView, states: torch.Tensor) -> dict[str, Mask]:
        """Masked pixels of each modality, bool (1, H, W)."""
        masked = {}
        for name, (rows, cols) in view.layout.grids.items():
            side = self.model.config.inputs[name].token_pixels
            visible = states[0, view.layout.slices[name]].reshape(rows, cols) == TokenState.VISIBLE
            pixels = np.kron(~visible.numpy(), np.ones((side, side), bool))
            height, width = view.sides[name]
            masked[name] = pixels[None, :height, :width]
        return masked

    def _scores(
        self,
        view: _LocationView,
        predictions: Mapping[str, Reconstructed],
        masked: Mapping[str, Mask],
    ) -> dict[str, object]:
        batch = view.batch
        valid = {}
        for name, pixels in batch.pixels.items():
            ok = batch.valid.get(name, torch.ones_like(pixels[:, :1], dtype=torch.bool))
            valid[name] = ok & torch.from_numpy(masked[name])
        metric = ReconstructionScores(
            self.locations.modalities,
            names=[n for n in predictions if n in self.locations.modalities],
            statistics=self.model.statistics,
        )
        metric.update(replace(batch, valid=valid, complete=False), predictions)
        keys = ("kind", "unit", "pixels", "r2", "rmse", "mae", "accuracy", "miou", "baseline")
        return {n: {k: v for k, v in s.items() if k in keys} for n, s in metric.compute().items()}

    def _chip_view(
        self, batch: Batch, predictions: Mapping[str, Reconstructed], options: MaskOptions
    ) -> ChipView:
        view = chip_views(batch, predictions, inputs=options.inputs)[0]
        return replace(view, modalities=self._drawn[options.palette])

    def _draw(self, name: str, chip: ChipView, scored: ChipView, masked: Mask) -> dict[str, object]:
        ranges = self._ranges(name)
        pictures: dict[str, object] = {}
        kinds: tuple[PanelKind, ...] = ("prediction", "std", "error")
        for kind in kinds:
            drawn = panel(scored if kind == "error" else chip, name, kind, ranges)
            pictures[kind] = _picture(drawn) | {
                "title": panel_title(self.all[name], kind),
                "note": drawn.note,
            }
        if name in chip.truth:
            # The truth where it is visible to the model, the prediction elsewhere.
            truth = panel(chip, name, "truth", ranges).image
            prediction = panel(chip, name, "prediction", ranges).image
            filled = np.where(masked[0][..., None], prediction, truth).astype(np.uint8)
            pictures["filled"] = {"src": data_uri(filled)}
        mean, std = chip.predicted(name), chip.uncertainty(name)[None]
        return pictures | {
            "values": _values(mean)["values"],
            "stds": _values(std)["values"],
        }

    def _ranges(self, name: str) -> Ranges:
        """Fixed colour ranges, so that colours compare while a mask is painted."""
        modality = self.all[name]
        if modality.categorical:
            return Ranges(uncertainty=float(np.log(len(modality.classes)) * 0.6), error=1.0)
        statistics = self.model.statistics
        if statistics is None or name not in statistics.modalities:
            return Ranges(1.0, 1.0)
        deviation = statistics.mean_std(name)[1]
        scale = float(np.sqrt(np.nanmean(np.asarray(deviation, np.float64) ** 2)))
        return Ranges(uncertainty=scale * 0.5 or 1.0, error=scale or 1.0)


def _half(states: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    """States (1, L) with a random half of the visible tokens masked, at least one left."""
    visible = (states[0] == TokenState.VISIBLE).nonzero()[:, 0]
    shuffled = visible[torch.randperm(len(visible), generator=random)]
    fewer = states.clone()
    fewer[0, shuffled[max(1, len(shuffled) // 2) :]] = int(TokenState.MASKED)
    return fewer


def _stacked(parts: Sequence[Batch]) -> Batch:
    """Batches of one chip each, of equal sizes, as one."""
    first = parts[0]

    def joined(kind: str) -> dict[str, torch.Tensor]:
        return {n: torch.cat([getattr(p, kind)[n] for p in parts]) for n in getattr(first, kind)}

    def rows(kind: str) -> torch.Tensor:
        return torch.cat([getattr(p, kind) for p in parts])

    return replace(
        first,
        keys=tuple(k for p in parts for k in p.keys),
        pixels=joined("pixels"),
        valid=joined("valid"),
        present=rows("present"),
        scale=rows("scale"),
        offset=rows("offset"),
        level=rows("level"),
        labels=None,
    )


def _picture(drawn: Panel) -> dict[str, object]:
    bar = drawn.bar
    return {
        "src": data_uri(drawn.image),
        "bar": None
        if bar is None
        else {"colours": ramp(bar.colours), "low": bar.low, "high": bar.high},
    }


def _values(values: npt.NDArray[np.generic], valid: Mask | None = None) -> dict[str, object]:
    if values.size > _VALUES:
        return {"values": None}
    ok = None if valid is None else np.broadcast_to(valid, values.shape)
    return {"values": packed(values, ok)}
