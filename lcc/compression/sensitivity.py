"""What the loss would notice if a channel or head went: gradients over calibration text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lcc.core import preemption
from lcc.core.lazy import torch
from lcc.engine.batching import micro_batches
from lcc.engine.objectives import (
    collate,
    num_tokens,
    require_loss,
    summed_loss,
)
from lcc.engine.projecting import logits_function

if TYPE_CHECKING:
    from torch import Tensor

    from lcc.compression.units import Unit
    from lcc.engine.batching import Example
    from lcc.parts.checkpoint import Head


def task_losses(
    model: Any, examples: Sequence[Example], *, head: Head, pad: int, batch_tokens: int
) -> Iterator[Tensor]:
    """The summed loss of each batch of `examples`, with its graph."""
    require_loss(head)
    logits_of = logits_function(model, head)
    lengths = [num_tokens(example, head) for example in examples]
    order = range(len(examples))
    for piece in micro_batches(order, lengths, micro_tokens=batch_tokens):
        batch = collate([examples[i] for i in piece], head=head, pad=pad, device=str(model.device))
        yield summed_loss(logits_of(batch), batch.targets)


def sensitivities(
    model: Any,
    units: Sequence[Unit],
    losses: Iterable[Tensor],
    score: Callable[[Tensor, Tensor], Tensor],
) -> dict[str, Tensor]:
    """`score(weight, gradient)` of each loss, summed over all parameters of a unit: name → (num,).

    `losses` are computed as they are asked for, one graph at a time.
    """
    own = [(unit, list(_distinct(unit))) for unit in units]
    parameters = {id(p): p for _, found in own for _, p, _ in found}
    totals = {unit.name: torch.zeros(unit.num, device=model.device) for unit in units}
    with _differentiable(model, list(parameters.values())):
        for loss in losses:
            preemption.check("sensitivity")
            torch.autograd.backward(loss)
            for unit, found in own:
                for member, parameter, dim in found:
                    if parameter.grad is not None:
                        scores = score(parameter.detach(), parameter.grad).float()
                        totals[unit.name] += member.totals(scores, dim)
            model.zero_grad(set_to_none=True)
    return totals


def _distinct(unit: Unit) -> Iterator[tuple[Any, Any, int]]:
    """Every parameter of the unit once: a tied one has one gradient."""
    seen = set()
    for member in unit.members:
        for parameter, dim in member.parameters():
            if (id(parameter), dim) not in seen:
                seen.add((id(parameter), dim))
                yield member, parameter, dim


@contextmanager
def _differentiable(model: Any, parameters: list[Any]) -> Iterator[None]:
    """While open, just these parameters want gradients, and nothing is dropped out."""
    before, was_training = [(p, p.requires_grad) for p in model.parameters()], model.training
    model.eval()
    model.requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        with torch.enable_grad():
            yield
    finally:
        for parameter, wanted in before:
            parameter.requires_grad_(wanted)
        model.train(was_training)
