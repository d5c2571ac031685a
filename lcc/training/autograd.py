"""Autograd functions for training: fused LoRA layers, and cross entropy in chunks with its gradients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.nn import Module, Parameter

    from lcc.training.loss import Projection


@contextmanager
def fused_adapters(model: Module) -> Iterator[int]:
    """While open, plain LoRA layers of `model` run fused; gives how many.

    peft's own forward writes the low-rank part, its product with the scale and the sum as three
    tensors as large as the layer's output. Layers with dropout, a variant (DoRA), a quantized or a
    sparse base keep their own.
    """
    chosen = [module for module in model.modules() if _is_plain(module)]
    for layer in chosen:
        layer.forward = partial(_forward, layer)
    try:
        yield len(chosen)
    finally:
        for layer in chosen:
            del layer.forward


def _is_plain(layer: Any) -> bool:
    base = getattr(layer, "base_layer", None)
    if type(base) is not torch.nn.Linear or not hasattr(layer, "lora_A"):
        return False
    names = list(layer.lora_A)
    if len(names) != 1 or layer.active_adapters != names or layer.merged:
        return False
    (name,) = names
    down, up = layer.lora_A[name], layer.lora_B[name]
    is_linear = type(down) is torch.nn.Linear and type(up) is torch.nn.Linear and up.bias is None
    if not is_linear or base.weight.requires_grad or base.weight.dtype != down.weight.dtype:
        return False
    has_own = "forward" in vars(layer) or bool(layer.lora_variant)
    is_quiet = isinstance(layer.lora_dropout[name], torch.nn.Identity)
    return is_quiet and not has_own


def _forward(layer: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    base = layer.base_layer
    is_mixed = x.dtype != base.weight.dtype or torch.is_autocast_enabled(x.device.type)
    if is_mixed or layer.disable_adapters or args or kwargs:
        outputs: Tensor = type(layer).forward(layer, x, *args, **kwargs)
        return outputs
    (name,) = layer.active_adapters
    down, up, scale = layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name]
    inputs = (x, base.weight, base.bias, down, up, scale)
    fused: Tensor = _LowRankLinear.apply(*inputs)  # type: ignore[no-untyped-call]
    return fused


class _LowRankLinear(torch.autograd.Function):
    """x (…, in), W (out, in), A (rank, in), B (out, rank); W and its bias are frozen."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scale: float
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        low = rows @ down.T
        out = torch.nn.functional.linear(rows, weight, bias)
        out.addmm_(low, up.T, alpha=scale)
        ctx.save_for_backward(rows, weight, down, up, low)
        ctx.scale = scale
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, down, up, low = ctx.saved_tensors
        flat = upstream.reshape(-1, upstream.shape[-1])
        lower = (flat @ up).mul_(ctx.scale)  # (tokens, rank)
        to_x = None
        if ctx.needs_input_grad[0]:
            to_x = torch.mm(flat, weight).addmm_(lower, down)
            to_x = to_x.view(*upstream.shape[:-1], -1)
        return to_x, None, None, lower.T @ rows, (flat.T @ low).mul_(ctx.scale), None


# Cross entropy that holds the logits of a few targets at a time, whatever the vocabulary.


def chunked_loss(
    projection: Projection, states: Tensor, targets: Tensor, *, chunk: int, label_smoothing: float = 0.0
) -> Tensor:
    """Cross entropy of `projection.output(states)`, summed over targets, `chunk` of them at a time.

    Gradients are made in the forward, chunk by chunk, so that no chunk's logits are computed twice
    or kept for the backward. States are (num_targets, width), targets (num_targets,).
    """

    def loss(some_states: Tensor, some_targets: Tensor) -> Tensor:
        logits = projection.output(some_states)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        return torch.nn.functional.cross_entropy(
            logits, some_targets, reduction="sum", label_smoothing=label_smoothing
        )

    if not torch.is_grad_enabled():
        pieces = zip(torch.split(states, chunk), torch.split(targets, chunk), strict=True)
        return torch.stack([loss(*piece) for piece in pieces]).sum()
    inputs = (states, targets, loss, chunk, *projection.trained)
    summed: Tensor = _Chunked.apply(*inputs)  # type: ignore[no-untyped-call]
    return summed


class _Chunked(torch.autograd.Function):
    """Its inputs are what gradients go to; `loss` reads the parameters by itself."""

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        targets: Tensor,
        loss: Callable[[Tensor, Tensor], Tensor],
        chunk: int,
        *parameters: Parameter,
    ) -> Tensor:
        losses, rows, sums = [], [], list[Tensor]()
        pieces = zip(torch.split(states, chunk), torch.split(targets, chunk), strict=True)
        for some, wanted in pieces:
            with torch.enable_grad():
                some = some.detach().requires_grad_(ctx.needs_input_grad[0])
                part = loss(some, wanted)
            asked = [t for t in (some, *parameters) if t.requires_grad]
            gradients = list(torch.autograd.grad(part, asked))
            losses.append(part.detach())
            if some.requires_grad:
                rows.append(gradients.pop(0))
            sums = [a.add_(b) for a, b in zip(sums, gradients, strict=True)] if sums else gradients
        ctx.save_for_backward(*([torch.cat(rows)] if rows else []), *sums)
        return torch.stack(losses).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        gradients = [gradient * upstream for gradient in ctx.saved_tensors]
        rows = gradients.pop(0) if ctx.needs_input_grad[0] else None
        return (rows, None, None, None, *gradients)
