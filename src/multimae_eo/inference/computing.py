"""Where and how precisely a model is run for inference."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn

from multimae_eo.errors import ConfigError
from multimae_eo.runtime import resolve_device, resolve_precision

_HALF = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def on_device(model: nn.Module, device: str, precision: str) -> tuple[str, str]:
    """Move a model to a device; returns the device and the precision that ``auto`` stands for.

    Raises ConfigError for a device that this machine does not have, or an unknown precision.
    """
    resolved = resolve_device(device)
    chosen = resolve_precision(precision, resolved)
    model.to(resolved).eval()
    return resolved, chosen


def device_of(model: nn.Module) -> torch.device:
    """The device of a model's weights; the CPU for a model without weights."""
    parameter = next(model.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


def autocast(device: str, precision: str) -> AbstractContextManager[object]:
    """Autocast on a device to the half precision of ``precision``; nothing for 32-true."""
    dtype = _HALF.get(precision)
    if dtype is None:
        return nullcontext()
    return torch.autocast(device.split(":", maxsplit=1)[0], dtype)


@contextmanager
def computing(device: str, precision: str) -> Iterator[None]:
    """Inference in a precision: 32-true, or bf16-mixed or 16-mixed by autocast.

    Raises ConfigError for 16-mixed on the CPU, which lacks most of its operations.
    """
    if precision == "16-mixed" and device.split(":", maxsplit=1)[0] == "cpu":
        raise ConfigError("precision 16-mixed needs an accelerator; use bf16-mixed or 32-true")
    with autocast(device, precision):
        yield
