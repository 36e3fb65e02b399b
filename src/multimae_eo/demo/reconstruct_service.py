"""Hide patches and modalities of a place, and see what the model makes of the rest."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from multimae_eo.demo.chip_locations import Places
from multimae_eo.demo.drawing import (
    data_uri,
    legend_of,
    packed,
    png,
    ramp,
    ramp_of,
    safe_set,
)
from multimae_eo.demo.jobs import Ticket
from multimae_eo.errors import ConfigError, did_you_mean
from multimae_eo.geo import Window
from multimae_eo.metrics.reconstruction_scores import ReconstructionScores
from multimae_eo.network.masking import sample_states
from multimae_eo.network.multimae import MultiMAE
from multimae_eo.network.reconstruction import Reconstructed, predict_hidden
from multimae_eo.network.tokens import TokenLayout, TokenState
from multimae_eo.network.windows import Blend, chip_windows, extent
from multimae_eo.reports.panels import Panel, PanelKind, Ranges, panel, panel_title
from multimae_eo.reports.pictures import describe, look_of, picture
from multimae_eo.reports.views import ChipView, chip_views
from multimae_eo.sample import Batch, Sample, collate

Mask = npt.NDArray[np.bool_]
_VALUES = 1 << 20  # numbers sent per place: beyond them the page gets pictures only


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is shown. ``inputs``: modalities that are given at all.

    ``masks``: per modality, rows of 0 and 1, where 1 hides a patch; or, without them, how many
    tokens are ``visible`` (all inputs together) and how evenly over modalities (``alpha``, of the
    Dirichlet draw). ``draws``: random halves of the visible tokens, for the spread.
    """

    inputs: Sequence[str]
    masks: Mapping[str, str] | None = None
    visible: int = 1
    alpha: float = 1.0
    seed: int = 0
    draws: int = 4


@dataclass(frozen=True)
class _View:
    """A place as a batch of one, the windows it is seen through, and its grid of tokens."""

    batch: Batch
    windows: list[dict[str, Window]]
    layout: TokenLayout
    sides: Mapping[str, tuple[int, int]]
    observed: torch.Tensor = field(repr=False)


