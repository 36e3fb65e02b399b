"""Cross-validation of a map: what models predict for polygons that they were not trained on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from multimae_eo.evaluation.predictions import predict_split
from multimae_eo.network.predictor import Predictor
from multimae_eo.sources.scene.chips import SceneChips


def feature_counts(
    predictor: Predictor, source: SceneChips, *, inputs: Sequence[str] | None = None
) -> dict[int, npt.NDArray[np.int64]]:
    """Pixels of each feature of the test split: predicted class x labelled class, (C, C).

    Args:
        predictor: A model that was trained on the other features.
        source: The chips of a scene with vector labels, whose classes are the model's.
        inputs: Modalities to use (default: all that model and source share).
    """
    predicted = predict_split(predictor, source, split="test", inputs=inputs).predictions
    classes = len(predictor.target.classes)
    counts: dict[int, npt.NDArray[np.int64]] = {}
    for key, truth, output in zip(
        predicted.keys, predicted.truth, predicted.predicted, strict=True
    ):
        owner = source.features(source.index_of(key))
        owner = owner[: truth.shape[0], : truth.shape[1]]
        for feature in np.unique(owner[(owner >= 0) & (truth >= 0)]).tolist():
            here = (owner == feature) & (truth >= 0)
            cell = output[here].astype(np.int64) * classes + truth[here]
            tally = np.bincount(cell, minlength=classes * classes).reshape(classes, classes)
            counts[feature] = counts.get(feature, np.zeros_like(tally)) + tally
    return counts
