"""Draw the graph, compare it with eager, and write it: a ``.pt2`` archive or an ONNX file.

The graph's batch may be of any length. Its chips have one size, whose positions are constants of
the graph, or any size, for which positions are interpolated at each run. Beside the file lies its
STAC item.
"""

from __future__ import annotations

import copy
import io
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from multimae_eo.errors import ConfigError, FormatError, MultiMAEError, OutputError
from multimae_eo.export.deepness import IR_VERSION, DeepnessGraph, deepness_metadata
from multimae_eo.export.graph_item import METADATA_KEY, graph_inputs, graph_outputs, metadata_text
from multimae_eo.export.graphs import (
    Graph,
    GraphOptions,
    PredictGraph,
    build_graph,
    contract,
    input_shapes,
    random_images,
    size_steps,
)
from multimae_eo.export.quantize import Quantization, quantize
from multimae_eo.files import (
    JSON_BYTES,
    parse_json,
    reason_of,
    require_regular,
    single_writer,
    write_file,
)
from multimae_eo.model_folder.mlm_item import (
    ITEM_SUFFIX,
    Artifact,
    ItemInput,
    ItemOutput,
    mlm_item,
    mlm_properties,
)
from multimae_eo.network.multimae import MultiMAE
from multimae_eo.network.predictor import Predictor
from multimae_eo.version import __version__

Format = Literal["torch", "onnx", "deepness"]
Dynamic = Literal["batch", "size", "none"]
TOLERANCE = 1e-4
"""Largest difference from eager, relative to the largest magnitude (at least 1) of an output."""
RECORD = "multimae_eo.json"
_OPSET = 18
_LEAST = 2
"""Steps of a side of a chip of any size."""
_BATCH = torch.export.Dim("batch", min=1, max=65536)

Run = Callable[[Sequence[Tensor]], list[Tensor]]
Save = Callable[[dict[str, object]], bytes]


@dataclass(frozen=True, kw_only=True)
class FileOptions:
    """How a graph is written.

    ``format``: deepness is an ONNX file for the QGIS plug-in. ``dynamic``: free are the batch's
    length, that and the chips' size, or none (one chip at a time). ``quantization``: of the weights
    of linear layers. ``model_hash``: of the folder, for the file's record.
    """

    format: Format = "onnx"
    dynamic: Dynamic = "batch"
    quantization: Quantization | None = None
    model_hash: str = ""


@single_writer(folder=False)
def export_model(
    model: MultiMAE | Predictor,
    out: Path,
    graph_options: GraphOptions,
    file_options: FileOptions,
    *,
    images: dict[str, Tensor] | None = None,
) -> dict[str, Any]:
    """Write a graph, checked on random chips and on ``images``; returns the file's record.

    Beside it, ``<out>.stac.json`` is its STAC item. images: real chips by input, physical units
    (B, C, H, W), of the graph's size. Raises OutputError, and writes nothing, where the graph's
    outputs differ from the model's.
    """
    _require(file_options.format)
    graph = _graph(model, graph_options, file_options)
    size, dynamic = graph_options.size, file_options.dynamic
    if isinstance(graph, DeepnessGraph) and graph.inner.predictor.target.numeric:
        dynamic = "none"  # The plug-in's regressors take one tile at a time.
    checks = _checks(graph, size, dynamic)
    if images is not None:
        checks += _real(graph, images, size, dynamic=dynamic != "none")
    record = _record(graph, graph_options, file_options, dynamic)
    if file_options.quantization is not None:
        full, graph = graph, copy.deepcopy(graph)
        quantize(graph, file_options.quantization)
        record["quantization_change"] = _change(full, graph, checks)
    with _any_size(out, dynamic):
        program = _drawn(graph, checks[0], dynamic)
    artifact = _artifact(out, file_options.format)
    described = _described(graph, checks[0], dynamic)
    properties = mlm_properties(model, file_options.model_hash, artifact, *described)
    entries = {METADATA_KEY: metadata_text(properties)}
    # In memory: torch's own writer aborts the process where the disk is full.
    if file_options.format == "torch":
        save, opened = _torch_bytes(program, entries), _open_torch
    else:
        if isinstance(graph, DeepnessGraph):
            entries |= deepness_metadata(graph, size)
        save = _onnx_bytes(program, graph, entries, fold=file_options.quantization is None)
        opened = _open_onnx
    with _any_size(out, dynamic):
        difference = _difference(graph, opened(save(record)), checks)
    record["max_difference"] = difference
    record["checked_on"] = f"{sum(c[0].shape[0] for c in checks)} chips"
    if not difference <= TOLERANCE:
        raise OutputError(
            f"{out}: the graph differs from the model by {difference:.2g} "
            f"(allowed {TOLERANCE:g}); nothing was written"
        )
    write_file(out, save(record))
    inputs, outputs = described
    item = mlm_item(
        model, digest=file_options.model_hash, artifact=artifact, inputs=inputs, outputs=outputs
    )
    write_file(out.with_name(out.name + ITEM_SUFFIX), json.dumps(item, indent=1).encode())
    return record


