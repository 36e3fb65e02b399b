"""The STAC item (MLM) of an exported graph: its tensors, by their shapes in the file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace

from multimae_eo.class_colors import class_colors
from multimae_eo.export.deepness import DeepnessGraph
from multimae_eo.export.graphs import EncoderGraph, Graph, PredictGraph, ReconstructGraph
from multimae_eo.model_folder.mlm_item import (
    MLM_SCHEMA,
    BandChannel,
    ItemInput,
    ItemOutput,
    class_records,
    feature_outputs,
    input_unit,
    prediction_output,
    reconstruction_output,
)

METADATA_KEY = "mlm-metadata"
"""Of MLM's fields inside a ``.pt2`` archive, as ``stac-model`` writes them; and inside an ONNX."""
_BLACK = (0, 0, 0)

Shapes = Mapping[str, tuple[int, ...]]


def graph_inputs(graph: Graph, shapes: Shapes) -> list[ItemInput]:
    """The arguments of a graph. ``shapes``: of each, -1 where free."""
    reader = graph.reader
    channels = {
        name: tuple(
            BandChannel(modality=name, band=i, level=reader.levels[name])
            for i in reader.bands[name]
        )
        for name in reader.inputs
    }
    if isinstance(graph, DeepnessGraph):
        (name,) = graph.input_names
        scaled = ", ".join(
            f"{record['modality']}.{record['band']} × {record['scale']:g} + {record['offset']:g}"
            for record in graph.channel_record()
        )
        return [
            ItemInput(
                name=name,
                channels=tuple(c for part in channels.values() for c in part),
                shape=shapes[name],
                description=f"digital numbers divided by 255; physical values: {scaled}",
                value_scaling=({"type": "scale", "value": 255},),
            )
        ]
    modalities = reader.model.modalities
    return [
        ItemInput(
            name=name,
            channels=channels[name],
            shape=shapes[name],
            description=input_unit(modalities[name], reader.levels[name]),
        )
        for name in reader.inputs
    ]


def graph_outputs(graph: Graph, shapes: Sequence[tuple[int, ...]]) -> list[ItemOutput]:
    """What a graph returns. ``shapes``: of each output, -1 where free."""
    outputs: list[ItemOutput] = []
    if isinstance(graph, EncoderGraph):
        outputs = list(feature_outputs(graph.reader.model.config.encoder.width, -1))
    elif isinstance(graph, DeepnessGraph):
        outputs = [_scores(graph)]
    elif isinstance(graph, PredictGraph):
        outputs = [prediction_output(graph.output_names[0], graph.predictor.target, -1)]
    elif isinstance(graph, ReconstructGraph):
        modalities = graph.reader.model.modalities
        outputs = [
            reconstruction_output(t.modality, modalities[t.modality], -1)
            for t in graph.tasks.values()
        ]
    return [
        replace(output, name=name, result=(shape, output.result[1]))
        for name, output, shape in zip(graph.output_names, outputs, shapes, strict=True)
    ]


def metadata_text(properties: Mapping[str, object]) -> str:
    """MLM's fields as ``stac-model`` reads them from a file: without their prefix, in YAML.

    JSON is YAML.
    """
    fields = {k.removeprefix("mlm:"): v for k, v in properties.items()}
    return json.dumps({"$schema": MLM_SCHEMA, "properties": fields})


def _scores(graph: DeepnessGraph) -> ItemOutput:
    target = graph.inner.predictor.target
    dimensions = ("batch", "class", "height", "width")
    if target.numeric:
        return ItemOutput(
            name="scores",
            tasks=("regression",),
            result=((-1, 1, -1, -1), ("batch", "channel", *dimensions[2:])),
            description="value in the unit of the labels, NaN without data",
        )
    names = graph.class_names
    return ItemOutput(
        name="scores",
        tasks=("semantic-segmentation",),
        result=((-1, len(names), -1, -1), dimensions),
        description="probability of each class; 1 in the first channel without data",
        classes=class_records(names, range(len(names)), (_BLACK, *class_colors(target.classes))),
    )
