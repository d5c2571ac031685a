"""Cross entropy that holds the logits of a few targets at a time, whatever the vocabulary."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.nn import Parameter

    from lcc.engine.projecting import Projection


def chunked_loss(
    projection: Projection, states: Tensor, targets: Tensor, *, chunk: int,
    label_smoothing: float = 0.0,
) -> Tensor:  # fmt: skip
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
    found: Tensor = _Chunked.apply(*inputs)  # type: ignore[no-untyped-call]
    return found


class _Chunked(torch.autograd.Function):
    """Its inputs are what gradients go to; `loss` reads the parameters by itself."""

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, targets: Tensor, loss: Callable[[Tensor, Tensor], Tensor],
        chunk: int, *parameters: Parameter,
    ) -> Tensor:  # fmt: skip
        losses, rows, sums = [], [], list[Tensor]()
        pieces = zip(torch.split(states, chunk), torch.split(targets, chunk), strict=True)
        for some, wanted in pieces:
            with torch.enable_grad():
                some = some.detach().requires_grad_(ctx.needs_input_grad[0])
                part = loss(some, wanted)
            asked = [t for t in (some, *parameters) if t.requires_grad]
            found = list(torch.autograd.grad(part, asked))
            losses.append(part.detach())
            if some.requires_grad:
                rows.append(found.pop(0))
            sums = [a.add_(b) for a, b in zip(sums, found, strict=True)] if sums else found
        ctx.save_for_backward(*([torch.cat(rows)] if rows else []), *sums)
        return torch.stack(losses).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        found = [gradient * upstream for gradient in ctx.saved_tensors]
        rows = found.pop(0) if ctx.needs_input_grad[0] else None
        return (rows, None, None, None, *found)
