"""A chip and its reconstruction on the CPU, in physical units: what figures are drawn from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from multimae_eo.metrics.reconstruction_scores import PredictedPixels, truth_of
from multimae_eo.modality import ModalitySet
from multimae_eo.sample import Batch

T = TypeVar("T", bound=np.generic)

Array = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class ChipView:
    """One chip and its reconstruction.

    ``truth[m]``: (C, H, W) physical, or (1, H, W) class indices; a chip may lack any. ``valid``
    has an entry per entry of ``truth``, of its shape. ``mean[m]``, ``predictive_std[m]``:
    ``mean`` and ``spread`` of ``PredictedPixels``, without the batch axis. ``masked[m]``: bool
    (rows, columns), tokens that were masked, and ``token_pixels[m]`` their side; empty
    where whole modalities were given.
    """

    key: str
    modalities: ModalitySet
    inputs: tuple[str, ...]
    truth: Mapping[str, npt.NDArray[np.number]]
    valid: Mapping[str, Bool]
    mean: Mapping[str, Array]
    predictive_std: Mapping[str, Array]
    masked: Mapping[str, Bool] = field(default_factory=dict)
    token_pixels: Mapping[str, int] = field(default_factory=dict)

    def given_in_full(self, name: str) -> bool:
        """Whether the model was given all tokens of a modality."""
        return name in self.inputs and name not in self.masked

    def predicted(self, name: str) -> npt.NDArray[np.number]:
        """The prediction in the truth's terms: physical values, or the likeliest class's index."""
        mean = self.mean[name]
        return mean.argmax(axis=0)[None] if self.modalities[name].categorical else mean

    def error(self, name: str) -> Array | None:
        """Prediction - truth (one band), its root mean square over bands, or 1 where a class is
        wrong: (H, W) with NaN where nothing was observed. None where the chip has no truth.
        """
        if name not in self.truth or name not in self.mean:
            return None
        ok = self.valid[name]
        truth, prediction = self.truth[name], self.predicted(name)
        if self.modalities[name].categorical:
            return np.where(ok[0], (truth != prediction)[0].astype(np.float64), np.nan)
        error = np.where(ok, prediction - truth, np.nan)
        if len(error) == 1:
            return np.asarray(error[0], np.float64)
        count = ok.sum(axis=0)
        total = np.where(ok, error, 0.0) ** 2
        return np.where(count > 0, np.sqrt(total.sum(axis=0) / np.maximum(count, 1)), np.nan)

    def uncertainty(self, name: str) -> Array:
        """Predictive std, root mean square over bands, or entropy in nats: (H, W)."""
        return np.asarray(np.sqrt((self.predictive_std[name] ** 2).mean(axis=0)), np.float64)


def chip_views(
    batch: Batch,
    reconstructed: Mapping[str, PredictedPixels],
    *,
    inputs: Sequence[str],
    masked: Mapping[str, Bool] | None = None,
    token_pixels: Mapping[str, int] | None = None,
) -> list[ChipView]:
    """Take a batch and its reconstruction apart into chips.

    Of a series the clearest date of each chip. masked: bool (B, rows, columns) per
    modality, where tokens rather than modalities were masked;
    token_pixels: the side of a token's ground in each of these, in pixels.
    """
    truths = {n: t for n in batch.modalities if (t := truth_of(batch, n)) is not None}
    predictions = {
        n: tuple(t.detach().cpu().numpy().astype(np.float64) for t in (r.mean, r.std))
        for n, r in reconstructed.items()
    }
    present = batch.present.cpu().numpy()
    views = []
    for row, key in enumerate(batch.keys):
        has = [n for n in truths if present[row, batch.modalities.index(n)]]
        dates = {n: int(truths[n].valid[row].mean(axis=(1, 2, 3)).argmax()) for n in batch.dates}

        def image(
            name: str, values: npt.NDArray[T], dates: Mapping[str, int] = dates
        ) -> npt.NDArray[T]:
            return values[dates[name]] if name in dates else values

        views.append(
            ChipView(
                key=key,
                modalities=batch.modalities,
                inputs=tuple(inputs),
                truth={n: image(n, truths[n].values[row]) for n in has},
                valid={n: image(n, truths[n].valid[row]) for n in has},
                mean={n: image(n, mean[row]) for n, (mean, _) in predictions.items()},
                predictive_std={n: image(n, std[row]) for n, (_, std) in predictions.items()},
                masked={n: m[row] for n, m in (masked or {}).items()},
                token_pixels=token_pixels or {},
            )
        )
    return views
