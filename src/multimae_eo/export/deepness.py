"""A fine-tuned model as the QGIS plug-in Deepness takes it: one raster in, a map out.

The plug-in cuts tiles of the bands that its user maps to the channels of the single input, divides
them by 255 whatever their dtype, standardises them with the file's ``standardization_mean`` and
``standardization_std``, and gives them to ONNX Runtime as float32 (N, C, H, W). It pads with 0. Of
an output (N, C, H, W) it takes the largest channel, the first where all are below its threshold.
Keys and arithmetic are those of ``src/deepness/processing/models/model_base.py`` of
github.com/PUTvision/qgis-plugin-deepness (2024).
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from multimae_eo.errors import ConfigError
from multimae_eo.export.graphs import Graph, PredictGraph, input_shapes
from multimae_eo.modality import Modality

INPUT = "image"
NO_DATA = "no data"
"""Name of the first output channel: 1 where no band was observed."""
IR_VERSION = 8
"""Of the file: that of opset 18, which the plug-in's ONNX Runtime (from 1.12) opens."""
_REFLECTANCE = "reflectance"
_DIVISOR = 255.0
_OVERLAP_PERCENT = 25
# Two roundings to float32 lie between a digital number and the graph's.
_SAME = 1e-5


class DeepnessGraph(Graph):
    """Predicts from digital numbers that were divided by 255: all bands in one tensor.

    Channels are the bands of the inputs, in order; inputs of larger pixels are resampled to the
    finest one's by the plug-in and averaged here. Not observed are the modality's nodata, and
    pixels that are 0 in all of its bands, with which the plug-in pads; a single band is judged with
    the others. Class scores (B, 1 + O, H, W), the first channel for pixels without data; or
    values (B, 1, H, W), NaN there.

    scale, offset: physical = digital number × scale + offset, of the inputs in the unit of the
    first (default, and of others: as in the model's training data).
    """

    output_names = ("scores",)

    def __init__(
        self, inner: PredictGraph, *, scale: float | None = None, offset: float | None = None
    ) -> None:
        super().__init__(inner.reader)
        self.inner = inner
        modalities = inner.reader.model.modalities
        inputs = [modalities[n] for n in inner.reader.inputs]
        unit = next((m.unit for m in inputs if not m.categorical), "")
        self.calibration = {
            m.name: _calibration(m, *((scale, offset) if m.unit == unit else (None, None)))
            for m in inputs
        }
        self.ratios = _ratios(inner)

    @property
    def input_names(self) -> tuple[str, ...]:
        """One argument."""
        return (INPUT,)

    @property
    def channels(self) -> tuple[tuple[str, str], ...]:
        """Modality and band of each channel of the input."""
        reader = self.reader
        names = {n: reader.model.modalities[n].band_names for n in reader.inputs}
        return tuple((n, names[n][i]) for n in reader.inputs for i in reader.bands[n])

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the output's channels where they are classes."""
        classes = self.inner.predictor.target.classes
        return (NO_DATA, *classes) if classes else ()

    def channel_record(self) -> list[dict[str, str | float]]:
        """Band, modality, and scale and offset of each channel."""
        return [
            {
                "band": band,
                "modality": name,
                "scale": self.calibration[name][0],
                "offset": self.calibration[name][1],
            }
            for name, band in self.channels
        ]

    def shapes(self, size: int | None) -> dict[str, tuple[int, int, int]]:
        """Channels, height and width of the input."""
        sides = [shape[1] for shape in input_shapes(self, size).values()]
        return {INPUT: (len(self.channels), max(sides), max(sides))}

    def arguments(self, images: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Images in physical units as the plug-in gives them: digital numbers over 255.

        Unobserved pixels are the modality's nodata, else 0, which then is a value.
        """
        planes = []
        for name in self.reader.inputs:
            scale, offset = self.calibration[name]
            numbers = (images[name] - offset) / scale
            nodata = self.reader.model.modalities[name].nodata
            numbers = torch.where(numbers.isfinite(), numbers, nodata[0] if nodata else 0.0)
            ratio = self.ratios[name]
            planes.append(numbers.repeat_interleave(ratio, 2).repeat_interleave(ratio, 3))
        return (torch.cat(planes, dim=1) / _DIVISOR,)

    def forward(self, *images: Tensor) -> tuple[Tensor, ...]:
        """Predict; see the class."""
        numbers = images[0] * _DIVISOR
        seen, given, start = [], [], 0
        every = _blank(numbers)
        for name in self.reader.inputs:
            stop = start + len(self.reader.bands[name])
            part = numbers[:, start:stop]
            values, observed = self._physical(name, part, every | _blank(part))
            given.append(_averaged(values, self.ratios[name], self._categorical(name)))
            seen.append(observed.any(dim=1, keepdim=True))
            start = stop
        observed = torch.cat(seen, dim=1).any(dim=1, keepdim=True)
        (out,) = self.inner(*given)
        target = self.inner.predictor.target
        if target.numeric:
            out = out[:, None]
        if not target.dense:
            out = out[:, :, None, None].expand(-1, -1, *numbers.shape[-2:])
        if target.numeric:
            return (torch.where(observed, out, float("nan")),)
        scores = torch.where(observed & out.isfinite(), out, 0.0)
        return (torch.cat([(~observed).to(scores.dtype), scores], dim=1),)

    def _physical(self, name: str, numbers: Tensor, blank: Tensor) -> tuple[Tensor, Tensor]:
        """A modality in its unit, NaN where not observed, and which values are."""
        observed = numbers.isfinite() & ~blank
        if self._categorical(name):
            numbers = numbers.round()
        for value in self.reader.model.modalities[name].nodata:
            observed = observed & ((numbers - value).abs() > _SAME * max(1.0, abs(value)))
        scale, offset = self.calibration[name]
        return torch.where(observed, numbers * scale + offset, float("nan")), observed

    def _categorical(self, name: str) -> bool:
        return self.reader.model.modalities[name].categorical


def deepness_metadata(graph: DeepnessGraph, size: int | None) -> dict[str, str]:
    """The entries of an ONNX file that the plug-in reads, each a JSON value."""
    count, side, _ = graph.shapes(size)[INPUT]
    target = graph.inner.predictor.target
    names = graph.class_names or ("value",)
    entries: dict[str, object] = {
        "model_type": "Regressor" if target.numeric else "Segmentor",
        "class_names": {str(i): name for i, name in enumerate(names)},
        # The plug-in's documentation calls it tiles_size, its code reads tile_size.
        "tile_size": side,
        "tiles_size": side,
        "tiles_overlap": _OVERLAP_PERCENT,
        "standardization_mean": [0.0] * count,
        "standardization_std": [1.0] * count,
    }
    if target.numeric:
        entries["reg_output_scaling"] = 1.0
    else:
        # The likeliest class, however many there are.
        entries["seg_thresh"] = 0.0
    pixel = _pixel_m(graph)
    if pixel is not None:
        entries["resolution"] = pixel * 100  # centimetres
    return {name: json.dumps(value) for name, value in entries.items()}


def _pixel_m(graph: DeepnessGraph) -> float | None:
    finest = [n for n, ratio in graph.ratios.items() if ratio == 1]
    modalities = graph.reader.model.modalities
    return next((m for n in finest if (m := modalities[n].gsd_m) is not None), None)


def _calibration(
    modality: Modality, scale: float | None, offset: float | None
) -> tuple[float, float]:
    if modality.categorical:
        return 1.0, 0.0
    as_trained = modality.scale, modality.offset
    if scale is None and modality.unit == _REFLECTANCE and as_trained == (1.0, 0.0):
        raise ConfigError(
            f"deepness: the model's data were {modality.name} in reflectance; is your raster so, "
            "too (--scale 1), or does it hold digital numbers (Sentinel-2: --scale 1e-4)?"
        )
    pair = (
        modality.scale if scale is None else scale,
        modality.offset if offset is None else offset,
    )
    if pair[0] == 0.0:
        raise ConfigError("--scale must not be 0")
    return pair


def _ratios(inner: PredictGraph) -> dict[str, int]:
    """Pixels of the finest input along one of each input's; ConfigError where not whole."""
    config = inner.reader.model.config.inputs
    side = max(config[n].size for n in inner.reader.inputs)
    finest = max(part.size for part in config.values())
    if inner.predictor.target.dense and side != finest:
        names = ", ".join(n for n, part in config.items() if part.size == finest)
        raise ConfigError(
            f"deepness: the model predicts at the pixels of {names}; name one of them in --inputs"
        )
    for name in inner.reader.inputs:
        if side % config[name].size:
            raise ConfigError(
                f"deepness: {name} has {config[name].size} px on the ground of {side} px, which "
                "is not a whole ratio; leave it out of --inputs"
            )
    return {n: side // config[n].size for n in inner.reader.inputs}


def _blank(numbers: Tensor) -> Tensor:
    """Pixels (B, 1, H, W) that are 0 in all of several channels; of one channel, 0 is a value."""
    if numbers.shape[1] == 1:
        return torch.zeros_like(numbers, dtype=torch.bool)
    return (numbers == 0).all(dim=1, keepdim=True)


def _averaged(values: Tensor, ratio: int, categorical: bool) -> Tensor:
    """Means over ratio × ratio pixels of those observed, NaN without any; of class ids one."""
    if ratio == 1:
        return values
    if categorical:
        return values[..., ratio // 2 :: ratio, ratio // 2 :: ratio]
    observed = values.isfinite()
    share = F.avg_pool2d(observed.to(values.dtype), ratio)
    mean = F.avg_pool2d(torch.where(observed, values, 0.0), ratio) / share.clamp_min(1e-6)
    return torch.where(share > 0, mean, float("nan"))
