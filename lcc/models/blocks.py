"""Blocks of a model: where its repeated layers are, and the linear layers inside them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lcc.core.lazy import torch

if TYPE_CHECKING:
    from torch.nn import Linear, Module


def blocks(model: Module) -> dict[str, Module]:
    """Every block by name, in forward order: the outermost lists of one type of module.

    An encoder–decoder gives its encoder's blocks first.
    """
    by_name: dict[str, Module] = {}
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in by_name)
        if isinstance(module, torch.nn.ModuleList) and not inside and _is_stack(module):
            by_name.update({f"{name}.{i}": block for i, block in enumerate(module)})
    return by_name


def _is_stack(modules: Any) -> bool:
    kinds = {type(module) for module in modules}
    return len(kinds) == 1 and any(isinstance(m, torch.nn.Linear) for m in modules[0].modules())


def block_linears(model: Module) -> dict[str, Linear]:
    """Linear layers inside the blocks by name: neither embeddings nor heads."""
    return {
        f"{block_name}.{name}": module
        for block_name, block in blocks(model).items()
        for name, module in block.named_modules()
        if isinstance(module, torch.nn.Linear)
    }


def fused_share(model: Module) -> float:
    """The share of the blocks' parameters that no linear layer holds, but a stack of matrices.

    transformers keeps the experts of a mixture so.
    """
    inside = [p for block in blocks(model).values() for p in block.parameters()]
    stacked = sum(p.numel() for p in inside if p.dim() == 3)
    return stacked / max(1, sum(p.numel() for p in inside))


@contextmanager
def as_linear(model: Module) -> Iterator[None]:
    """GPT-2's transposed Conv1D layers stand as Linear meanwhile, and come back changed."""
    from transformers.pytorch_utils import Conv1D

    convolution: Any = Conv1D
    swapped = [name for name, m in model.named_modules() if isinstance(m, Conv1D)]
    for name in swapped:
        _replace(model, name, _linear(model.get_submodule(name)))
    try:
        yield
    finally:
        for name in swapped:
            linear: Any = model.get_submodule(name)
            with torch.device("meta"):
                conv = convolution(linear.out_features, linear.in_features)
            conv.weight = torch.nn.Parameter(linear.weight.data.T.contiguous())
            conv.bias = torch.nn.Parameter(linear.bias.data)
            _replace(model, name, conv)


def _linear(conv: Any) -> Linear:
    num_inputs, num_outputs = conv.weight.shape
    linear = torch.nn.Linear(num_inputs, num_outputs, device="meta")
    linear.weight = torch.nn.Parameter(conv.weight.data.T.contiguous())
    linear.bias = torch.nn.Parameter(conv.bias.data)
    return linear


def _replace(model: Module, name: str, module: Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)


# A model's blocks compiled by torch, one after the other.


@contextmanager
def compiled_blocks(model: Module) -> Iterator[None]:
    """While open, every block of `model` runs compiled, for any batch size and length.

    Blocks share their code, so that one is compiled for all; what lies between them stays eager.
    """
    chosen = list(blocks(model).values())
    for block in chosen:
        block.compile(dynamic=True)
    try:
        yield
    finally:
        for block in chosen:
            block._compiled_call_impl = None
