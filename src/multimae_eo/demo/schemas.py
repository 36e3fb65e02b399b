"""The requests: strict types, short lists, no unknown field."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from multimae_eo.demo.drawing import Palette
from multimae_eo.demo.label_service import DrawnPolygon, LabelCrs
from multimae_eo.demo.reconstruct_service import MaskOptions

Name = Annotated[str, Field(min_length=1, max_length=64)]
Mask = Annotated[str, Field(pattern=r"^[01]{1,4096}$")]
Number = Annotated[int, Field(ge=0, le=2**31 - 1)]
Metres = Annotated[float, Field(ge=-2.1e7, le=2.1e7, allow_inf_nan=False)]


class Strict(BaseModel):
    """Refuses unknown fields, and numbers written as text."""

    model_config = ConfigDict(extra="forbid", strict=True)


class ReconstructRequest(Strict):
    """Which patches of a location are visible to the model."""

    location: Number
    inputs: Annotated[list[Name], Field(min_length=1, max_length=32)]
    masks: Annotated[dict[Name, Mask], Field(max_length=32)] | None = None
    visible: Annotated[int, Field(ge=1, le=65536)] = 1
    alpha: Annotated[float, Field(ge=0.01, le=100, allow_inf_nan=False)] = 1.0
    seed: Number = 0
    samples: Annotated[int, Field(ge=1, le=8)] = 4
    palette: Palette = "official"

    def options(self) -> MaskOptions:
        """The same without the location, for the service."""
        return MaskOptions(**self.model_dump(exclude={"location"}))


class Point(Strict):
    """Web-Mercator metres."""

    x: Metres
    y: Metres


class Rectangle(Strict):
    """An area of a layer, in Web-Mercator metres."""

    layer: Name
    west: Metres
    south: Metres
    east: Metres
    north: Metres


class SimilarRequest(Strict):
    """A location, by its number or (on a scene) by a point; ``count``: of similar ones."""

    location: Number | None = None
    point: Point | None = None
    count: Annotated[int, Field(ge=1, le=48)] = 12


class FewShotRequest(Strict):
    """Two sets of examples."""

    a: Annotated[list[Point], Field(min_length=1, max_length=64)]
    b: Annotated[list[Point], Field(min_length=1, max_length=64)]


class Polygon(Strict):
    """A drawn polygon: the name of its class, and its points [x, y] in Web-Mercator metres."""

    label: Name
    ring: Annotated[
        list[Annotated[list[Metres], Field(min_length=2, max_length=2)]],
        Field(min_length=3, max_length=512),
    ]

    def drawn(self) -> DrawnPolygon:
        """The same for the service."""
        return DrawnPolygon(self.label, [(x, y) for x, y in self.ring])


class LabelsRequest(Strict):
    """Polygons to download. ``crs``: longitude and latitude, or the scene's."""

    polygons: Annotated[list[Polygon], Field(min_length=1, max_length=256)]
    crs: LabelCrs = "wgs84"


class LabelMapRequest(Strict):
    """Polygons to fit a map to. ``palette``: of its classes."""

    polygons: Annotated[list[Polygon], Field(min_length=1, max_length=256)]
    palette: Palette = "official"


class ClassColorsRequest(Strict):
    """Names of classes."""

    names: Annotated[list[Name], Field(min_length=1, max_length=64)]
    palette: Palette = "official"


class ErrorResponse(BaseModel):
    """An error: what is wrong, and what to do."""

    detail: str
