"""What any encoder has to beat: statistics of the image's bands."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from multimae_eo.sample import Batch


def image_statistics(inputs: Sequence[str]) -> Callable[[Batch], npt.NDArray[np.float32]]:
    """Mean and standard deviation of each band's valid pixels, in physical units.

    A batch → (B, 2 · bands). Class maps give the share of each class. What a chip lacks is 0.
    """

    def compute(batch: Batch) -> npt.NDArray[np.float32]:
        columns: list[npt.NDArray[np.float64]] = []
        for name in inputs:
            if name not in batch.pixels:
                continue
            modality, column = batch.modalities[name], batch.modalities.index(name)
            raw = batch.pixels[name].numpy().astype(np.float64)
            valid = batch.valid.get(name)
            ok = np.ones(raw.shape, bool)
            if valid is not None:
                ok &= valid.numpy()
            ok &= batch.present[:, column].numpy()[:, None, None, None]
            count = np.maximum(ok.sum(axis=(2, 3)), 1)
            if modality.categorical:
                columns += [((raw[:, 0] == i) & ok[:, 0]).sum(axis=(1, 2))[:, None] / count
                            for i in modality.class_ids]  # fmt: skip
                continue
            scale = batch.scale[:, column].double().numpy()[:, None]
            offset = batch.offset[:, column].double().numpy()[:, None]
            mean = np.where(ok, raw, 0.0).sum(axis=(2, 3)) / count
            square = np.where(ok, (raw - mean[:, :, None, None]) ** 2, 0.0).sum(axis=(2, 3))
            any_seen = ok.any(axis=(2, 3))
            columns += [
                np.where(any_seen, mean * scale + offset, 0.0),
                np.sqrt(square / count) * np.abs(scale),
            ]
        return np.concatenate(columns, axis=1).astype(np.float32)

    return compute
