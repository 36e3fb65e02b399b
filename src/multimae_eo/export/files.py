"""Draw the graph, compare it with eager, and write it: a ``.pt2`` archive or an ONNX file.

The graph's batch may be of any length; its chips have one size, because positions of tokens are
relative to the chip and become constants of the graph.
"""

from __future__ import annotations

import copy
import io
import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from multimae_eo.errors import ConfigError, FormatError, OutputError
from multimae_eo.export.graphs import (
    Graph,
    GraphOptions,
    build_graph,
    contract,
    input_shapes,
    random_images,
)
from multimae_eo.export.quantize import Quantization, quantize
from multimae_eo.files import (
    JSON_BYTES,
    parse_json,
    require_regular,
    single_writer,
    write_file,
)
from multimae_eo.network.multimae import MultiMAE
from multimae_eo.network.predictor import Predictor
from multimae_eo.version import __version__

Format = Literal["torch", "onnx"]
TOLERANCE = 1e-4
"""Largest difference from eager, relative to the largest magnitude (at least 1) of an output."""
RECORD = "multimae_eo.json"
_OPSET = 18

Run = Callable[[Sequence[Tensor]], list[Tensor]]
Save = Callable[[dict[str, object]], bytes]


@dataclass(frozen=True, kw_only=True)
class FileOptions:
    """How a graph is written.

    ``dynamic``: the batch's length is free (otherwise one chip at a time). ``quantization``: of
    the weights of linear layers. ``model_hash``: of the folder, for the file's record.
    """

    format: Format = "onnx"
    dynamic: bool = True
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

    images: real chips by input, physical units (B, C, H, W), of the graph's size. Raises
    OutputError, and writes nothing, where the graph's outputs differ from the model's.
    """
    _require(file_options.format)
    graph = build_graph(model, graph_options)
    checks = [random_images(graph, graph_options.size, b, seed=b) for b in (2, 1, 5)]
    if not file_options.dynamic:
        checks = [tuple(t[i : i + 1] for t in c) for c in checks for i in range(c[0].shape[0])]
    if images is not None:
        checks += _real(graph, images, graph_options.size, dynamic=file_options.dynamic)
    record: dict[str, object] = {
        "software": f"multimae-eo {__version__}",
        "model_hash": file_options.model_hash,
        "what": graph_options.what,
        "format": file_options.format,
        "batch": "any" if file_options.dynamic else 1,
        "sizes": {n: list(s[1:]) for n, s in input_shapes(graph, graph_options.size).items()},
        "quantization": file_options.quantization or "none",
        **contract(graph),
    }
    if file_options.quantization is not None:
        full, graph = graph, copy.deepcopy(graph)
        quantize(graph, file_options.quantization)
        record["quantization_change"] = _change(full, graph, checks)
    program = _drawn(graph, checks[0], dynamic=file_options.dynamic)
    # In memory: torch's own writer aborts the process where the disk is full.
    if file_options.format == "onnx":
        save = _onnx_bytes(program, graph, fold=file_options.quantization is None)
        opened = _open_onnx
    else:
        save, opened = _torch_bytes(program), _open_torch
    record["max_difference"] = difference = _difference(graph, opened(save(record)), checks)
    record["checked_on"] = f"{sum(c[0].shape[0] for c in checks)} chips"
    if not difference <= TOLERANCE:
        raise OutputError(
            f"{out}: the graph differs from the model by {difference:.2g} "
            f"(allowed {TOLERANCE:g}); nothing was written"
        )
    write_file(out, save(record))
    return record


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
    if format != "onnx":
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


def _drawn(graph: Graph, images: tuple[Tensor, ...], *, dynamic: bool) -> object:
    """The graph as an exported program."""
    with torch.no_grad():
        graph(*images)  # Tables of positions are made here, once, and are constants of the graph.
        shapes = None
        if dynamic:
            length = torch.export.Dim("batch", min=1, max=65536)
            shapes = {"images": tuple({0: length} for _ in images)}
        return torch.export.export(graph, images, dynamic_shapes=shapes, strict=False)


def _torch_bytes(program: Any) -> Save:
    def save(record: dict[str, object]) -> bytes:
        buffer = io.BytesIO()
        torch.export.save(program, buffer, extra_files={RECORD: json.dumps(record)})
        return buffer.getvalue()

    return save


def _onnx_bytes(program: Any, graph: Graph, *, fold: bool) -> Save:
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


def _difference(graph: Graph, run: Run, checks: Sequence[tuple[Tensor, ...]]) -> float:
    worst = 0.0
    with torch.no_grad():
        for images in checks:
            for eager, other in zip(graph(*images), run(images), strict=True):
                size = max(1.0, float(eager.abs().max()))
                gap = float((eager - other).abs().max()) / size
                worst = gap if not gap <= worst else worst
    return worst


def _change(full: Graph, small: Graph, checks: Sequence[tuple[Tensor, ...]]) -> dict[str, float]:
    """Root mean square change of each output, relative to the output's standard deviation."""
    changes: dict[str, list[tuple[float, float]]] = {n: [] for n in full.output_names}
    with torch.no_grad():
        for images in checks:
            pairs = zip(full.output_names, full(*images), small(*images), strict=True)
            for name, a, b in pairs:
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
    given = []
    for name, shape in shapes.items():
        image = images.get(name, torch.full((count, *shape), float("nan")))
        image = image[..., : shape[1], : shape[2]]
        if tuple(image.shape[1:]) != shape:
            raise ConfigError(
                f"--data: {name} has chips of {tuple(image.shape[1:])}, the graph takes {shape}; "
                "give a smaller --size"
            )
        given.append(image.contiguous())
    if dynamic:
        return [tuple(given)]
    return [tuple(t[i : i + 1] for t in given) for i in range(count)]