@contextmanager
def _any_size(out: Path, dynamic: Dynamic) -> Iterator[None]:
    """What torch cannot draw, or run, for chips of any size, as a ConfigError."""
    try:
        yield
    except MultiMAEError:
        raise
    except Exception as error:
        if dynamic != "size":
            raise
        raise ConfigError(
            f"{out}: this graph cannot take chips of any size ({reason_of(error)}); export once "
            "per --size"
        ) from error


def _graph(model: MultiMAE | Predictor, options: GraphOptions, file: FileOptions) -> Graph:
    """The graph; for Deepness in the plug-in's terms."""
    if file.format != "deepness":
        if options.scale is not None or options.offset is not None:
            raise ConfigError("--scale and --offset belong to --format deepness")
        return build_graph(model, options)
    if options.what != "predict":
        raise ConfigError("--format deepness: maps only; leave --what out, or give predict")
    if file.dynamic == "size":
        raise ConfigError("--format deepness: its tiles have one size; give it as --size")
    graph = build_graph(model, options)
    assert isinstance(graph, PredictGraph)
    return DeepnessGraph(graph, scale=options.scale, offset=options.offset).eval()


def _checks(graph: Graph, size: int | None, dynamic: Dynamic) -> list[tuple[Tensor, ...]]:
    """Random chips that a graph is compared on; it is drawn from the first ones."""
    if dynamic != "size":
        checks = [random_images(graph, size, b, seed=b) for b in (2, 1, 5)]
        if dynamic == "batch":
            return checks
        return [tuple(t[i : i + 1] for t in c) for c in checks for i in range(c[0].shape[0])]
    steps = size_steps(graph)
    sides = {n: shape[1] for n, shape in input_shapes(graph, size).items()}
    finest = max(sides, key=lambda n: sides[n])
    cells, rest = divmod(sides[finest], steps[finest])
    if rest or cells < _LEAST:
        raise ConfigError(
            f"--size {sides[finest]}: with --dynamic size, take a multiple of {steps[finest]}, at "
            f"least {_LEAST * steps[finest]}"
        )
    # Not square, so that squares are not taken for the rule.
    columns = cells
    tall = random_images(graph, steps[finest] * (columns + 1), 2, seed=2)
    cut = tuple(
        t[..., : steps[n] * columns].contiguous()
        for n, t in zip(graph.input_names, tall, strict=True)
    )
    others = sorted({_LEAST, max(_LEAST, cells // 2), cells, 2 * cells})
    return [cut, *(random_images(graph, steps[finest] * n, 1 + n % 2, seed=n) for n in others)]


def _record(
    graph: Graph, options: GraphOptions, file: FileOptions, dynamic: Dynamic
) -> dict[str, object]:
    """What the file states of itself, so far."""
    record: dict[str, object] = {
        "software": f"multimae-eo {__version__}",
        "model_hash": file.model_hash,
        "what": options.what,
        "format": file.format,
        "batch": 1 if dynamic == "none" else "any",
        "sizes": {n: list(s[1:]) for n, s in graph.shapes(options.size).items()},
        "quantization": file.quantization or "none",
        **contract(graph),
    }
    if dynamic == "size":
        record["size_steps"] = size_steps(graph)
        record["least_steps"] = _LEAST
    if isinstance(graph, DeepnessGraph):
        (name,) = graph.input_names
        record["inputs"] = {name: {"channels": graph.channel_record(), "values": "numbers / 255"}}
        record["classes"] = list(graph.class_names)
    return record


def _artifact(out: Path, format: Format) -> Artifact:
    """The file as MLM names it."""
    if format == "torch":
        return Artifact(
            path=out,
            name=out.name,
            title="Exported program (torch.export)",
            media_type="application/zip; application=pytorch",
            artifact_type="torch.export.save",
            roles=("mlm:model", "mlm:compiled"),
        )
    import onnx

    return Artifact(
        path=out,
        name=out.name,
        title="ONNX graph" + (" for Deepness (QGIS)" if format == "deepness" else ""),
        media_type="application/octet-stream; application=onnx",
        artifact_type="torch.onnx.export",
        roles=("mlm:model", "mlm:compiled"),
        framework="ONNX",
        framework_version=str(onnx.__version__),
    )


def _described(
    graph: Graph, images: tuple[Tensor, ...], dynamic: Dynamic
) -> tuple[list[ItemInput], list[ItemOutput]]:
    """Inputs and outputs for the STAC item, with -1 where the graph leaves a dimension free."""
    with torch.no_grad():
        results = graph(*images)

    def free(tensor: Tensor) -> tuple[int, ...]:
        shape = [1 if dynamic == "none" else -1, *tensor.shape[1:]]
        if dynamic == "size" and tensor.ndim > 2:
            shape[-2:] = [-1, -1]
        return tuple(shape)

    shapes = {n: free(t) for n, t in zip(graph.input_names, images, strict=True)}
    return graph_inputs(graph, shapes), graph_outputs(graph, [free(t) for t in results])


def read_record(path: Path) -> dict[str, Any]:
    """The record that an exported file holds of itself; FormatError where there is none."""
    import zipfile

    require_regular(path, FormatError)
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                entry = next(e for e in archive.infolist() if e.filename.endswith(RECORD))
                if entry.file_size > JSON_BYTES:
                    raise FormatError(f"{path}: {RECORD} has {entry.file_size} bytes")
                record: Any = parse_json(archive.read(entry), path, FormatError)
        else:
            _require("onnx")
            import onnx

            graph = onnx.load(path, load_external_data=False)
            text = {p.key: p.value for p in graph.metadata_props}[RECORD]
            record = parse_json(text, path, FormatError)
    except ConfigError:
        raise
    except Exception as error:
        raise FormatError(f"{path}: not a graph that multimae-eo exported") from error
    return dict(record)


def _require(format: Format) -> None:
    if format == "torch":
        return
    try:
        import onnx
        import onnxruntime
        import onnxscript

        del onnx, onnxruntime, onnxscript
    except ImportError as error:
        raise ConfigError(
            f"ONNX needs {error.name}: pip install 'multimae-eo[export]', or --format torch"
        ) from error


def _drawn(graph: Graph, images: tuple[Tensor, ...], dynamic: Dynamic) -> object:
    """The graph as an exported program."""
    with torch.no_grad():
        graph(*images)  # Tables of positions are made here, once, and are constants of the graph.
        shapes = None if dynamic == "none" else {"images": _free(graph, len(images), dynamic)}
        return torch.export.export(graph, images, dynamic_shapes=shapes, strict=False)


def _free(graph: Graph, count: int, dynamic: Dynamic) -> tuple[dict[int, Any], ...]:
    """The free dimensions of each argument, by axis."""
    if dynamic != "size":
        return tuple({0: _BATCH} for _ in range(count))
    # A side of one step is another case to torch (its size 1 may broadcast).
    rows, columns = (torch.export.Dim(n, min=_LEAST, max=4096) for n in ("rows", "columns"))
    return tuple(
        {0: _BATCH, 2: step * rows, 3: step * columns}
        if step > 1
        else {0: _BATCH, 2: rows, 3: columns}
        for step in size_steps(graph).values()
    )


def _torch_bytes(program: Any, entries: Mapping[str, str]) -> Save:
    def save(record: dict[str, object]) -> bytes:
        buffer = io.BytesIO()
        torch.export.save(program, buffer, extra_files={RECORD: json.dumps(record), **entries})
        return buffer.getvalue()

    return save


def _onnx_bytes(program: Any, graph: Graph, entries: Mapping[str, str], *, fold: bool) -> Save:
    """``fold`` constants: it would turn small weights into the large ones they stand for."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        written = torch.onnx.export(
            program,
            (),
            input_names=list(graph.input_names),
            output_names=list(graph.output_names),
            opset_version=_OPSET,
            optimize=fold,
            verbose=False,
        )
    assert written is not None
    written.model.metadata_props.update(entries)
    if isinstance(graph, DeepnessGraph):
        written.model.ir_version = IR_VERSION

    def save(record: dict[str, object]) -> bytes:
        written.model.metadata_props[RECORD] = json.dumps(record)
        return bytes(written.model_proto.SerializeToString())

    return save


def _open_torch(data: bytes) -> Run:
    module = torch.export.load(io.BytesIO(data)).module()

    def run(images: Sequence[Tensor]) -> list[Tensor]:
        with torch.no_grad():
            return list(module(*images))

    return run


def _open_onnx(data: bytes) -> Run:
    import onnxruntime

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]

    def run(images: Sequence[Tensor]) -> list[Tensor]:
        given = {n: t.numpy() for n, t in zip(names, images, strict=True)}
        return [torch.from_numpy(a) for a in session.run(None, given)]

    return run


@contextmanager
def _exact_products() -> Iterator[None]:
    """Products of float32 in float32, which other packages lower for the whole process."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _difference(graph: Graph, run: Run, checks: Sequence[tuple[Tensor, ...]]) -> float:
    worst = 0.0
    with torch.no_grad(), _exact_products():
        for images in checks:
            for eager, other in zip(graph(*images), run(images), strict=True):
                size = max(1.0, float(eager.nan_to_num().abs().max()))
                apart = (eager - other).abs()
                # Pixels without data are NaN in both.
                apart = torch.where(eager.isnan() & other.isnan(), 0.0, apart)
                gap = float(apart.max()) / size
                worst = gap if not gap <= worst else worst
    return worst


def _change(full: Graph, small: Graph, checks: Sequence[tuple[Tensor, ...]]) -> dict[str, float]:
    """Root mean square change of each output, relative to the output's standard deviation."""
    changes: dict[str, list[tuple[float, float]]] = {n: [] for n in full.output_names}
    with torch.no_grad():
        for images in checks:
            pairs = zip(full.output_names, full(*images), small(*images), strict=True)
            for name, *both in pairs:
                a, b = (t.nan_to_num() for t in both)
                changes[name].append((float((a - b).square().mean()), float(a.var(correction=0))))
    return {
        n: float((sum(c[0] for c in v) / max(1e-12, sum(c[1] for c in v))) ** 0.5)
        for n, v in changes.items()
    }


def _real(
    graph: Graph, images: dict[str, Tensor], size: int | None, *, dynamic: bool
) -> list[tuple[Tensor, ...]]:
    """Real chips, cut to the graph's size; inputs that they lack are not observed."""
    shapes = input_shapes(graph, size)
    count = len(next(iter(images.values())))
    chips = {}
    for name, shape in shapes.items():
        image = images.get(name, torch.full((count, *shape), float("nan")))
        image = image[..., : shape[1], : shape[2]]
        if tuple(image.shape[1:]) != shape:
            raise ConfigError(
                f"--data: {name} has chips of {tuple(image.shape[1:])}, the graph takes {shape}; "
                "give a smaller --size"
            )
        chips[name] = image.contiguous()
    given = graph.arguments(chips)
    if dynamic:
        return [given]
    return [tuple(t[i : i + 1] for t in given) for i in range(count)]
