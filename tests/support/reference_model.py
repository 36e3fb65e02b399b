"""The paper's model once more, slowly and plainly, on parameters named as the reference names them.

Written from the paper and the layout of the reference's checkpoints, without the package's network:
what both compute must be equal. ``python -m tests.support.reference_model`` writes the fixture of
random parameters, inputs, masks and everything that is computed from them.
"""

from __future__ import annotations

import argparse
import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

FILE = Path(__file__).resolve().parents[1] / "fixtures/parity/six_modalities.npz"
CHANNELS = {"rgb": 3, "depth": 1, "semseg": 12, "ired": 3, "sired": 2, "ebands": 2}
"""Inputs in the reference's order; of ``semseg`` the number of classes."""
CLASS_WIDTH, HEAD_WIDTH, TABLE = 64, 64, 28
_EPS = 1e-6
# Parameters are int8 times a power of two, so that the file is small and exact.
_UNIT = 2.0**-9
_NORMS = ("norm1.weight", "norm2.weight", "_norm.weight")


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of a model: side of its images in pixels, widths and depths."""

    size: int = 24
    patch: int = 8
    width: int = 128
    depth: int = 2
    decoder_width: int = 16
    decoder_depth: int = 1
    decoder_heads: int = 8
    samples: int = 3

    @property
    def grid(self) -> int:
        """Patches along a side."""
        return self.size // self.patch


def sincos_table(width: int) -> Tensor:
    """The fixed table (1, width, 28, 28): a quarter each of sine and cosine of columns and rows."""
    quarter = width // 4
    rates = 10_000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    steps = torch.arange(TABLE, dtype=torch.float64)[:, None] * rates
    waves = torch.cat([steps.sin(), steps.cos()], dim=1).T  # (width / 2, 28)
    across = waves[:, None, :].expand(-1, TABLE, -1)
    along = waves[:, :, None].expand(-1, -1, TABLE)
    first, second = (along, across) if _ROWS_FIRST else (across, along)
    return torch.cat([first, second])[None]


_ROWS_FIRST = True


def linear(parameters: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    return x @ parameters[f"{name}.weight"].T + parameters[f"{name}.bias"]


def layer_norm(parameters: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(-1, keepdim=True)
    normal = (x - mean) / (variance + _EPS).sqrt()
    return normal * parameters[f"{name}.weight"] + parameters[f"{name}.bias"]


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Of one sample: (N, width), (M, width), (M, width) → (N, width), head by head."""
    width = q.shape[-1] // heads
    parts = []
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        weights = (q[:, part] @ k[:, part].T / math.sqrt(width)).softmax(dim=-1)
        parts.append(weights @ v[:, part])
    return torch.cat(parts, dim=-1)


