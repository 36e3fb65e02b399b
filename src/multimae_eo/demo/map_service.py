"""A scene on a web map: its layers, the model's maps of it, and statistics of a rectangle."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from multimae_eo.demo.drawing import Palette, class_entries, in_palette, png, ramp_of
from multimae_eo.demo.jobs import BackgroundJob
from multimae_eo.demo.map_accuracy import read_accuracy
from multimae_eo.demo.map_layers import (
    FileLayer,
    Frame,
    MapLayer,
    SceneLayer,
    draw,
    scene_bounds,
    tile_frame,
    value_range,
)
from multimae_eo.demo.zonal import plain, zonal_statistics
from multimae_eo.errors import ConfigError, DataError
from multimae_eo.network.multimae import MultiMAE
from multimae_eo.network.predictor import Predictor
from multimae_eo.reports.pictures import describe
from multimae_eo.scenes.job import SceneOptions
from multimae_eo.scenes.predict import predict_scene
from multimae_eo.scenes.reconstruct import reconstruct_scene
from multimae_eo.sources.scene.scene import Scene

Progress = Callable[[int, int], None]

_TILES = 1024


@dataclass
class _Overlay:
    """A map over the scene, made by ``job`` on the first request; its result is a FileLayer.

    ``accuracy``: see ``read_accuracy``.
    """

    title: str
    description: str
    job: BackgroundJob
    accuracy: dict[str, Any] | None = None


class MapService:
    """Layers ``s0`` … of the scene, overlays ``o0`` … of the model; tiles are cached.

    ``folder``: where maps are written. ``predictor``: a fine-tuned model whose map is an overlay;
    ``map``: a raster that is one, and ``accuracy`` its record of ``assess`` or ``map``. Without
    either, and beside them, every modality the model predicts is one, made from the scene's other
    modalities.
    """

    def __init__(
        self,
        model: MultiMAE,
        scene: Scene,
        folder: Path,
        *,
        predictor: Predictor | None = None,
        map: Path | None = None,
        accuracy: Path | None = None,
        options: SceneOptions | None = None,
    ) -> None:
        self._options = options or SceneOptions()
        self.model, self.scene, self._folder = model, scene, folder
        self.layers = {
            f"s{i}": SceneLayer(scene, m) for i, m in enumerate(scene.modalities.values())
        }
        overlays: list[_Overlay] = []
        if map is not None:
            layer = FileLayer(map)
            ready = BackgroundJob(lambda _: layer)
            estimates = None if accuracy is None else read_accuracy(accuracy)
            overlays.append(_Overlay(map.stem, "the map given by --map", ready, estimates))
        if predictor is not None:
            job = BackgroundJob(partial(self._predict, predictor.eval()))
            overlays.append(_Overlay("prediction", "by the fine-tuned model", job))
        overlays += self._reconstructions()
        self.overlays = {f"o{i}": o for i, o in enumerate(overlays)}
        self._tiles: OrderedDict[tuple[str, Palette, int, int, int], bytes] = OrderedDict()
        self._lock = threading.Lock()
        self.bounds = scene_bounds(scene)

    def describe(self) -> dict[str, object]:
        """Name, bounds in Web-Mercator metres, pixel size, layers and overlays."""
        layers = [
            {"id": key, "title": name, "description": describe(m), "unit": m.unit}
            for (key, layer), name in zip(self.layers.items(), self.scene.modalities, strict=True)
            for m in (layer.modality,)
        ]
        overlays = [
            {
                "id": k,
                "title": o.title,
                "description": o.description,
                "job": o.job.status(),
                "accuracy": o.accuracy,
            }
            for k, o in self.overlays.items()
        ]
        first = next(iter(self.layers.values()))
        return {
            "name": self.scene.name,
            "bounds": list(self.bounds),
            "pixel": first.pixel,
            "layers": layers,
            "overlays": overlays,
        }

    def legend(self, key: str, palette: Palette = "official") -> dict[str, object]:
        """A layer's legend: ``classes`` in the colours of a palette, or ``ramp`` from ``low`` to
        ``high``."""
        layer = self.layer(key)
        span = value_range(layer)
        return {
            "description": describe(layer.modality),
            "unit": layer.modality.unit,
            "classes": class_entries(in_palette(layer.modality, palette)),
            "ramp": ramp_of(layer.modality),
            "low": None if span is None else span[0],
            "high": None if span is None else span[1],
        }

    def tile(self, key: str, z: int, x: int, y: int, palette: Palette = "official") -> bytes:
        """A 256 px PNG of a layer, transparent for nodata; DataError for an unknown tile."""
        address = key, palette, z, x, y
        with self._lock:
            if address in self._tiles:
                self._tiles.move_to_end(address)
                return self._tiles[address]
        if x >= 2**z or y >= 2**z:
            raise DataError(f"no tile {z}/{x}/{y}")
        data = png(draw(self.layer(key), tile_frame(z, x, y), palette))
        with self._lock:
            self._tiles[address] = data
            while len(self._tiles) > _TILES:
                self._tiles.popitem(last=False)
        return data

    def values(self, key: str, x: float, y: float) -> list[dict[str, object]]:
        """A layer's bands at a point in Web-Mercator metres; empty where nothing is."""
        layer = self.layer(key)
        half = layer.pixel / 2
        values = layer.warp(Frame(x - half, y + half, layer.pixel, 1, 1))[:, 0, 0]
        modality = layer.modality
        if not np.isfinite(values).all():
            return []
        if modality.categorical:
            return [{"name": "class", "text": modality.class_names[int(values[0])]}]
        return [
            {"name": b, "value": float(v)} for b, v in zip(modality.band_names, values, strict=True)
        ]

    def area(
        self,
        key: str,
        bounds: tuple[float, float, float, float],
        check: Callable[[], None] = lambda: None,
    ) -> dict[str, Any]:
        """Statistics of a layer in a rectangle (Web-Mercator metres), of its own pixels.

        ``pixels`` and ``hectares`` observed, and ``share`` of the rectangle; per class the same, or
        per band mean, std, minimum and maximum. ``estimated``: of a coarse copy, where there are
        more than 16 million pixels. ``check``: called between parts.
        """
        west, south, east, north = bounds
        if not (west < east and south < north):
            raise ConfigError("the rectangle is empty: west < east and south < north are needed")
        layer = self.layer(key)
        statistics = plain(zonal_statistics(layer, bounds, check), layer, bounds)
        names = layer.modality.class_names
        statistics["classes"] = [
            {"name": names[record.pop("index")], **record} for record in statistics["classes"]
        ]
        return statistics

    def layer(self, key: str) -> MapLayer:
        """A layer by its id; DataError for one that is unknown or not made yet."""
        if key in self.layers:
            return self.layers[key]
        layer: FileLayer | None = self.overlay(key).job.result
        if layer is None:
            raise DataError(f"{key}: this map is not made yet")
        return layer

    def overlay(self, key: str) -> _Overlay:
        """An overlay by its id; DataError."""
        if key not in self.overlays:
            raise DataError("no such layer")
        return self.overlays[key]

    def file(self, key: str) -> Path:
        """The COG of an overlay that is made; DataError."""
        layer: FileLayer | None = self.overlay(key).job.result
        if layer is None:
            raise DataError("this map is not made yet")
        path: Path = layer.path
        return path

    def _reconstructions(self) -> list[_Overlay]:
        shared = [n for n in self.scene.modalities if n in self.model.modalities]
        predictable = dict.fromkeys(t.modality for t in self.model.tasks if t.reconstructs)
        # Class maps first: they are read most easily on a map.
        names = sorted(predictable, key=lambda n: not self.model.modalities[n].categorical)
        overlays = []
        for name in names:
            inputs = [n for n in shared if n != name]
            if inputs:
                description = f"from {', '.join(inputs)}"
                job = BackgroundJob(partial(self._reconstruct, name, inputs))
                overlays.append(_Overlay(f"{name}, reconstructed", description, job))
        return overlays

    def _reconstruct(self, name: str, inputs: list[str], progress: Progress) -> FileLayer:
        (path,) = reconstruct_scene(
            self.model,
            self.scene,
            inputs=inputs,
            outputs=[name],
            out=self._folder / f"reconstruct-{list(self.model.modalities).index(name)}",
            options=replace(self._options, progress=progress),
        )
        observed = next((la for la in self.layers.values() if la.modality.name == name), None)
        modality = self.model.modalities[name]
        return FileLayer(path, modality, None if observed is None else observed.stretch)

    def _predict(self, predictor: Predictor, progress: Progress) -> FileLayer:
        (path,) = predict_scene(
            predictor,
            self.scene,
            out=self._folder / "prediction" / "prediction.tif",
            options=replace(self._options, progress=progress),
        )
        return FileLayer(path)
