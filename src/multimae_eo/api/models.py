"""Models and files: ``convert_checkpoint``, ``export_model`` and ``describe``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multimae_eo.api.loading import load_source
from multimae_eo.errors import ConfigError

if TYPE_CHECKING:
    from multimae_eo.network.multimae import MultiMAE
    from multimae_eo.network.predictor import Predictor
    from multimae_eo.sources.base import Source

_CHECKED_CHIPS = 8


def convert_checkpoint(
    checkpoint: str | Path, *, out: str | Path, statistics: str | Path | None = None
) -> MultiMAE:
    """Convert the reference implementation's released weights into a model folder.

    Args:
        checkpoint: The reference's ``.pth``.
        out: Model folder to write.
        statistics: MMEarth's ``*_band_stats.json``; a model without statistics refuses data.

    Returns:
        The model, also written to ``out``.

    Raises:
        CheckpointError: not a checkpoint of the reference. OutputError: ``out`` cannot be written.
    """
    from multimae_eo.convert.reference import convert

    model = convert(Path(checkpoint), statistics=None if statistics is None else Path(statistics))
    model.save_pretrained(out)
    return model


def export_model(
    model: MultiMAE | Predictor | str | Path,
    *,
    out: str | Path,
    format: str = "onnx",
    what: str | None = None,
    inputs: Sequence[str] | None = None,
    outputs: Sequence[str] | None = None,
    levels: Mapping[str, str] | None = None,
    size: int | None = None,
    dynamic: str = "batch",
    quantize: str | None = None,
    scale: float | None = None,
    offset: float | None = None,
    data: Source | str | Path | None = None,
) -> dict[str, Any]:
    """Export a model as a graph for other runtimes, checked against the model.

    Beside the file, ``<out>.stac.json`` describes it as a STAC item (MLM extension).

    Args:
        model: A model, its folder, or ``owner/model`` on the Hub.
        out: File to write (``.pt2``, ``.onnx``).
        format: torch (torch.export), onnx, or deepness: an ONNX file for the QGIS plug-in, which
            takes all bands of a raster in one tensor and returns a map.
        what: encoder, predict or reconstruct (default: predict for a model with a head, else
            encoder).
        inputs: Modalities (default: all); each is float32 (B, C, H, W) in physical units.
        outputs: Modalities to reconstruct (default: all).
        levels: Processing levels by input, such as ``{"rgb": "l2a"}``.
        size: Side of a chip in pixels of the finest input (default: that of training).
        dynamic: batch for a free batch size, size for that and any chip size (positions are
            interpolated), or none for one chip.
        quantize: int8 or bf16 for the stored weights.
        scale: For deepness, physical units per digital number of the raster (default: as the
            training data's).
        offset: For deepness, the physical value of the digital number 0.
        data: A source whose first chips are checked, too.

    Returns:
        The file's record: ``max_difference``, ``checked_on``, inputs and outputs with their shapes.

    Raises:
        ConfigError: options that do not fit the model or each other. OutputError: ``out`` cannot
        be written.
    """
    from multimae_eo.export.files import FileOptions
    from multimae_eo.export.files import export_model as run
    from multimae_eo.export.graphs import GraphOptions
    from multimae_eo.model_folder.folder import load_either, model_hash
    from multimae_eo.network.predictor import Predictor

    digest = ""
    if isinstance(model, (str, Path)):
        name, model = model, load_either(model)
        digest = model_hash(name)
    is_map = isinstance(model, Predictor) or format == "deepness"
    options = GraphOptions(
        what=what or ("predict" if is_map else "encoder"),  # type: ignore[arg-type]
        inputs=None if inputs is None else tuple(inputs),
        outputs=None if outputs is None else tuple(outputs),
        levels=dict(levels or {}),
        size=size,
        scale=scale,
        offset=offset,
    )
    file = FileOptions(
        format=format,  # type: ignore[arg-type]
        dynamic=dynamic,  # type: ignore[arg-type]
        quantization=quantize,  # type: ignore[arg-type]
        model_hash=digest,
    )
    images = None if data is None else _physical_chips(data, model)
    return run(model, Path(out), options, file, images=images)


def _physical_chips(data: Source | str | Path, model: MultiMAE | Predictor) -> dict[str, Any]:
    """The first chips of a source by input, float32 (B, C, H, W) in physical units."""
    from multimae_eo.inference.backbone import physical_tensors
    from multimae_eo.network.predictor import Predictor

    source, spec = load_source(data)
    modalities = (model.encoder if isinstance(model, Predictor) else model).modalities
    names = [n for n in source.modalities if n in modalities]
    if not names:
        raise ConfigError(f"--data {spec}: has none of the inputs {', '.join(modalities)}")
    return physical_tensors(source.batch(source.keys[:_CHECKED_CHIPS], names))


def describe(path: str | Path, *, verify: bool = False) -> dict[str, Any]:
    """Describe a store, model or run folder, or a file: the subcommand ``info``.

    Args:
        path: A store, model or run folder; a map, embeddings, graph or dataset file.
        verify: Also check every checksum of a store, or of a run's checkpoints.

    Returns:
        Facts by name, ready for JSON.

    Raises:
        ConfigError: none of these. FormatError: a store's files were changed, or a damaged file.
        CheckpointError: damaged checkpoints.
    """
    from multimae_eo.info.paths import describe as run

    return run(Path(path), verify=verify)
