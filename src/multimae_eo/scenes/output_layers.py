"""The rasters a scene is mapped to: the values that each holds of the blended windows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from multimae_eo.geo import Window
from multimae_eo.modality import Modality
from multimae_eo.scenes.blend import Array, BlendedRows, coarser_mask
from multimae_eo.scenes.raster_output import Profile, profile_of
from multimae_eo.sources.scene.chips import Area

LayerKind = Literal["value", "std", "error", "probabilities", "confidence"]


@dataclass(frozen=True, kw_only=True)
class OutputLayer:
    """One raster to write. ``stem``: of its file's name. ``modality``: the predicted one.

    ``field``: the predicted field that it is made of. A "value" is the field itself, or its
    likeliest class; an "error" is prediction − truth, or 1 where the class is wrong; "confidence"
    is the likeliest class's probability. ``ratio``: of its pixels to the grid's.
    """

    stem: str
    kind: LayerKind
    field: str
    ratio: int
    modality: Modality

    @property
    def profile(self) -> Profile:
        """Bands, dtype, nodata, colours and tags."""
        modality = self.modality
        if self.kind == "value":
            return profile_of(modality)
        if self.kind == "std":
            return profile_of(modality, uncertainty=True)
        plain = Profile(
            bands=(), dtype="float32", nodata=float("nan"), tags={"modality": modality.name}
        )
        if self.kind in ("probabilities", "confidence"):
            bands = modality.class_names if self.kind == "probabilities" else ("confidence",)
            return replace(plain, bands=bands, tags={**plain.tags, "unit": "probability"})
        unit = "1 where the class is wrong" if modality.categorical else modality.unit
        bands = tuple(f"{b} error" for b in modality.band_names)
        return replace(plain, bands=bands, tags={**plain.tags, "unit": unit})

    @property
    def bytes_per_pixel(self) -> float:
        """Bytes of the raster for each pixel of the grid."""
        profile = self.profile
        return len(profile.bands) * np.dtype(profile.dtype).itemsize / self.ratio**2

    def rows(self, rows: BlendedRows, area: Area) -> npt.NDArray[np.generic]:
        """The raster's values of finished rows: (bands, n, W) in the profile's dtype."""
        profile = self.profile
        grid = area.grid.coarser(self.ratio)
        observed = coarser_mask(rows.observed, self.ratio)
        height = min(len(observed), grid.height - rows.top // self.ratio)
        observed = observed[:height, : grid.width]
        if self.field not in rows.values:
            # No window with any input so far: nothing was observed in these rows.
            return np.full((len(profile.bands), *observed.shape), profile.nodata, profile.dtype)
        values: npt.NDArray[np.generic] = rows.values[self.field][:, :height, : grid.width]
        if self.modality.categorical and self.kind in ("value", "error"):
            values = np.array(self.modality.class_ids)[values.argmax(axis=0)][None]
        if self.kind == "confidence":
            values = values.max(axis=0)[None]
        if self.kind == "error":
            values = self._error(values, rows, area)
        return np.where(observed, values, profile.nodata).astype(profile.dtype, copy=False)

    def _error(self, values: npt.NDArray[Any], rows: BlendedRows, area: Area) -> Array:
        """NaN where the truth was not observed."""
        name = self.modality.name
        height, width = rows.observed.shape
        window = Window(row=rows.top, col=0, height=height, width=width)
        sample = area.read(window, [name])
        if name not in sample.pixels:
            return np.full(values.shape, np.nan, np.float32)
        raw = sample.pixels[name]
        truth = raw.astype(np.float64)
        if not self.modality.categorical:
            calibration = sample.calibration_of(self.modality)
            truth = truth * calibration.scale + calibration.offset
        valid = sample.valid.get(name, np.ones((1, *raw.shape[1:]), dtype=bool))
        inside = np.s_[:, : values.shape[1], : values.shape[2]]
        truth, valid = truth[inside], valid[inside]
        error = values != truth if self.modality.categorical else values - truth
        return np.where(valid, error, np.nan).astype(np.float32)