class ReconstructService:
    """Answers of one model about the places of one source or scene. Keeps nothing of a user."""

    def __init__(self, model: MultiMAE, places: Places) -> None:
        self.model, self.places = model.eval(), places
        self.modalities = safe_set(places.modalities)
        # Drawn and measured in the data's own units; what the data lack is the model's word alone.
        self.all = safe_set(model.modalities)
        able = dict.fromkeys(t.modality for t in model.tasks if not t.patch_normalise)
        self.outputs = list(able)

    def thumbnail(self, number: int) -> bytes:
        """The first modality of a place, as a PNG."""
        sample = self.places.read(number)
        view = self._chip_view(self._batch(sample), {}, ())
        name = next(n for n in self.modalities if n in view.truth)
        drawn = picture(self.modalities[name], view.truth[name], valid=view.valid[name])
        return png(drawn)

    def look(self, number: int) -> dict[str, Any]:
        """A place as it was observed: per modality a picture, values, bands and grid of tokens."""
        sample = self.places.read(number)
        view = self._view(sample)
        chip = self._chip_view(view.batch, {}, ())
        found = []
        for name, modality in self.all.items():
            rows, cols = view.layout.grids[name]
            has = name in chip.truth
            told = {
                "name": name,
                "about": describe(modality),
                "unit": modality.unit,
                "categorical": modality.categorical,
                "bands": [{"name": b.name, "um": b.wavelength_um} for b in modality.bands],
                "classes": legend_of(modality),
                "ramp": ramp_of(modality),
                "look": look_of(modality).name.lower(),
                "grid": [rows, cols],
                "size": list(view.sides[name]),
                "token": self.model.config.inputs[name].token_pixels,
                "output": name in self.outputs,
                "observed": None,
            }
            if has:
                shown = panel(chip, name, "truth", Ranges(1.0, 1.0))
                told["observed"] = _picture(shown) | _values(chip.truth[name], chip.valid[name])
            found.append(told)
        tokens = int(view.observed.sum())
        return {
            "place": number,
            "title": self.places.title(number),
            "tokens": tokens,
            "modalities": found,
        }

    def reconstruct(
        self, number: int, asked: Asked, ticket: Ticket | None = None
    ) -> dict[str, Any]:
        """Predict every task from what is shown; pictures, values and scores on what was hidden.

        Raises DataError for an unknown place, ConfigError for unknown inputs or masks that do not
        fit, SupersededError when the ticket was cancelled.
        """
        going = ticket or Ticket()
        view = self._view(self.places.read(number))
        states = self._states(view, asked)
        said = self._predicted(view, states, asked, going)
        hidden = self._hidden(view, states)
        scores = self._scores(view, said, hidden)
        going.check()
        chip = self._chip_view(view.batch, said, asked.inputs)
        missed = replace(chip, valid={n: v & hidden[n] for n, v in chip.valid.items()})
        answer = {n: self._drawn(n, chip, missed, hidden[n]) for n in said}
        shown = states == TokenState.VISIBLE
        masks = {
            n: "".join("0" if s else "1" for s in shown[0, part].tolist())
            for n, part in view.layout.slices.items()
        }
        return {
            "place": number,
            "visible": int(shown.sum()),
            "tokens": int(view.observed.sum()),
            "masks": masks,
            "modalities": answer,
            "scores": scores,
        }

    # What is shown -------------------------------------------------------------------------------

    def _batch(self, sample: Sample) -> Batch:
        return collate([sample], self.places.modalities)

    def _view(self, sample: Sample) -> _View:
        batch = self._batch(sample)
        config = self.model.config
        # Windows that overlap by half have to end on edges of every modality's tokens.
        counts = [config.sizes[n] // i.token_pixels for n, i in config.inputs.items()]
        exact = all(config.sizes[n] % i.token_pixels == 0 for n, i in config.inputs.items())
        overlap = 0.5 if exact and math.gcd(*counts) % 2 == 0 else 0.0
        cut = chip_windows(config.sizes, batch, overlap) if exact else []
        windows = [dict(w) for w in cut]
        patches = self.model.patchify(batch)
        sides = {n: extent(windows, n) if windows else s for n, s in patches.chip_sizes.items()}
        layout = TokenLayout({n: config.inputs[n].grid(*sides[n]) for n in self.model.modalities})
        observed = torch.zeros(1, layout.count, dtype=torch.bool)
        for name, part in layout.slices.items():
            own = patches.layout.slices[name]
            if name in patches.values:
                observed[:, part] = True if patches.observed is None else patches.observed[:, own]
        return _View(batch, windows, layout, sides, observed)

    def _states(self, view: _View, asked: Asked) -> torch.Tensor:
        for name in asked.inputs:
            if name not in self.model.modalities:
                raise ConfigError(f"no input {name!r}; {did_you_mean(name, self.model.modalities)}")
        inputs = tuple(n for n in self.model.modalities if n in asked.inputs)
        given = view.layout.columns(inputs)[None] & view.observed
        if asked.masks is None:
            if not bool(given.any()):
                raise ConfigError("inputs: nothing was observed in them here; choose others")
            return sample_states(
                view.layout,
                view.observed,
                batch_size=1,
                visible=asked.visible,
                alpha=asked.alpha,
                inputs=inputs,
                generator=torch.Generator().manual_seed(asked.seed),
            )
        for name, text in asked.masks.items():
            if name not in view.layout.slices:
                raise ConfigError(f"masks: no modality {name!r}; "
                                  f"{did_you_mean(name, view.layout.slices)}")  # fmt: skip
            part = view.layout.slices[name]
            if len(text) != part.stop - part.start or set(text) - {"0", "1"}:
                raise ConfigError(
                    f"masks: {name} needs {part.stop - part.start} digits 0 or 1, one per patch"
                )
            given[0, part] &= torch.tensor([c == "0" for c in text])
        if not bool(given.any()):
            raise ConfigError("everything is hidden: show the model at least one patch")
        masked = torch.where(view.observed, int(TokenState.MASKED), int(TokenState.ABSENT))
        return torch.where(given, int(TokenState.VISIBLE), masked).to(torch.int8)

    # What is predicted ---------------------------------------------------------------------------

    @torch.no_grad()
    def _predicted(
        self, view: _View, states: torch.Tensor, asked: Asked, ticket: Ticket
    ) -> dict[str, Reconstructed]:
        means = self._blended(view, states)
        sums = {n: [torch.zeros_like(m), torch.zeros_like(m)] for n, m in means.items()}
        random = torch.Generator().manual_seed(asked.seed + 1)
        for _ in range(asked.draws):
            ticket.check()
            for name, drawn in self._blended(view, _half(states, random)).items():
                sums[name][0] += drawn - means[name]
                sums[name][1] += (drawn - means[name]).square()
        found = {}
        for name, mean in means.items():
            if self.model.modalities[name].categorical:
                spread = -(mean * mean.clamp_min(1e-9).log()).sum(dim=1, keepdim=True)
            else:
                first, second = (s / max(asked.draws, 1) for s in sums[name])
                spread = (second - first.square()).clamp_min(0).sqrt()
            found[name] = Reconstructed(mean, spread)
        return found

    def _blended(self, view: _View, states: torch.Tensor) -> dict[str, torch.Tensor]:
        if not view.windows:
            return predict_hidden(self.model, view.batch, states)
        part = [view.batch.cut(w) for w in view.windows]
        stacked = _stacked(part)
        shown = torch.cat([self._window_states(view, states, w) for w in view.windows])
        said = predict_hidden(self.model, stacked, shown)
        found = {}
        for name, values in said.items():
            blend = Blend(1, view.sides[name])
            for row, window in enumerate(view.windows):
                blend.add(values[row : row + 1], torch.tensor([0]), window[name])
            found[name] = blend.mean()
        return found

    def _window_states(
        self, view: _View, states: torch.Tensor, window: Mapping[str, Window]
    ) -> torch.Tensor:
        parts = []
        for name, (rows, cols) in view.layout.grids.items():
            side, own = self.model.config.inputs[name].token_pixels, window[name]
            grid = states[0, view.layout.slices[name]].reshape(rows, cols)
            top, left = own.row // side, own.col // side
            down, across = own.height // side, own.width // side
            parts.append(grid[top : top + down, left : left + across].reshape(-1))
        return torch.cat(parts)[None]

    # What is told --------------------------------------------------------------------------------

    def _hidden(self, view: _View, states: torch.Tensor) -> dict[str, Mask]:
        """Pixels (1, H, W) of each modality that the model was not shown."""
        found = {}
        for name, (rows, cols) in view.layout.grids.items():
            side = self.model.config.inputs[name].token_pixels
            shown = (states[0, view.layout.slices[name]] == TokenState.VISIBLE).reshape(rows, cols)
            hidden = np.kron(~shown.numpy(), np.ones((side, side), bool))
            height, width = view.sides[name]
            found[name] = hidden[None, :height, :width]
        return found

    def _scores(
        self, view: _View, said: Mapping[str, Reconstructed], hidden: Mapping[str, Mask]
    ) -> dict[str, Any]:
        batch = view.batch
        valid = {}
        for name, pixels in batch.pixels.items():
            ok = batch.valid.get(name, torch.ones_like(pixels[:, :1], dtype=torch.bool))
            valid[name] = ok & torch.from_numpy(hidden[name])
        scored = ReconstructionScores(
            self.places.modalities,
            names=[n for n in said if n in self.places.modalities],
            statistics=self.model.statistics,
        )
        scored.update(replace(batch, valid=valid, complete=False), said)
        keys = ("kind", "unit", "pixels", "r2", "rmse", "mae", "accuracy", "miou", "baseline")
        return {n: {k: v for k, v in s.items() if k in keys} for n, s in scored.compute().items()}

    def _chip_view(
        self, batch: Batch, said: Mapping[str, Reconstructed], inputs: Sequence[str]
    ) -> ChipView:
        return replace(chip_views(batch, said, inputs=inputs)[0], modalities=self.all)

    def _drawn(self, name: str, chip: ChipView, missed: ChipView, hidden: Mask) -> dict[str, Any]:
        ranges = self._ranges(name)
        pictures: dict[str, Any] = {}
        shown: tuple[PanelKind, ...] = ("prediction", "spread", "error")
        for kind in shown:
            drawn = panel(missed if kind == "error" else chip, name, kind, ranges)
            pictures[kind] = _picture(drawn) | {
                "title": panel_title(self.all[name], kind),
                "note": drawn.note,
            }
        if name in chip.truth:
            # Where the model was shown the truth, the picture shows it, too.
            truth = panel(chip, name, "truth", ranges).image
            whole = panel(chip, name, "prediction", ranges).image
            filled = np.where(hidden[0][..., None], whole, truth).astype(np.uint8)
            pictures["filled"] = {"src": data_uri(filled)}
        mean, spread = chip.predicted(name), chip.uncertainty(name)[None]
        return pictures | {
            "values": _values(mean)["values"],
            "spreads": _values(spread)["values"],
        }

    def _ranges(self, name: str) -> Ranges:
        """Fixed ends of spread and error, so that colours compare while a mask is painted."""
        modality = self.all[name]
        if modality.categorical:
            return Ranges(spread=float(np.log(len(modality.classes)) * 0.6), error=1.0)
        statistics = self.model.statistics
        if statistics is None or name not in statistics.modalities:
            return Ranges(1.0, 1.0)
        deviation = statistics.mean_std(name)[1]
        typical = float(np.sqrt(np.nanmean(np.asarray(deviation, np.float64) ** 2)))
        return Ranges(spread=typical * 0.5 or 1.0, error=typical or 1.0)


def _half(states: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    """States (1, L) with a random half of the visible tokens hidden, at least one left."""
    visible = (states[0] == TokenState.VISIBLE).nonzero()[:, 0]
    order = visible[torch.randperm(len(visible), generator=random)]
    fewer = states.clone()
    fewer[0, order[max(1, len(order) // 2) :]] = int(TokenState.MASKED)
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


def _picture(drawn: Panel) -> dict[str, Any]:
    bar = drawn.bar
    return {
        "src": data_uri(drawn.image),
        "bar": None
        if bar is None
        else {"colours": ramp(bar.colours), "low": bar.low, "high": bar.high},
    }


def _values(values: npt.NDArray[Any], valid: Mask | None = None) -> dict[str, Any]:
    if values.size > _VALUES:
        return {"values": None}
    ok = None if valid is None else np.broadcast_to(valid, values.shape)
    return {"values": packed(values, ok)}
