"""What is exported: modules of positional tensors in physical units, with normalisation inside."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from multimae_eo.errors import ConfigError
from multimae_eo.inference.backbone import TensorEncoder
from multimae_eo.network.heads import ChipHead
from multimae_eo.network.multimae import MultiMAE
from multimae_eo.network.predictor import Predictor
from multimae_eo.network.reconstruction import able_tasks, averageable, to_image, usual_level

What = Literal["encoder", "predict", "reconstruct"]
WHATS: tuple[What, ...] = ("encoder", "predict", "reconstruct")


@dataclass(frozen=True, kw_only=True)
class GraphOptions:
    """Inputs and outputs of a graph.

    ``what``: the encoder's map and mean, a fine-tuned model's output, or reconstructed modalities.
    ``inputs``: modalities (None: all). ``outputs``: those to reconstruct (None: all with a task).
    ``levels``: product level by input, where the model knows several. ``size``: side of a chip in
    pixels of the finest input (None: the size of pre-training). ``scale``, ``offset``: of the
    digital numbers that a graph for Deepness takes (None: as in the training data).
    """

    what: What = "encoder"
    inputs: tuple[str, ...] | None = None
    outputs: tuple[str, ...] | None = None
    levels: Mapping[str, str] | None = None
    size: int | None = None
    scale: float | None = None
    offset: float | None = None


class Graph(nn.Module):
    """A model as a function of positional tensors (B, C, H, W), in the order of ``input_names``."""

    output_names: tuple[str, ...]

    def __init__(self, reader: TensorEncoder) -> None:
        super().__init__()
        self.reader = reader

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the arguments, in order: the modalities."""
        return self.reader.inputs

    def named(self, images: Sequence[Tensor]) -> dict[str, Tensor]:
        """The arguments by name."""
        return dict(zip(self.input_names, images, strict=True))

    def shapes(self, size: int | None) -> dict[str, tuple[int, int, int]]:
        """Channels, height and width of each argument, for chips of ``size`` px."""
        return input_shapes(self, size)

    def arguments(self, images: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """The arguments that stand for images in physical units (B, C, H, W) of every input."""
        return tuple(images[name] for name in self.reader.inputs)


class EncoderGraph(Graph):
    """The fused map (B, D, rows, columns) of the last block, and the tokens' mean (B, D)."""

    output_names = ("features", "pooled")

    def forward(self, *images: Tensor) -> tuple[Tensor, ...]:
        """Encode; NaN where nothing was observed."""
        features = self.reader.encode(self.named(images))
        return features.fused(), features.pooled


class PredictGraph(Graph):
    """A fine-tuned model's output: probabilities (B, O) or (B, O, H, W), or values (B, …)."""

    output_names = ("prediction",)

    def __init__(self, reader: TensorEncoder, predictor: Predictor) -> None:
        super().__init__(reader)
        self.predictor = predictor

    def forward(self, *images: Tensor) -> tuple[Tensor, ...]:
        """Predict; NaN where nothing was observed."""
        head, given = self.predictor.head, self.named(images)
        features = self.reader.encode(given, head.blocks, full_layout=True)
        out: Tensor = head(features)
        if not isinstance(head, ChipHead):
            out = self.predictor.to_pixels(out, features, self.reader.sizes(given))
        return (self.predictor.predictions(out),)


class ReconstructGraph(Graph):
    """Modalities from every observed token of the inputs.

    Continuous ones (B, C, H, W) in their unit, class maps as probabilities (B, classes, H, W).
    """

    def __init__(self, reader: TensorEncoder, outputs: Sequence[str] | None) -> None:
        super().__init__(reader)
        self.tasks = able_tasks(reader.model, outputs)
        if not self.tasks:
            raise ConfigError("reconstruct: the model has no decoders; export --what encoder")
        self.output_names = tuple(f"{t.modality}_reconstructed" for t in self.tasks.values())

    def forward(self, *images: Tensor) -> tuple[Tensor, ...]:
        """Reconstruct; NaN where nothing was observed."""
        model, given = self.reader.model, self.named(images)
        features = self.reader.encode(given, full_layout=True)
        sizes, grids = self.reader.sizes(given), features.layout.grids
        positions = torch.cat([model.decoder_positions(g, "bilinear") for g in grids.values()])
        tokens = torch.cat([features.tokens, features.global_tokens], dim=1)
        layout, slots = features.layout, features.slots
        decoded = model.decode(list(self.tasks), tokens, slots, layout, positions)
        outputs: list[Tensor] = []
        for task, values in decoded.items():
            name = self.tasks[task].modality
            numbers = averageable(model, self.tasks[task], values)
            image = to_image(model, name, numbers, grids[name], sizes[name])
            if not model.modalities[name].categorical:
                level = torch.tensor([self._level(name)], device=image.device)
                image = model.normalizer.physical(name, image, level)
            outputs.append(image)
        return tuple(outputs)

    def _level(self, name: str) -> int:
        """Its own level, or that of an input with the same levels, or the usual one."""
        reader = self.reader
        modalities = reader.model.modalities
        like = [n for n in (name, *reader.inputs) if n in reader.inputs]
        same = [n for n in like if modalities[n].levels == modalities[name].levels]
        return reader.levels[same[0]] if same else usual_level(reader.model, name)


def build_graph(model: MultiMAE | Predictor, options: GraphOptions) -> Graph:
    """The graph of a model, in evaluation mode, with a copy of its weights where it changes them.

    Raises ConfigError where the model has no such output.
    """
    if isinstance(model, Predictor):
        model = model.without_decoders()
    network = model if isinstance(model, MultiMAE) else model.encoder
    inputs = network.modalities.names if options.inputs is None else options.inputs
    graph: Graph
    if options.what == "predict":
        if not isinstance(model, Predictor):
            raise ConfigError("predict: a pre-trained model has no head; give a fine-tuned one")
        graph = PredictGraph(TensorEncoder(model.encoder, inputs, levels=options.levels), model)
    elif options.what == "reconstruct":
        reader = TensorEncoder(network, inputs, levels=options.levels)
        graph = ReconstructGraph(reader, options.outputs)
    else:
        reader = TensorEncoder(network.without_decoders(), inputs, levels=options.levels)
        graph = EncoderGraph(reader)
    return graph.eval()


def input_shapes(graph: Graph, size: int | None) -> dict[str, tuple[int, int, int]]:
    """Channels, height and width of each input; ConfigError for a size that cannot be."""
    config, bands = graph.reader.model.config.inputs, graph.reader.bands
    finest = max(graph.reader.inputs, key=lambda n: config[n].size)
    side = config[finest].size if size is None else size
    shapes = {}
    for name in graph.reader.inputs:
        exact = side * config[name].size / config[finest].size
        if exact < 1 or exact != int(exact):
            raise ConfigError(
                f"--size {side}: {exact:g} px of {name}; take a multiple of "
                f"{config[finest].size // config[name].size}"
            )
        shapes[name] = (len(bands[name]), int(exact), int(exact))
    return shapes


def size_steps(graph: Graph) -> dict[str, int]:
    """Pixels of each input by which the sides of its chips may grow, where a graph takes any size.

    A step is a whole number of patches of every modality of the model. Raises ConfigError where
    the chip of pre-training is not, and for class maps.
    """
    config = graph.reader.model.config.inputs
    for name in graph.reader.inputs:
        if graph.reader.model.modalities[name].categorical:
            raise ConfigError(
                f"--dynamic size: {name} is a class map, whose lookup torch traces for one size of "
                "chip only; leave it out of --inputs, or export once per --size"
            )
    for name, part in config.items():
        if part.size % part.token_pixels:
            raise ConfigError(
                f"--dynamic size: {name} has chips of {part.size} px and patches of "
                f"{part.token_pixels} px, which are not whole patches; export once per --size"
            )
    cells = math.gcd(*(part.size // part.token_pixels for part in config.values()))
    return {name: config[name].size // cells for name in graph.reader.inputs}


def random_images(graph: Graph, size: int | None, batch: int, seed: int) -> tuple[Tensor, ...]:
    """Plausible inputs with a tenth of the pixels unobserved, and one input's corner."""
    generator = torch.Generator().manual_seed(seed)
    model = graph.reader.model
    images: dict[str, Tensor] = {}
    for name, shape in input_shapes(graph, size).items():
        modality = model.modalities[name]
        if modality.categorical:
            ids = torch.tensor(modality.class_ids, dtype=torch.float32)
            pick = torch.randint(len(ids), (batch, *shape), generator=generator)
            values = ids[pick]
        else:
            level = torch.tensor([graph.reader.levels[name]])
            noise = torch.randn((batch, *shape), generator=generator)
            values = model.normalizer.physical(name, noise, level)
        holes = torch.rand((batch, *shape), generator=generator) < 0.1
        values = values.masked_fill(holes, float("nan"))
        if len(images) == 0:
            values[0, :, : shape[1] // 2, : shape[2] // 2] = float("nan")
        images[name] = values
    return graph.arguments(images)


def contract(graph: Graph) -> dict[str, object]:
    """Inputs and outputs of a graph, for its file."""
    modalities = graph.reader.model.modalities
    inputs = {}
    for name in graph.reader.inputs:
        modality = modalities[name]
        inputs[name] = {
            "bands": list(modality.band_names),
            "unit": modality.unit,
            "level": modality.levels[graph.reader.levels[name]] if modality.levels else "",
            "class_ids": list(modality.class_ids),
            "unobserved": "NaN",
        }
    record: dict[str, object] = {"inputs": inputs, "outputs": list(graph.output_names)}
    if isinstance(graph, PredictGraph):
        record["classes"] = list(graph.predictor.target.classes)
    if isinstance(graph, ReconstructGraph):
        record["outputs"] = {
            out: {
                "bands": list(
                    modalities[t.modality].class_names or modalities[t.modality].band_names
                ),
                "unit": modalities[t.modality].unit,
            }
            for out, t in zip(graph.output_names, graph.tasks.values(), strict=True)
        }
    return record
