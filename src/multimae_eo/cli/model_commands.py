"""Subcommands of models and files: convert, export, info."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import ClassVar, Literal

from multimae_eo.cli.output import names_in, print_json
from multimae_eo.cli.parser import Subcommand, argument
from multimae_eo.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Convert:
    """Convert the reference implementation's released weights into a model folder.

    Args:
        checkpoint: the reference's .pth
        out: model folder to write
        statistics: MMEarth's *_band_stats.json
    """

    examples: ClassVar[tuple[str, ...]] = (
        "convert checkpoint-999.pth --out model --statistics band_stats.json",
    )
    checkpoint: str = argument(positional=True)
    out: str
    statistics: str | None = None

    def run(self) -> None:
        """Print the model's folder."""
        from multimae_eo.api.models import convert_checkpoint

        convert_checkpoint(self.checkpoint, out=self.out, statistics=self.statistics)
        if self.statistics is None:
            print(
                "multimae-eo: the model carries no statistics and will refuse data; "
                "convert with --statistics to use it",
                file=sys.stderr,
            )
        print(self.out)


@dataclass(frozen=True, kw_only=True)
class Export:
    """Export a graph for other runtimes: torch.export, ONNX, or QGIS with Deepness.

    Args:
        model: model folder, or owner/model
        format: file format; deepness is an ONNX file for the QGIS plug-in: all bands in one tensor
        out: file to write (.pt2, .onnx); its STAC item lies beside it (OUT.stac.json)
        what: what the graph computes (default: predict for a model with a head, else encoder)
        inputs: modalities, m1,m2 (default: all)
        outputs: modalities to reconstruct (default: all)
        levels: processing levels of inputs: rgb=l2a,ired=l2a
        size: side of a chip in pixels of the finest input
        dynamic: free dimensions of the graph: batch; size, the batch and the chip's sides, with
            positions interpolated; or none (one chip)
        quantize: data type of quantised weights
        scale: physical units per digital number of the raster given to deepness (default: as the
            training data's)
        offset: physical = digital number × scale + offset, for deepness
        data: also check on real chips of SOURCE
        json: print the file's record as JSON
    """

    examples: ClassVar[tuple[str, ...]] = (
        "export --model runs/first/model --format onnx --inputs elevation --out encoder.onnx",
        "export --model runs/map/model --format torch --quantize int8 --out map.pt2",
        "export --model runs/map/model --format deepness --inputs rgb --out map.onnx",
    )
    model: str
    format: Literal["torch", "onnx", "deepness"] = "onnx"
    out: str
    what: Literal["encoder", "predict", "reconstruct"] | None = None
    inputs: str | None = None
    outputs: str | None = None
    levels: str | None = None
    size: int | None = None
    dynamic: Literal["batch", "size", "none"] = "batch"
    quantize: Literal["int8", "bf16"] | None = None
    scale: float | None = None
    offset: float | None = None
    data: str | None = None
    json: bool = False

    def run(self) -> None:
        """Print the largest difference between the graph's output and the model's."""
        from multimae_eo.api.models import export_model

        record = export_model(
            self.model,
            out=self.out,
            format=self.format,
            what=self.what,
            inputs=names_in(self.inputs),
            outputs=names_in(self.outputs),
            levels=level_names(self.levels),
            size=self.size,
            dynamic=self.dynamic,
            quantize=self.quantize,
            scale=self.scale,
            offset=self.offset,
            data=self.data,
        )
        if self.json:
            print_json(record)
            return
        print(
            f"{self.out}: differs from the model by at most {record['max_difference']:.1e} "
            f"on {record['checked_on']}"
        )
        for name, change in record.get("quantization_change", {}).items():
            print(f"{name}: changed by the {self.quantize} weights by {change:.2%} (rms / std)")


def level_names(text: str | None) -> dict[str, str]:
    """``rgb=l2a,ired=l2a`` as levels by modality. Raises ConfigError for anything else."""
    pairs = [p.split("=") for p in names_in(text) or []]
    if any(len(p) != 2 for p in pairs):
        raise ConfigError(f"--levels: expected m1=level,m2=level, got {text!r}")
    return {p[0]: p[1] for p in pairs}


@dataclass(frozen=True, kw_only=True)
class Info:
    """Describe a store, model, run, map or other file.

    Args:
        path: a store, model or run folder; a map, embeddings, graph or dataset file
        json: print as JSON
        verify: check a store's or a run's checksums
    """

    examples: ClassVar[tuple[str, ...]] = ("info runs/first/model", "info map.tif --json")
    path: str = argument(positional=True)
    json: bool = False
    verify: bool = False

    def run(self) -> None:
        """Print the facts, a line each."""
        from multimae_eo.api.models import describe

        record = describe(self.path, verify=self.verify)
        if self.json:
            print_json(record)
            return
        for key, value in record.items():
            print(f"{key:>14}  {value}")


MODEL_COMMANDS: dict[str, type[Subcommand]] = {"convert": Convert, "export": Export, "info": Info}