def mlp(parameters: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    return linear(parameters, f"{name}.fc2", F.gelu(linear(parameters, f"{name}.fc1", x)))


def block(parameters: Mapping[str, Tensor], name: str, x: Tensor, heads: int) -> Tensor:
    q, k, v = linear(
        parameters, f"{name}.attn.qkv", layer_norm(parameters, f"{name}.norm1", x)
    ).chunk(3, dim=-1)
    x = x + linear(parameters, f"{name}.attn.proj", attention(q, k, v, heads))
    return x + mlp(parameters, f"{name}.mlp", layer_norm(parameters, f"{name}.norm2", x))


def positions(table: Tensor, grid: int, mode: str) -> Tensor:
    """A table interpolated to the grid, (grid², width)."""
    resized = F.interpolate(table, size=(grid, grid), mode=mode, align_corners=False)
    return resized[0].flatten(1).T


def embedded(parameters: Mapping[str, Tensor], name: str, image: Tensor, shape: Shape) -> Tensor:
    """An input of one sample as tokens (grid², width)."""
    prefix = f"input_adapters.{name}"
    weight = parameters[f"{prefix}.proj.weight"]
    mode = "bicubic"
    if name == "semseg":
        image, mode = parameters[f"{prefix}.class_emb.weight"][image].permute(2, 0, 1), "bilinear"
    p = weight.shape[-1]
    patches = patches_of(image, p)  # (grid², C·p·p)
    tokens = patches @ weight.flatten(1).T + parameters[f"{prefix}.proj.bias"]
    return tokens + positions(parameters[f"{prefix}.pos_emb"], shape.grid, mode)


def patches_of(image: Tensor, p: int) -> Tensor:
    """(C, H, W) → (patches, C·p·p), rows of patches from the top, channels outermost."""
    channels, height, width = image.shape
    tiles = image.reshape(channels, height // p, p, width // p, p)
    return tiles.permute(1, 3, 0, 2, 4).reshape(-1, channels * p * p)


def image_of(patches: Tensor, p: int, grid: int) -> Tensor:
    tiles = patches.reshape(grid, grid, -1, p, p)
    return tiles.permute(2, 0, 3, 1, 4).reshape(-1, grid * p, grid * p)


def encode(
    parameters: Mapping[str, Tensor], images: Mapping[str, Tensor], visible: Mapping[str, Tensor],
    shape: Shape,
) -> Tensor:  # fmt: skip
    """Of one sample: encoded visible tokens in the order of the inputs, then the global token."""
    rows = [embedded(parameters, n, images[n], shape)[visible[n]] for n in CHANNELS]
    x = torch.cat([*rows, parameters["global_tokens"][0]])
    for i in range(shape.depth):
        x = block(parameters, f"encoder.{i}", x, shape.width // HEAD_WIDTH)
    return x


def decode(
    parameters: Mapping[str, Tensor], task: str, tokens: Tensor, visible: Mapping[str, Tensor],
    shape: Shape,
) -> Tensor:  # fmt: skip
    """Of one sample: the prediction of a task as patches (grid², C·p·p)."""
    prefix, modality = f"output_adapters.{task}", task.removeprefix("norm_")
    projected = linear(parameters, f"{prefix}.proj_context", tokens)
    table_rows = positions(parameters[f"{prefix}.pos_emb"], shape.grid, "bilinear")
    context, at = [], 0
    query = parameters[f"{prefix}.mask_token"][0].expand(shape.grid**2, -1)
    for name in CHANNELS:
        kept = visible[name].nonzero()[:, 0]
        part = projected[at : at + len(kept)]
        at += len(kept)
        kind = parameters[f"{prefix}.task_embeddings.{name}"][0]
        context.append(part + kind + table_rows[kept])
        if name == modality:
            query = query.index_copy(0, kept, part) if len(kept) else query
            query = query + kind + table_rows
    memory = layer_norm(parameters, f"{prefix}.context_norm", torch.cat([*context, projected[at:]]))
    q = linear(
        parameters, f"{prefix}.decoder.q", layer_norm(parameters, f"{prefix}.query_norm", query)
    )
    k, v = linear(parameters, f"{prefix}.decoder.kv", memory).chunk(2, dim=-1)
    x = linear(parameters, f"{prefix}.decoder.proj", attention(q, k, v, shape.decoder_heads))
    x = x + mlp(parameters, f"{prefix}.mlp", layer_norm(parameters, f"{prefix}.out_norm", x))
    for i in range(shape.decoder_depth):
        x = block(parameters, f"{prefix}.decoder_transformer.{i}", x, shape.decoder_heads)
    return linear(parameters, f"{prefix}.out_proj", x)


def loss_of(task: str, patches: Tensor, image: Tensor, masked: Tensor, p: int) -> Tensor | None:
    """Of one sample: the mean error over masked pixels; None where none is masked."""
    if not masked.any():
        return None
    if task == "semseg":
        logits = patches.reshape(len(patches), 12, p * p)[masked].transpose(1, 2).reshape(-1, 12)
        ids = patches_of(image[None], p)[masked].reshape(-1)
        return F.cross_entropy(logits, ids)
    target = patches_of(image, p)
    if task.startswith("norm_"):
        mean, variance = target.mean(-1, keepdim=True), target.var(-1, keepdim=True)
        target = (target - mean) / (variance + 1e-6).sqrt()
    error = (patches - target)[masked]
    return error.abs().mean() if task == "depth" else (error**2).mean()


def computed(
    parameters: Mapping[str, Tensor], inputs: Mapping[str, Tensor], masks: Mapping[str, Tensor],
    shape: Shape,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Encoder tokens, predictions, losses and gradient norms by the fixture's names.

    ``masks``: (B, grid²) by task, 0 visible and 1 masked, as the reference has them.
    """
    trained = {
        name: value.double().requires_grad_(not name.endswith("pos_emb"))
        for name, value in parameters.items()
    }
    tasks = [*CHANNELS, "norm_rgb"]
    small = shape.patch // 4
    rows, tokens = len(masks["rgb"]), []
    losses: dict[str, list[Tensor]] = {t: [] for t in tasks}
    images: dict[str, list[Tensor]] = {t: [] for t in tasks}
    for row in range(rows):
        one = {n: inputs[n][row] if n == "semseg" else inputs[n][row].double() for n in CHANNELS}
        visible = {n: masks[n][row] == 0 for n in CHANNELS}
        encoded = encode(trained, one, visible, shape)
        tokens.append(encoded)
        for task in tasks:
            name = task.removeprefix("norm_")
            p = small if name == "semseg" else shape.patch
            patches = decode(trained, task, encoded, visible, shape)
            images[task].append(image_of(patches, p, shape.grid))
            loss = loss_of(task, patches, one[name], ~visible[name], p)
            if loss is not None:
                losses[task].append(loss)
    means = {t: torch.stack(values).mean() for t, values in losses.items()}
    total = torch.stack(list(means.values())).sum()
    total.backward()
    record = {"encoder_tokens": torch.stack(tokens), "loss/total": total}
    record |= {f"loss/{t}": v for t, v in means.items()}
    record |= {f"prediction/{t}": torch.stack(v) for t, v in images.items()}
    record |= {f"grad_norm/{n}": p.grad.norm() for n, p in trained.items() if p.grad is not None}
    return {name: value.detach().numpy() for name, value in record.items()}


# The fixture ----------------------------------------------------------------------------------


def parameter_shapes(shape: Shape) -> OrderedDict[str, tuple[int, ...]]:
    """Names and shapes of a checkpoint's parameters, without the tables of positions."""
    shapes: OrderedDict[str, tuple[int, ...]] = OrderedDict()
    shapes["global_tokens"] = (1, 1, shape.width)
    for name, count in CHANNELS.items():
        prefix, channels, p = f"input_adapters.{name}", count, shape.patch
        if name == "semseg":
            shapes[f"{prefix}.class_emb.weight"] = (count, CLASS_WIDTH)
            channels, p = CLASS_WIDTH, shape.patch // 4
        shapes[f"{prefix}.proj.weight"] = (shape.width, channels, p, p)
        shapes[f"{prefix}.proj.bias"] = (shape.width,)
    for task in (*CHANNELS, "norm_rgb"):
        prefix, width, name = f"output_adapters.{task}", shape.decoder_width, task[-3:]
        shapes[f"{prefix}.mask_token"] = (1, 1, width)
        for other in sorted(CHANNELS):
            shapes[f"{prefix}.task_embeddings.{other}"] = (1, 1, width)
        for part, out in (("decoder.q", 1), ("decoder.kv", 2), ("decoder.proj", 1)):
            _linear_shapes(shapes, f"{prefix}.{part}", width, out * width)
        for norm in ("context_norm", "query_norm", "out_norm"):
            shapes[f"{prefix}.{norm}.weight"] = shapes[f"{prefix}.{norm}.bias"] = (width,)
        _linear_shapes(shapes, f"{prefix}.mlp.fc1", width, 4 * width)
        _linear_shapes(shapes, f"{prefix}.mlp.fc2", 4 * width, width)
        for i in range(shape.decoder_depth):
            _block_shapes(shapes, f"{prefix}.decoder_transformer.{i}", width)
        channels = CHANNELS["rgb"] if name == "rgb" else CHANNELS[task]
        p = shape.patch // 4 if task == "semseg" else shape.patch
        _linear_shapes(shapes, f"{prefix}.out_proj", width, channels * p * p)
        _linear_shapes(shapes, f"{prefix}.proj_context", shape.width, width)
    for i in range(shape.depth):
        _block_shapes(shapes, f"encoder.{i}", shape.width)
    return shapes


def _linear_shapes(shapes: dict[str, tuple[int, ...]], name: str, width: int, out: int) -> None:
    shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (out, width), (out,)


def _block_shapes(shapes: dict[str, tuple[int, ...]], name: str, width: int) -> None:
    for norm in ("norm1", "norm2"):
        shapes[f"{name}.{norm}.weight"] = shapes[f"{name}.{norm}.bias"] = (width,)
    _linear_shapes(shapes, f"{name}.attn.qkv", width, 3 * width)
    _linear_shapes(shapes, f"{name}.attn.proj", width, width)
    _linear_shapes(shapes, f"{name}.mlp.fc1", width, 4 * width)
    _linear_shapes(shapes, f"{name}.mlp.fc2", 4 * width, width)


def parameters_of(stored: Mapping[str, np.ndarray], shape: Shape) -> OrderedDict[str, Tensor]:
    """A checkpoint's parameters from the fixture's integers, with the tables of positions."""
    parameters: OrderedDict[str, Tensor] = OrderedDict()
    for name in parameter_shapes(shape):
        value = torch.from_numpy(stored[f"parameter/{name}"].astype(np.float32)) * _UNIT
        parameters[name] = value + 1 if name.endswith(_NORMS) else value
    for prefix in (*(f"input_adapters.{n}" for n in CHANNELS),
                   *(f"output_adapters.{t}" for t in (*CHANNELS, "norm_rgb"))):  # fmt: skip
        width = shape.width if prefix.startswith("input") else shape.decoder_width
        parameters[f"{prefix}.pos_emb"] = sincos_table(width).float()
    return parameters


def make_fixture(shape: Shape, seed: int = 0) -> dict[str, np.ndarray]:
    """Random parameters, inputs and masks by ``seed``, and what the model computes from them."""
    rng = np.random.default_rng(seed)
    record: dict[str, np.ndarray] = {}
    for name, size in parameter_shapes(shape).items():
        std = 12 if "norm" in name else 22
        record[f"parameter/{name}"] = (
            rng.normal(0, std, size).round().clip(-127, 127).astype(np.int8)
        )
    grid, side = shape.grid, shape.grid * shape.patch // 4
    for name, channels in CHANNELS.items():
        if name == "semseg":
            record[f"input/{name}"] = rng.integers(0, channels, (shape.samples, side, side))
        else:
            values = rng.normal(0, 1, (shape.samples, channels, shape.size, shape.size))
            record[f"input/{name}"] = values.astype(np.float16).astype(np.float32)
    masks = np.ones((shape.samples, len(CHANNELS) * grid**2), dtype=np.uint8)
    for row in masks:
        row[rng.choice(len(row), grid**2, replace=False)] = 0
    for i, name in enumerate(CHANNELS):
        record[f"mask/{name}"] = masks[:, i * grid**2 : (i + 1) * grid**2]
    record["mask/norm_rgb"] = record["mask/rgb"]
    record["ids_keep"] = np.stack([np.flatnonzero(row == 0) for row in masks])
    outputs = computed(
        parameters_of(record, shape),
        {n: torch.from_numpy(record[f"input/{n}"]) for n in CHANNELS},
        {n: torch.from_numpy(record[f"mask/{n}"]) for n in CHANNELS},
        shape,
    )
    return record | {n: v if v.ndim == 0 else v.astype(np.float32) for n, v in outputs.items()}


def write_checkpoint(path: Path, file: Path = FILE, shape: Shape | None = None) -> None:
    """A ``.pth`` as the reference writes it, from the fixture."""
    shape = shape or Shape()
    with np.load(file, allow_pickle=False) as stored:
        parameters = parameters_of(stored, shape)
    names = "-".join(CHANNELS)
    arguments = argparse.Namespace(
        model="pretrain_multimae_tiny", in_domains=names, out_domains=names, input_size=shape.size,
        patch_size=shape.patch, num_encoded_tokens=shape.grid**2, num_global_tokens=1,
        decoder_dim=shape.decoder_width, decoder_depth=shape.decoder_depth,
        decoder_num_heads=shape.decoder_heads, extra_norm_pix_loss=True, alphas=1.0, epochs=1000,
    )  # fmt: skip
    torch.save(
        {"model": parameters, "optimizer": {}, "epoch": 999, "scaler": {}, "args": arguments,
         "loss_balancer": OrderedDict()},
        path,
    )  # fmt: skip


if __name__ == "__main__":
    FILE.parent.mkdir(parents=True, exist_ok=True)
    made = make_fixture(Shape())
    # Inputs are float16 in value, and stored so.
    stored: dict[str, np.ndarray] = {
        name: values.astype(np.float16)
        if name.startswith("input/") and values.dtype == np.float32
        else values
        for name, values in made.items()
    }
    np.savez_compressed(FILE, allow_pickle=False, **stored)
