"""How far a map depends on where its windows lie, in numbers.

The reference takes every pixel from the window that has it in its middle. Compared are the mean
absolute error of the probabilities near the windows' edges and elsewhere, and the jump of
probabilities across the edges, as a multiple of that across lines of the same phase in the grid of
patches at which no window ends.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import rasterio
import torch

from peers.mappers import Forward, Probabilities, Setting

NEAR_PX = 2


def centred(forward: Forward, folder: Path, setting: Setting, patch: int) -> Probabilities:
    """Probabilities (classes, H, W) of the middle patch of windows every ``patch`` px.

    NaN in a margin of half a window, which no window has in its middle.
    """
    with rasterio.open(folder / "scene.tif") as file:
        image = torch.from_numpy(file.read().astype(np.float32))
    height, width = image.shape[1:]
    chip, margin = setting.chip, (setting.chip - patch) // 2
    starts = [
        (row, col)
        for row in range(0, height - chip + 1, patch)
        for col in range(0, width - chip + 1, patch)
    ]
    result: Probabilities | None = None
    for first in range(0, len(starts), setting.batch):
        part = starts[first : first + setting.batch]
        windows = torch.stack([image[:, r : r + chip, c : c + chip] for r, c in part])
        predicted = forward(windows).numpy()
        if result is None:
            result = np.full((predicted.shape[1], height, width), np.nan, np.float32)
        inner = np.s_[margin : margin + patch]
        for (row, col), window in zip(part, predicted, strict=True):
            top, left = row + margin, col + margin
            result[:, top : top + patch, left : left + patch] = window[:, inner, inner]
    if result is None:
        raise ValueError(f"{folder}: smaller than a window of {chip} px")
    return result


def seams(
    probabilities: Probabilities, reference: Probabilities, setting: Setting, patch: int
) -> dict[str, float]:
    """Errors near edges and elsewhere, and the jump across edges as a multiple of the usual."""
    size = probabilities.shape[1]
    lines = np.arange(setting.stride, size, setting.stride)
    between = lines - max(1, setting.stride // 2 // patch) * patch
    distance = np.abs(np.arange(size)[:, None] + 0.5 - lines).min(axis=1)
    near = (distance[:, None] < NEAR_PX) | (distance < NEAR_PX)
    inside = ~np.isnan(reference[0])
    error = np.abs(probabilities - reference).mean(axis=0)
    jumps = np.abs(np.diff(probabilities, axis=2)).mean(axis=(0, 1))
    return {
        "error_near_edges": float(error[near & inside].mean()),
        "error_elsewhere": float(error[~near & inside].mean()),
        "jump_ratio": float(jumps[lines - 1].mean() / jumps[between - 1].mean()),
    }
