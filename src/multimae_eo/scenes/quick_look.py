"""The picture beside a raster: small, with its classes or a colour bar."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from multimae_eo.metrics.reconstruction_scores import class_index
from multimae_eo.modality import ClassMapEntry, Modality
from multimae_eo.reports.panels import Bar, short
from multimae_eo.reports.pictures import (
    RGB,
    Look,
    class_picture,
    describe,
    look_of,
    picture,
    ramp_colours,
    relief_ramp,
    scalar_picture,
    stretch_of,
)
from multimae_eo.reports.reconstruction_figures import save_figure
from multimae_eo.scenes.output_layers import OutputLayer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST, _LEAST = 1024, 420
_EMBEDDING_MOST = 256
_DPI = 100
_LINE = 20
_MARGIN = 12


@dataclass(frozen=True)
class _Drawing:
    """An image, its caption, and its colour bar or its classes."""

    image: RGB
    caption: str
    bar: Bar | None = None
    classes: tuple[ClassMapEntry, ...] = ()


def quick_look(path: Path, layer: OutputLayer) -> Path:
    """Draw the raster at ``path``, at most 1024 px a side, as ``path`` + ``.png``.

    Raises OutputError where it cannot be written.
    """
    import rasterio

    with rasterio.open(path) as dataset:
        scale = max(1, -(-max(dataset.shape) // _MOST))
        shape = (-(-dataset.height // scale), -(-dataset.width // scale))
        values = dataset.read(out_shape=(dataset.count, *shape))
        ok = np.isfinite(values) if values.dtype.kind == "f" else values != dataset.nodata
    return save_figure(_figure(_draw(layer, values, ok)), path.with_name(path.name + ".png"))


def embedding_look(path: Path) -> Path:
    """Draw the first three principal components of the raster of embeddings at ``path`` as red,
    green and blue, at most 256 px a side, as ``path`` + ``.png``."""
    import rasterio

    with rasterio.open(path) as dataset:
        scale = max(1, -(-max(dataset.shape) // _EMBEDDING_MOST))
        shape = (-(-dataset.height // scale), -(-dataset.width // scale))
        raw = dataset.read(out_shape=(dataset.count, *shape), masked=True)
        scales, offsets = np.array(dataset.scales), np.array(dataset.offsets)
    vectors = raw.filled(0).reshape(len(raw), -1).T * scales + offsets
    ok = ~np.ma.getmaskarray(raw).any(axis=0).ravel() & np.isfinite(vectors).all(axis=1)
    image = np.full((len(vectors), 3), 255, np.uint8)
    image[ok] = _components(vectors[ok])
    caption = "first three principal components"
    drawing = _Drawing(image.reshape(*shape, 3), caption)
    return save_figure(_figure(drawing), path.with_name(path.name + ".png"))


def distance_look(path: Path, caption: str) -> Path:
    """Draw the raster of distances at ``path``, from 0 to its 98th percentile, as ``path`` +
    ``.png``."""
    import rasterio

    with rasterio.open(path) as dataset:
        scale = max(1, -(-max(dataset.shape) // _MOST))
        shape = (-(-dataset.height // scale), -(-dataset.width // scale))
        values = dataset.read(1, out_shape=shape)
    finite = values[np.isfinite(values)]
    end = float(np.percentile(finite, 98)) if finite.size else 0.0
    drawing = _ramp(values, "magma", (0.0, end if end > 0 else 1.0), caption, "")
    return save_figure(_figure(drawing), path.with_name(path.name + ".png"))


def _components(vectors: npt.NDArray[np.generic]) -> npt.NDArray[np.uint8]:
    """The first three principal components (n, 3), each between its 2nd and 98th percentile."""
    centred = vectors - vectors.mean(axis=0)
    _, axes = np.linalg.eigh(centred.T @ centred)
    axes = axes[:, ::-1][:, :3]
    # An eigenvector has no sign: its largest entry is made positive.
    signs = np.sign(np.take_along_axis(axes, np.abs(axes).argmax(axis=0)[None], axis=0))
    parts = centred @ (axes * signs)
    low, high = np.percentile(parts, (2, 98), axis=0)
    share = (parts - low) / np.where(high > low, high - low, 1.0)
    return np.asarray(np.clip(share, 0, 1) * 255, np.uint8)


def _draw(
    layer: OutputLayer, values: npt.NDArray[np.generic], ok: npt.NDArray[np.bool_]
) -> _Drawing:
    modality = layer.modality
    if layer.kind == "value":
        return _value(modality, values, ok)
    if layer.kind in ("probabilities", "confidence"):
        # One picture of many bands: the likeliest class's probability.
        likeliest = np.where(ok.all(axis=0), values.max(axis=0), np.nan)
        return _ramp(likeliest, "cividis", (0.0, 1.0), "probability of the likeliest class", "")
    unit = layer.profile.tags["unit"]
    if layer.kind == "error" and modality.categorical:
        return _ramp(
            values[0], "magma", (0.0, 1.0), f"{modality.name}: 1 where the class is wrong", ""
        )
    signed = layer.kind == "error" and len(values) == 1
    if signed:
        flat, quantity = values[0], "prediction − truth"
    else:
        flat = np.sqrt((values.astype(np.float64) ** 2).mean(axis=0))
        quantity = "entropy" if modality.categorical else layer.kind
        quantity += ", rms of bands" if len(values) > 1 else ""
    finite = np.abs(flat[np.isfinite(flat)])
    end = float(np.percentile(finite, 98)) if finite.size else 0.0
    end = end if end > 0 else 1.0
    ramp = "RdBu_r" if signed else "cividis" if layer.kind == "std" else "magma"
    return _ramp(flat, ramp, (-end if signed else 0.0, end), f"{modality.name}: {quantity}", unit)


def _value(
    modality: Modality, values: npt.NDArray[np.generic], ok: npt.NDArray[np.bool_]
) -> _Drawing:
    if modality.categorical:
        index = class_index(values[0], modality)
        present = np.unique(index[ok[0] & (index >= 0)])
        shown = tuple(modality.classes[int(i)] for i in present)
        return _Drawing(class_picture(modality, index, ok), modality.name, classes=shown)
    filled = np.where(ok, values, 0.0).astype(np.float64)
    stretch = stretch_of(modality, filled, ok)
    image = picture(modality, filled, valid=ok, stretch=stretch)
    look = look_of(modality)
    if look not in (Look.SCALAR, Look.RELIEF):
        return _Drawing(image, f"{modality.name}: {describe(modality)}")
    # The unit is beside the bar.
    caption = ": ".join(dict.fromkeys((modality.name, modality.band_names[0])))
    colours = relief_ramp() if look is Look.RELIEF else ramp_colours("viridis")
    ends = (stretch.low[0], stretch.high[0])
    return _Drawing(image, caption, bar=_bar(colours, ends, modality.unit))


def _ramp(
    values: npt.NDArray[np.generic], name: str, ends: tuple[float, float], caption: str, unit: str
) -> _Drawing:
    image = scalar_picture(values, name, *ends)
    return _Drawing(image, caption, bar=_bar(ramp_colours(name), ends, unit))


def _bar(colours: RGB, ends: tuple[float, float], unit: str) -> Bar:
    low, high = (short(v) for v in ends)
    return Bar(colours=colours, low=low, high=f"{high} {unit}".strip())


def _figure(drawing: _Drawing) -> Figure:
    """The image pixel by pixel, and below it the caption, and a bar or the classes."""
    from matplotlib.figure import Figure as NewFigure

    # Without axes, which take longer to make than all the rest.
    times = max(1, _LEAST // max(drawing.image.shape[:2]))
    image = drawing.image.repeat(times, axis=0).repeat(times, axis=1)
    height, width = image.shape[:2]
    figure_width = max(width, _LEAST) + 2 * _MARGIN
    columns = max(1, (figure_width - 2 * _MARGIN) // 200)
    lines = 1 + (1 if drawing.bar else -(-len(drawing.classes) // columns))
    figure_height = height + 2 * _MARGIN + lines * _LINE
    figure = NewFigure(
        figsize=(figure_width / _DPI, figure_height / _DPI), dpi=_DPI, facecolor="white"
    )

    def draw(pixels: RGB, x: int, y: int) -> None:
        figure.figimage(pixels, x, figure_height - y - len(pixels), origin="upper")

    def text(line: str, x: float, y: float, **style: object) -> None:
        plain: dict[str, Any] = {"fontsize": 9, "va": "center", "parse_math": False}
        figure.text(x / figure_width, 1 - y / figure_height, line, **plain | style)

    draw(image, _MARGIN, _MARGIN)
    y = _MARGIN + height + 0.75 * _LINE
    text(drawing.caption, _MARGIN, y, fontweight="bold")
    if drawing.bar is not None:
        y, right = y + _LINE, figure_width - _MARGIN
        text(drawing.bar.low, _MARGIN, y)
        text(drawing.bar.high, right, y, ha="right")
        before, after = (8 * len(t) + 8 for t in (drawing.bar.low, drawing.bar.high))
        length = max(40, right - _MARGIN - before - after)
        index = np.arange(length) * len(drawing.bar.colours) // length
        draw(drawing.bar.colours[index][None].repeat(10, axis=0), _MARGIN + before, round(y) - 5)
    for number, entry in enumerate(drawing.classes):
        x = _MARGIN + 200 * (number % columns)
        below = y + _LINE * (1 + number // columns)
        draw(np.full((12, 12, 3), entry.color, np.uint8), x, round(below) - 6)
        text(entry.name[:28], x + 18, below)
    return figure
