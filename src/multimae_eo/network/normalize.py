"""The sealed way from raw pixels to the numbers a model sees, on the device.

``x = (raw · scale + offset − mean[level]) / std[level]``, with the statistics the model carries
and the calibration each sample brings. Class ids become indices into the class map. Invalid pixels
become 0 (the mean), the mean of the pixel's other bands (``missing_bands``), or class -1, and stay
out of the loss.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from multimae_eo.errors import ContractError, did_you_mean
from multimae_eo.modality import Modality, ModalitySet
from multimae_eo.network.config import InputConfig, ModelConfig
from multimae_eo.network.missing_bands import filled
from multimae_eo.network.tokens import Patches, TokenLayout, any_along, patchify
from multimae_eo.sample import Batch
from multimae_eo.statistics import Statistics


@dataclass(frozen=True)
class _Plane:
    values: Tensor
    valid: Tensor | None


class Normalizer(nn.Module):
    """Converts a Batch into normalised Patches. It owns the statistics; nothing else normalises."""

    def __init__(
        self, modalities: ModalitySet, config: ModelConfig, statistics: Statistics | None
    ) -> None:
        super().__init__()
        self.modalities = modalities
        self.config = config
        self.statistics = statistics
        for name, modality in modalities.items():
            if modality.categorical:
                self.register_buffer(f"legend_{name}", _class_table(modality), persistent=False)
            else:
                shape = (max(1, len(modality.levels)), modality.channels)
                mean, std = np.zeros(shape), np.ones(shape)
                if statistics is not None:
                    mean, std = statistics.mean_std(name)
                self.register_buffer(f"mean_{name}", _f32(mean), persistent=False)
                self.register_buffer(f"std_{name}", _f32(std), persistent=False)

    def forward(self, batch: Batch) -> Patches:
        """Normalise and cut a batch. Tokens of modalities the batch lacks are ABSENT, as are those
        of dates that a chip lacks.

        Raises ContractError for modalities the model does not know or that mean something else.
        """
        self._check(batch)
        # The whole chip's size follows from any modality present: sizes keep their ratios.
        reference = next(n for n in self.modalities if n in batch.pixels)
        height, width = batch.pixels[reference].shape[-2:]
        grids: dict[str, tuple[int, int]] = {}
        sizes: dict[str, tuple[int, int]] = {}
        values: dict[str, Tensor] = {}
        valid: dict[str, Tensor] = {}
        for name in self.modalities:
            config = self.config.inputs[name]
            ratio = config.size / self.config.inputs[reference].size
            expected = (round(height * ratio), round(width * ratio))
            grids[name], sizes[name] = config.grid(*expected), expected
            if name not in batch.pixels:
                continue
            got = tuple(batch.pixels[name].shape[-2:])
            if got != expected:
                raise ContractError(
                    f"{name}: {got[0]}×{got[1]} px do not cover the ground of {reference}'s "
                    f"{height}×{width} px; the model expects {expected[0]}×{expected[1]} px"
                )
            plane = self._plane(batch, name)
            plane = _pad(_thin(plane, config), config, grids[name])
            values[name] = patchify(plane.values, config.patch)
            if plane.valid is not None:
                full = plane.valid.expand_as(plane.values)
                valid[name] = patchify(full.to(torch.uint8), config.patch).bool()
            if name in batch.dates:
                # The patches of all dates of a chip side by side.
                for patches in (values, valid):
                    if name in patches:
                        patches[name] = patches[name].reshape(
                            len(batch), -1, patches[name].shape[2]
                        )
        dates = {n: d for n, d in batch.dates.items() if n in grids}
        layout = TokenLayout(grids, {n: d.shape[1] for n, d in dates.items()})
        return Patches(
            layout=layout,
            values=values,
            valid=valid,
            observed=self._observed(batch, layout, values, valid),
            batch_size=len(batch),
            device=batch.present.device,
            chip_sizes=sizes,
            dates=dates,
        )

    def observed_rows(self, batch: Batch, inputs: Collection[str]) -> Tensor:
        """Chips with anything observed in ``inputs``, as ``forward`` would find: int64 (n,)."""
        seen = torch.zeros(len(batch), dtype=torch.bool, device=batch.present.device)
        for name in inputs:
            here, ok = batch.present[:, batch.modalities.index(name)], batch.valid.get(name)
            if ok is not None:
                here = here & any_along(_taken(ok, self.config.inputs[name]).flatten(1), 1)
            seen |= here
        return seen.nonzero()[:, 0]

    def physical(self, name: str, values: Tensor, level: Tensor) -> Tensor:
        """Undo the standardisation: (B, C, …) normalised → physical. level: int64 (B,) or (1,)."""
        shape = (level.shape[0], -1, *([1] * (values.ndim - 2)))
        mean, std = self.get_buffer(f"mean_{name}"), self.get_buffer(f"std_{name}")
        return values * std[level].reshape(shape) + mean[level].reshape(shape)

    def standard_deviation(self, name: str, level: Tensor) -> Tensor:
        """Standard deviations (B, C, 1, 1) in physical units. level: int64 (B,)."""
        return self.get_buffer(f"std_{name}")[level][:, :, None, None]

    def _check(self, batch: Batch) -> None:
        if self.statistics is None:
            raise ContractError(
                "this model carries no statistics to normalise with; convert it again with "
                "--statistics band_stats.json"
            )
        shared = [n for n in self.modalities if n in batch.pixels]
        if not shared:
            raise ContractError(
                f"the data have none of the model's modalities: data {', '.join(batch.pixels)}; "
                f"model {', '.join(self.modalities)}"
            )
        for name in shared:
            require_same(self.modalities[name], batch.modalities[name])

    def _plane(self, batch: Batch, name: str) -> _Plane:
        modality = self.modalities[name]
        raw, ok = batch.pixels[name], batch.valid.get(name)
        column = batch.modalities.index(name)
        level, here = batch.level[:, column], batch.present[:, column]
        scale, offset = batch.scale[:, column, None], batch.offset[:, column, None]
        if name in batch.dates:
            # Each date is normalised as an image by itself.
            raw, ok = raw.flatten(0, 1), None if ok is None else ok.flatten(0, 1)
            count = len(raw) // max(1, len(batch))
            level, here, scale, offset = (
                t.repeat_interleave(count, dim=0) for t in (level, here, scale, offset)
            )
        if not batch.complete:
            here = here[:, None, None, None]
            ok = here.expand(-1, 1, *raw.shape[-2:]) if ok is None else ok & here
        if modality.categorical:
            index = self._class_index(name, raw)
            # Ids outside the class map are -1 whatever the validity mask; the loss ignores them.
            return _Plane(index, None) if ok is None else _Plane(torch.where(ok, index, -1), ok)
        mean, std = self.get_buffer(f"mean_{name}")[level], self.get_buffer(f"std_{name}")[level]
        factor = scale / std
        shift = (offset - mean) / std
        # In place: fresh planes of this size cost more than the arithmetic.
        x = raw.to(torch.float32, copy=True)
        x.mul_(factor[..., None, None]).add_(shift[..., None, None])
        if ok is not None:
            x = filled(x, ok, modality)
        return _Plane(x, ok)

    def _class_index(self, name: str, raw: Tensor) -> Tensor:
        table = self.get_buffer(f"legend_{name}")
        ids = raw.to(torch.int64)
        inside = (ids >= 0) & (ids < len(table))
        return torch.where(inside, table[ids.clamp(0, len(table) - 1)], -1)

    def cut(self, name: str, values: Tensor, level: int = 0) -> tuple[Tensor, Tensor]:
        """Patches (B, N, P) of a modality in its own unit, and which are observed: bool (B, N).

        values: (B, C, H, W), NaN where nothing was observed; of a class map its class ids.
        ``level``: index of the product level. For tensors without a Batch; the same numbers.
        """
        config = self.config.inputs[name]
        ok = torch.isfinite(values)
        if self.modalities[name].categorical:
            index = self._class_index(name, torch.where(ok, values, -1))
            plane = _Plane(index, ok & (index >= 0))
        else:
            mean, std = (
                self.get_buffer(f"mean_{name}")[level],
                self.get_buffer(f"std_{name}")[level],
            )
            x = (values.to(torch.float32) - mean[:, None, None]) / std[:, None, None]
            plane = _Plane(filled(x, ok, self.modalities[name]), ok)
        plane = _pad(_thin(plane, config), config, config.grid(*values.shape[-2:]))
        assert plane.valid is not None
        seen = patchify(plane.valid.to(torch.uint8), config.patch).amax(dim=2) > 0
        return patchify(plane.values, config.patch), seen

    def _observed(
        self,
        batch: Batch,
        layout: TokenLayout,
        values: dict[str, Tensor],
        valid: dict[str, Tensor],
    ) -> Tensor | None:
        has_all = len(values) == len(self.modalities)
        if batch.complete and has_all and not valid:
            return None
        device = batch.present.device
        parts = []
        for name, part in layout.slices.items():
            if name in valid:
                parts.append(any_along(valid[name], 2))
            else:
                here = torch.ones if name in values else torch.zeros
                size = (len(batch), part.stop - part.start)
                parts.append(here(*size, dtype=torch.bool, device=device))
        return torch.cat(parts, dim=1)


def require_same(ours: Modality, theirs: Modality) -> None:
    """ContractError, showing the difference, unless both modalities mean the same."""
    differs = [f"{k}: model {a}, data {b}" for k, (a, b) in ours.differences(theirs).items()]
    if differs:
        differences = "; ".join(differs) + _bands(ours.meaning(), theirs.meaning())
        raise ContractError(f"modality {ours.name!r} is not the model's: {differences}")


def require_contract(ours: ModalitySet, theirs: ModalitySet | None) -> None:
    """ContractError unless the model takes each of the data's modalities for what it is."""
    for name, modality in (theirs or {}).items():
        if name not in ours:
            raise ContractError(f"the model takes no modality {name!r}; {did_you_mean(name, ours)}")
        require_same(ours[name], modality)


