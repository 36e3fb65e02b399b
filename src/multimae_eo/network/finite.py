"""Numbers that are NaN or infinite: the weight or the layer of a network that they come from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress

import torch
from torch import Tensor, nn

from multimae_eo.errors import ContractError


def non_finite_weight(network: nn.Module) -> tuple[str, Tensor] | None:
    """The first parameter or buffer, by name, with a number that is NaN or infinite."""
    for named in (network.named_parameters(), network.named_buffers()):
        for name, tensor in named:
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                return name, tensor
    return None


def require_finite_output(
    network: nn.Module, name: str, values: Tensor, where: str, repeat: Callable[[], object]
) -> None:
    """ContractError where an output holds NaN or infinite numbers; it names their origin.

    ``name``, ``where``: of the output, and of the chip or window. ``repeat``: computes the output
    again, to observe which layer is the first to give such numbers; called after a failure only.
    """
    if not values.is_floating_point():
        return
    # A sum is several times as fast as a test of each, and only finite where each is.
    if bool(torch.isfinite(values.sum())) or bool(torch.isfinite(values).all()):
        return
    weight = non_finite_weight(network)
    if weight is not None:
        origin = f"the weight {weight[0]} is; take another model, or train it again"
    else:
        layer = _first_layer(network, repeat)
        origin = f"layer {layer or 'unknown'} is the first; compute with --precision 32-true"
    count = int((~torch.isfinite(values)).sum())
    raise ContractError(
        f"{where}: {name}: {count} of {values.numel()} numbers are NaN or infinite: {origin}"
    )


def _first_layer(network: nn.Module, repeat: Callable[[], object]) -> str:
    """The module whose output is the first not to be finite; "" where all are."""
    first: list[str] = []

    def observe(name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(_: nn.Module, __: object, output: object) -> None:
            if not first and any(not bool(torch.isfinite(t).all()) for t in _tensors(output)):
                first.append(name)

        return hook

    handles = [m.register_forward_hook(observe(n)) for n, m in network.named_modules() if n]
    try:
        with torch.no_grad(), suppress(Exception):
            repeat()
    finally:
        for handle in handles:
            handle.remove()
    return first[0] if first else ""


def _tensors(output: object) -> Iterator[Tensor]:
    if isinstance(output, Tensor) and output.is_floating_point():
        yield output
    elif isinstance(output, tuple | list):
        for part in output:
            yield from _tensors(part)
