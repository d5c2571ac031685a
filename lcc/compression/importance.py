"""Importance of channels and heads, how many stay in every layer, and at which useful widths."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from lcc.core import signals
from lcc.core.errors import RecipeError
from lcc.core.lazy import torch
from lcc.training.batches import collate, micro_batches, num_tokens, require_loss
from lcc.training.loss import logits_function, summed_loss

if TYPE_CHECKING:
    from torch import Tensor

    from lcc.calibration.statistics import LayerStats
    from lcc.compression.prune_groups import PruningGroup
    from lcc.core.types import Head
    from lcc.training.batches import EncodedExample

# Widths that kernels and quantization groups like; `auto` takes the first that meets the ratio.
STEPS, NEAR = (128, 64, 32, 16, 8, 4, 2, 1), 0.02


def column_importance(criterion: Any, unit: PruningGroup, name: str, stats: LayerStats | None) -> Tensor:
    """What a consumer says of each channel or head that it reads: (num,).

    Where the criterion has no word for channels, the squared norm of a column of its scores.
    """
    member = unit.consumer(name)
    weight: Any = member.layer.weight
    weight = weight.detach()
    if hasattr(criterion, "channels"):
        columns = criterion.channels(weight, stats)
    else:
        columns = criterion.score(weight, stats).float().square().sum(dim=0)
    return member.totals(columns, 0)


def size_importance(unit: PruningGroup) -> Tensor:
    """Where no statistics are: the product of what writes a channel and what reads it, squared."""
    importance: Any = 1.0
    for member in unit.members:
        parameter, dim = member.parameters()[0]
        importance = importance * member.totals(parameter.detach().float().square(), dim)
    assert torch.is_tensor(importance), unit.name
    return importance


def combined(votes: Sequence[Tensor]) -> Tensor:
    """One importance out of several consumers', each with the same say."""
    if len(votes) == 1:
        return votes[0]
    tiny = torch.finfo(torch.float32).tiny
    return torch.stack([vote / vote.sum().clamp(min=tiny) for vote in votes]).sum(dim=0)


def globally_kept(
    importance: Mapping[str, Tensor], *, ratio: float, floor: float, standardize: bool
) -> dict[str, int]:
    """How many of each unit a ranking over all of them keeps, at least `floor` of each.

    Unless they are comparable as they are, importances count in standard deviations from their
    layer's mean, as in FLAP (arXiv 2312.11983).
    """
    if standardize:
        importance = {name: _standardized(values) for name, values in importance.items()}
    least = {name: max(1, round(floor * len(values))) for name, values in importance.items()}
    ranked = [
        (float(value), name, place >= least[name])
        for name, values in importance.items()
        for place, value in enumerate(values.sort(descending=True).values)
    ]
    wanted = round((1 - ratio) * len(ranked)) - sum(least.values())
    free = sorted((entry for entry in ranked if entry[2]), reverse=True)[: max(wanted, 0)]
    kept = dict(least)
    for _, name, _ in free:
        kept[name] += 1
    return kept


def _standardized(values: Tensor) -> Tensor:
    tiny = torch.finfo(torch.float32).tiny
    return (values - values.mean()) / values.std(correction=0).clamp(min=tiny)


def rounded(num: int, ratio: float, *, round_to: int | Literal["auto"]) -> int:
    """What stays of `num` channels: a multiple of `round_to`.

    Raises RecipeError when nothing would go.
    """
    steps = STEPS if round_to == "auto" else (round_to,)
    for step in steps:
        kept = max(1, round((1 - ratio) * num / step)) * step
        is_near = abs(1 - kept / num - ratio) <= NEAR
        if kept < num and (is_near or step == steps[-1]):
            return kept
    raise RecipeError(
        f"width: a ratio of {ratio:g} takes nothing from {num} at multiples of {steps[-1]}; ask for"
        " a larger ratio or a smaller round_to."
    )


def nearest(num: int, ratio: float, *, allowed: Sequence[int]) -> int:
    """What stays of `num` where only some sizes are `allowed`: the one nearest to the ratio.

    Of those that are near enough, the one with the largest power of two. Raises RecipeError when
    nothing would go.
    """
    smaller = [size for size in allowed if 0 < size < num]
    wanted = (1 - ratio) * num
    if not smaller or abs(num - wanted) < min(abs(size - wanted) for size in smaller):
        sizes = ", ".join(map(str, smaller[-4:])) or "nothing"
        raise RecipeError(
            f"width: a ratio of {ratio:g} takes nothing from {num}: what could stay is {sizes}; ask"
            " for a larger ratio or other dims."
        )
    near = [size for size in smaller if abs(size - wanted) <= NEAR * num]
    if near:
        return max(near, key=lambda size: (size & -size, -abs(size - wanted)))
    return min(smaller, key=lambda size: (abs(size - wanted), -size))


# What the loss would notice if a channel or head went: gradients over calibration text.


def task_losses(
    model: Any, examples: Sequence[EncodedExample], *, head: Head, pad: int, batch_tokens: int
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
    units: Sequence[PruningGroup],
    losses: Iterable[Tensor],
    score: Callable[[Tensor, Tensor], Tensor],
) -> dict[str, Tensor]:
    """`score(weight, gradient)` of each loss, summed over all parameters of a unit: name → (num,).

    `losses` are computed as they are asked for, one graph at a time.
    """
    own = [(unit, list(_distinct(unit))) for unit in units]
    parameters = {id(p): p for _, members in own for _, p, _ in members}
    totals = {unit.name: torch.zeros(unit.num, device=model.device) for unit in units}
    with _differentiable(model, list(parameters.values())):
        for loss in losses:
            signals.check("sensitivity")
            torch.autograd.backward(loss)
            for unit, members in own:
                for member, parameter, dim in members:
                    if parameter.grad is not None:
                        scores = score(parameter.detach(), parameter.grad).float()
                        totals[unit.name] += member.totals(scores, dim)
            model.zero_grad(set_to_none=True)
    return totals


def _distinct(unit: PruningGroup) -> Iterator[tuple[Any, Any, int]]:
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