def _bands(ours: dict[str, Any], theirs: dict[str, Any]) -> str:
    """In words, how the data's bands differ."""
    a, b = ours["bands"], theirs["bands"]
    lacks, more = [x for x in a if x not in b], [x for x in b if x not in a]
    reasons = [f"the data lack {', '.join(lacks)}"] if lacks else []
    reasons += [f"the model does not know {', '.join(more)}"] if more else []
    if not reasons and a != b:
        reasons = ["the order differs: declare the bands in the model's"]
    return f" ({'; '.join(reasons)})" if reasons else ""


def _f32(values: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))


def _class_table(modality: Modality) -> Tensor:
    """Class index by raw id, -1 for ids outside the class map and for nodata."""
    table = torch.full((max(modality.class_ids) + 2,), -1, dtype=torch.int64)
    for index, class_id in enumerate(modality.class_ids):
        if class_id not in modality.nodata:
            table[class_id] = index
    return table


def _thin(plane: _Plane, config: InputConfig) -> _Plane:
    if config.stride == 1:
        return plane
    ok = None if plane.valid is None else _taken(plane.valid, config)
    return _Plane(_taken(plane.values, config), ok)


def _taken(planes: Tensor, config: InputConfig) -> Tensor:
    """Every stride-th pixel (…, H, W), at the centre of each cell: nearest, never averaged."""
    pick = slice(config.stride // 2, None, config.stride)
    return planes[..., pick, pick]


def _pad(plane: _Plane, config: InputConfig, grid: tuple[int, int]) -> _Plane:
    """Pad to the grid's whole patches at the right and bottom with invalid pixels."""
    height, width = plane.values.shape[-2:]
    bottom, right = grid[0] * config.patch - height, grid[1] * config.patch - width
    if not (bottom or right):
        return plane
    ok = plane.valid
    if ok is None:
        ok = torch.ones_like(plane.values[:, :1], dtype=torch.bool)
    blank = 0.0 if plane.values.is_floating_point() else -1
    return _Plane(
        F.pad(plane.values, (0, right, 0, bottom), value=blank),
        F.pad(ok, (0, right, 0, bottom), value=False),
    )
