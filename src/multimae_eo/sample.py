"""Sample: one chip as a reader gives it. Batch: chips stacked for the device.

Both hold pixels in the dtype of the source. Nodata has already become ``valid = False`` in
the reader: no sentinel value travels further than that. Normalisation happens in the model, once.

A modality of a chip is one image (C, H, W), or a series (T, C, H, W) of T acquisitions with their
dates. Dates are days since 1970-01-01 (UTC); they may be irregular, and differ between modalities
and chips.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from multimae_eo.errors import ContractError, DataError
from multimae_eo.geo import Geometry, Window
from multimae_eo.modality import Modality, ModalitySet

if TYPE_CHECKING:
    import torch

Pixels = npt.NDArray[Any]
Validity = npt.NDArray[np.bool_]
Dates = npt.NDArray[np.float64]

_SERIES = 4
"""Axes of a series of a chip: (T, C, H, W)."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """How raw pixels of one modality become physical: ``raw * scale + offset``; their level."""

    scale: float = 1.0
    offset: float = 0.0
    level: str = ""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One chip.

    ``pixels[m]``: (C, H, W) in the source's type; sizes may differ between modalities, the ground
    they cover may not. ``valid[m]``: bool, (1, H, W) or (C, H, W); a missing entry means every
    pixel is valid. A sample may lack any modality: then the name is in neither.
    ``dates[m]``: float64 (T,), ascending days since 1970-01-01; that modality is a series: its
    pixels are (T, C, H, W) and its validity (T, 1 or C, H, W).
    ``calibration[m]`` overrides the modality's scale and offset and gives the product level.
    ``label``: a class index, a multi-hot vector, a value, or an (H, W) map of class indices where
    -1 is ignored; None where there is none.

    Raises ContractError where dates do not fit their pixels.
    """

    key: str
    pixels: Mapping[str, Pixels]
    valid: Mapping[str, Validity] = field(default_factory=dict)
    calibration: Mapping[str, Calibration] = field(default_factory=dict)
    geometry: Geometry | None = None
    time: str | None = None
    label: Any = None
    dates: Mapping[str, Dates] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, pixels in self.pixels.items():
            dates = self.dates.get(name)
            if dates is not None or pixels.ndim == _SERIES:
                _require_dates(f"{self.key}: {name}", pixels, dates)

    def calibration_of(self, modality: Modality) -> Calibration:
        """This sample's calibration of ``modality``, by default the modality's own."""
        given = self.calibration.get(modality.name)
        return given or Calibration(scale=modality.scale, offset=modality.offset)

    def values_of(self, modality: Modality) -> npt.NDArray[np.float64]:
        """Physical values, shaped as the pixels, or class indices, -1 where the id is not in the
        class map."""
        pixels = self.pixels[modality.name]
        if modality.categorical:
            index = np.full(pixels.shape, -1.0)
            for position, class_id in enumerate(modality.class_ids):
                index[pixels == class_id] = position
            return index
        given = self.calibration_of(modality)
        return np.asarray(pixels.astype(np.float64) * given.scale + given.offset)

    def validity(self, name: str) -> npt.NDArray[np.bool_]:
        """Which pixels of a modality were observed: bool, shaped as its pixels."""
        pixels, valid = self.pixels[name], self.valid.get(name)
        if valid is None:
            return np.ones(pixels.shape, dtype=bool)
        return np.broadcast_to(valid, pixels.shape)

    def select(self, names: Sequence[str]) -> Sample:
        """The same chip with only the named modalities (those of them that it has)."""
        return replace(
            self,
            pixels={n: self.pixels[n] for n in names if n in self.pixels},
            valid={n: self.valid[n] for n in names if n in self.valid},
            dates={n: self.dates[n] for n in names if n in self.dates},
        )

    def at_dates(self, keep: Mapping[str, npt.NDArray[np.bool_]]) -> Sample:
        """The same chip with some dates only: ``keep[m]``, bool (T,), of the series named in it.

        A series of which no date is kept is left out.
        """
        pixels, valid, dates = dict(self.pixels), dict(self.valid), dict(self.dates)
        for name, chosen in keep.items():
            if name not in dates:
                continue
            if not chosen.any():
                for arrays in (pixels, valid, dates):
                    arrays.pop(name, None)
                continue
            pixels[name], dates[name] = pixels[name][chosen], dates[name][chosen]
            if name in valid:
                valid[name] = valid[name][chosen]
        return replace(self, pixels=pixels, valid=valid, dates=dates)

    def clearest(self) -> Sample:
        """The same chip with the clearest date of each series as an image, undated.

        The first of those with the most valid pixels.
        """
        if not self.dates:
            return self
        pixels, valid = dict(self.pixels), dict(self.valid)
        for name in self.dates:
            date = 0
            if name in valid:
                date = int(valid[name].mean(axis=(1, 2, 3)).argmax())
                valid[name] = valid[name][date]
            pixels[name] = pixels[name][date]
        return replace(self, pixels=pixels, valid=valid, dates={})


def stack_dates(
    images: Sequence[tuple[Pixels, Validity]], days: Sequence[float]
) -> tuple[Pixels, Validity, Dates]:
    """Images of one ground as a series: pixels (T, C, H, W), validity (T, 1 or C, H, W), dates.

    ``images``: pixels (C, H, W) and validity (1 or C, H, W) of each of ``days``. Dates without a
    valid pixel are left out, unless there is no other.
    """
    channels = max(len(ok) for _, ok in images)
    valid = np.stack([np.broadcast_to(ok, (channels, *ok.shape[1:])) for _, ok in images])
    seen: list[int] = np.flatnonzero(valid.any(axis=(1, 2, 3))).tolist()
    kept = seen or list(range(len(images)))
    pixels = np.stack([images[i][0] for i in kept])
    return pixels, valid[kept], np.array([days[i] for i in kept], np.float64)


def _require_dates(where: str, pixels: Pixels, dates: Dates | None) -> None:
    """ContractError unless ``dates`` are those of the series ``pixels``."""
    if dates is None:
        raise ContractError(
            f"{where}: pixels {pixels.shape} have no dates; a series needs one each"
        )
    if pixels.ndim != _SERIES or dates.shape != pixels.shape[:1] or not len(dates):
        raise ContractError(
            f"{where}: {dates.shape} dates for pixels {pixels.shape}; expected (T,), (T, C, H, W)"
        )
    if not np.isfinite(dates).all() or (np.diff(dates) < 0).any():
        raise ContractError(f"{where}: dates must ascend, in days since 1970; got {dates[:8]}")


def crop(sample: Sample, *, top: float, left: float, size: float) -> Sample:
    """Cut one square window out of every modality, and out of a label map.

    The window is given in fractions of the chip's side (0 ≤ top, left; top + size ≤ 1) so that
    modalities of different resolution are cut to the same ground. Fractions must fall on pixel
    edges of every modality (within 1e-6 of a pixel); ContractError otherwise.
    """

    def cut(array: Pixels, what: str) -> Pixels:
        spans = []
        for start, length in ((top, array.shape[-2]), (left, array.shape[-1])):
            exact = (start * length, size * length)
            rounded = [round(v) for v in exact]
            if any(abs(a - b) > 1e-6 * max(length, 1) for a, b in zip(exact, rounded, strict=True)):
                raise ContractError(
                    f"{sample.key}: window {exact[0]:.3f}+{exact[1]:.3f} of {length} px does not "
                    f"fall on pixel edges of {what}; choose a chip size that all modalities divide"
                )
            spans.append(slice(rounded[0], rounded[0] + rounded[1]))
        return array[..., spans[0], spans[1]]

    label = sample.label
    if isinstance(label, np.ndarray) and label.ndim == 2:
        label = cut(label, "the label map")
    return replace(
        sample,
        pixels={n: cut(p, n) for n, p in sample.pixels.items()},
        valid={n: cut(v, n) for n, v in sample.valid.items()},
        label=label,
    )


def flip(sample: Sample, *, horizontal: bool, vertical: bool = False, rot90: int = 0) -> Sample:
    """Flip and rotate all modalities and a label map alike. ``rot90``: number of rotations by
    90°."""

    def move(array: Pixels) -> Pixels:
        if horizontal:
            array = array[..., ::-1]
        if vertical:
            array = array[..., ::-1, :]
        return np.rot90(array, rot90, axes=(-2, -1)) if rot90 % 4 else array

    label = sample.label
    if isinstance(label, np.ndarray) and label.ndim == 2:
        label = move(label)
    return replace(
        sample,
        pixels={n: move(p) for n, p in sample.pixels.items()},
        valid={n: move(v) for n, v in sample.valid.items()},
        label=label,
    )


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Chips stacked for the device. B chips, M modalities in ``modalities``' order.

    ``pixels[m]``: (B, C, H, W) in the source's type, zeros where a chip lacks m; a modality that
    no chip has is missing. ``valid[m]``: bool (B, 1 or C, H, W); a missing entry means all valid.
    ``dates[m]``: float32 (B, T), days since 1970-01-01 (to two minutes), NaN where a chip has fewer
    dates or its image has none: that modality's pixels are (B, T, C, H, W) and its validity
    (B, T, 1 or C, H, W), invalid where a chip has fewer dates.
    ``present``: bool (B, M). ``scale``, ``offset``: float32 (B, M). ``level``: int64 (B, M).
    ``complete``: every modality is present and every pixel valid (known without asking the
    device). ``labels``: stacked labels; None where a chip has none, or where their
    kinds or shapes differ.
    """

    modalities: ModalitySet
    keys: tuple[str, ...]
    pixels: Mapping[str, torch.Tensor]
    valid: Mapping[str, torch.Tensor]
    present: torch.Tensor
    scale: torch.Tensor
    offset: torch.Tensor
    level: torch.Tensor
    labels: torch.Tensor | None = None
    complete: bool = False
    dates: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shape = (len(self.keys), len(self.modalities))
        for name in ("present", "scale", "offset", "level"):
            got = tuple(getattr(self, name).shape)
            if got != shape:
                raise ContractError(f"batch.{name}: expected shape (B, M) = {shape}, got {got}")
        for name, pixels in self.pixels.items():
            channels = self.modalities[name].channels
            head = (shape[0], *self.dates[name].shape[1:]) if name in self.dates else shape[:1]
            if pixels.shape[:-2] != (*head, channels):
                axes = f"B={shape[0]}" + (f", T={head[1]}" if len(head) > 1 else "")
                raise ContractError(
                    f"batch: {name}: expected ({axes}, C={channels}, H, W), "
                    f"got {tuple(pixels.shape)}"
                )
        for name, valid in self.valid.items():
            if name not in self.pixels or valid.shape[-2:] != self.pixels[name].shape[-2:]:
                raise ContractError(f"batch: validity of {name!r} does not fit its pixels")

    def __len__(self) -> int:
        return len(self.keys)

    def _moved(
        self, move: Callable[[torch.Tensor], torch.Tensor], keys: tuple[str, ...] | None = None
    ) -> Batch:
        return replace(
            self,
            keys=keys or self.keys,
            pixels={n: move(t) for n, t in self.pixels.items()},
            valid={n: move(t) for n, t in self.valid.items()},
            present=move(self.present),
            scale=move(self.scale),
            offset=move(self.offset),
            level=move(self.level),
            labels=None if self.labels is None else move(self.labels),
            dates={n: move(t) for n, t in self.dates.items()},
        )

    def take(self, rows: torch.Tensor) -> Batch:
        """Some of the chips: ``rows``, indices int64 (n,) on the batch's device."""
        return self._moved(lambda t: t[rows], keys=tuple(self.keys[int(i)] for i in rows))

    def cut(self, windows: Mapping[str, Window]) -> Batch:
        """A window of each modality, the same ground in all; labels are left out."""

        def part(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            return {n: t[(..., *windows[n].slices)] for n, t in tensors.items()}

        return replace(self, pixels=part(self.pixels), valid=part(self.valid), labels=None)

    def to(self, device: str | torch.device, non_blocking: bool = True) -> Batch:
        """The same batch on ``device``."""
        return self._moved(lambda t: t.to(device, non_blocking=non_blocking))

    def repeat(self, times: int) -> Batch:
        """The whole batch so many times, one after the other; a copy of all tensors."""

        def again(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.repeat(times, *[1] * (tensor.ndim - 1))

        return self._moved(again, keys=self.keys * times)

    def rotated(self, rotations: torch.Tensor) -> Batch:
        """The chips rotated and mirrored, each by its value of ``rotations``; without labels.

        ``rotations``: int64 (B,) on the CPU, 0 … 7: number of rot90, from 4 on after a mirroring
        from left to right. ContractError for odd values with chips that are not square.
        """
        quarter = bool((rotations % 2).any())

        def move(stored: torch.Tensor) -> torch.Tensor:
            if quarter and stored.shape[-1] != stored.shape[-2]:
                raise ContractError(
                    f"rotations by 90° need squares, got {tuple(stored.shape[-2:])} px"
                )
            # Unsigned numbers cannot be indexed or flipped on a CPU; their bits can.
            bits = _bits(stored)
            moved = bits.clone()
            for turn in sorted(set(rotations.tolist()) - {0}):
                rows = (rotations == turn).nonzero()[:, 0].to(bits.device)
                part = bits[rows].flip(-1) if turn >= 4 else bits[rows]
                moved[rows] = part.rot90(turn % 4, (-2, -1))
            return moved.view(stored.dtype)

        return replace(
            self,
            pixels={n: move(t) for n, t in self.pixels.items()},
            valid={n: move(t) for n, t in self.valid.items()},
            labels=None,
        )

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory."""
        return self._moved(lambda t: t.pin_memory())

    def select(self, names: Sequence[str]) -> Batch:
        """The same chips with only the named modalities."""
        columns = [self.modalities.index(n) for n in names]
        return replace(
            self,
            modalities=self.modalities.select(names),
            pixels={n: self.pixels[n] for n in names if n in self.pixels},
            valid={n: self.valid[n] for n in names if n in self.valid},
            present=self.present[:, columns],
            scale=self.scale[:, columns],
            offset=self.offset[:, columns],
            level=self.level[:, columns],
            dates={n: self.dates[n] for n in names if n in self.dates},
        )


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """Signed integers of the same bits, where ``tensor`` is unsigned and wide."""
    import torch

    signed = {torch.uint16: torch.int16, torch.uint32: torch.int32}.get(tensor.dtype)
    return tensor if signed is None else tensor.view(signed)


def collate(samples: Sequence[Sample], modalities: ModalitySet) -> Batch:
    """Stack samples into a Batch. Chips may lack modalities; sizes must agree within each.

    Chips may differ in their number of dates, or have one image where others have a series: what
    is lacking is invalid.

    Raises DataError for an empty list, a chip without any modality, or sizes that differ, and
    ConfigError where a product level is needed and not declared.
    """
    import torch

    if not samples:
        raise DataError("no samples to batch")
    size, width = len(samples), len(modalities)
    present = np.zeros((size, width), dtype=bool)
    scale = np.ones((size, width), dtype=np.float32)
    offset = np.zeros((size, width), dtype=np.float32)
    level = np.zeros((size, width), dtype=np.int64)
    pixels: dict[str, torch.Tensor] = {}
    valid: dict[str, torch.Tensor] = {}
    dates: dict[str, torch.Tensor] = {}
    for column, (name, modality) in enumerate(modalities.items()):
        having = [i for i, s in enumerate(samples) if name in s.pixels]
        if not having:
            continue
        present[having, column] = True
        for i in having:
            given = samples[i].calibration_of(modality)
            scale[i, column], offset[i, column] = given.scale, given.offset
            level[i, column] = modality.level_index(given.level)
        if any(name in samples[i].dates for i in having):
            aligned, days = _aligned(name, samples, having)
            dates[name] = torch.from_numpy(days)
            stacked, ok = _stack(name, aligned, having)
        else:
            stacked, ok = _stack(name, samples, having)
        pixels[name] = torch.from_numpy(stacked)
        if ok is not None:
            valid[name] = torch.from_numpy(ok)
    lacking = np.flatnonzero(~present.any(axis=1))
    if len(lacking):
        raise DataError(
            f"{samples[lacking[0]].key}: has none of the modalities {', '.join(modalities)}"
        )
    return Batch(
        modalities=modalities,
        keys=tuple(s.key for s in samples),
        pixels=pixels,
        valid=valid,
        present=torch.from_numpy(present),
        scale=torch.from_numpy(scale),
        offset=torch.from_numpy(offset),
        level=torch.from_numpy(level),
        labels=stack_labels([s.label for s in samples]),
        complete=bool(present.all()) and not valid,
        dates=dates,
    )


def _aligned(
    name: str, samples: Sequence[Sample], having: Sequence[int]
) -> tuple[list[Sample], npt.NDArray[np.float32]]:
    """The samples with series of one length, and their dates (B, T), NaN where there is none.

    What is lacking is invalid, at the end.
    """
    length = max(len(samples[i].dates.get(name, ())) for i in having)
    days = np.full((len(samples), length), np.nan, dtype=np.float32)
    aligned = list(samples)
    for i in having:
        sample = samples[i]
        pixels, valid = sample.pixels[name], sample.valid.get(name)
        if name in sample.dates:
            days[i, : len(pixels)] = sample.dates[name]
        else:
            pixels, valid = pixels[None], None if valid is None else valid[None]
        lacking = length - len(pixels)
        if lacking:
            if valid is None:
                valid = np.ones((len(pixels), 1, *pixels.shape[-2:]), dtype=bool)
            valid = np.concatenate([valid, np.zeros((lacking, *valid.shape[1:]), dtype=bool)])
            pixels = np.concatenate(
                [pixels, np.zeros_like(pixels, shape=(lacking, *pixels.shape[1:]))]
            )
        aligned[i] = Sample(
            key=sample.key,
            pixels={name: pixels},
            valid={} if valid is None else {name: valid},
            dates={name: np.zeros(length)},
        )
    return aligned, days


def _stack(
    name: str, samples: Sequence[Sample], having: Sequence[int]
) -> tuple[Pixels, Validity | None]:
    first = samples[having[0]].pixels[name]
    for i in having[1:]:
        shape = samples[i].pixels[name].shape
        if shape != first.shape:
            raise DataError(
                f"{name}: {samples[having[0]].key} is {first.shape}, {samples[i].key} is {shape}; "
                "chips of one batch need one size (give `data.chip` to cut them alike)"
            )
    dtype = np.result_type(*{samples[i].pixels[name].dtype for i in having})
    stacked = np.zeros((len(samples), *first.shape), dtype=dtype)
    for i in having:
        stacked[i] = samples[i].pixels[name]
    masks = {i: samples[i].valid[name] for i in having if name in samples[i].valid}
    if not masks or all(m.all() for m in masks.values()):
        return stacked, None
    channels = max(m.shape[-3] for m in masks.values())
    ok = np.ones((len(samples), *first.shape[:-3], channels, *first.shape[-2:]), dtype=bool)
    for i, mask in masks.items():
        ok[i] = mask
    return stacked, ok


def stack_labels(labels: Sequence[object]) -> torch.Tensor | None:
    """Labels of a batch, stacked; None where a chip has none, or their kinds or shapes differ."""
    import torch

    arrays = [np.asarray(label) for label in labels if label is not None]
    kinds = {(a.shape, a.dtype.kind == "f") for a in arrays}
    # Chips of joined sources: some without a label, or with a class here and a map there.
    if len(arrays) < len(labels) or len(kinds) > 1:
        return None
    return torch.from_numpy(np.stack(arrays))
