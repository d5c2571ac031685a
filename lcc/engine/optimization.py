"""From gradients to changed weights: what clipping and optimizers promise, groups, schedules."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from lcc.core.lazy import torch, transformers

if TYPE_CHECKING:
    from torch.nn import Module, Parameter
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

ScheduleName = Literal["cosine", "linear", "constant"]
# What an optimizer keeps of each parameter, Adam's two moments, unless its card has `state_bytes`.
OPTIMIZER_BYTES = 8
# Where families keep a probability that they hand to a function, not to a module.
DROPOUTS = ("dropout", "attention_dropout", "activation_dropout", "dropout_prob", "dropout_rate")


@dataclass(frozen=True)
class ClipResult:
    """What clipping found in one step and what it did.

    `norm_before` is the 2-norm over all gradients, `threshold` the bound in force at this step, and
    `clipped_share` the share that exceeded it of what the card `clips`.
    """

    norm_before: float
    threshold: float | None
    clipped_share: float


class Clip(Protocol):
    """A card of the shelf `clipping`."""

    @property
    def clips(self) -> str:
        """What its share counts: steps, layers, units or elements."""
        ...

    @property
    def window(self) -> int:
        """How many earlier norms it reads; the loop keeps them, and resuming restores them."""
        ...

    def apply(self, parameters: Mapping[str, Parameter], past_norms: Sequence[float]) -> ClipResult:
        """Clip the gradients of the trainable parameters in place; norms are the newest last."""
        ...


class OptimizerCard(Protocol):
    """A card of the shelf `optimizers`.

    Where a recipe sets no `lr`, `default_lr` counts before the method's, which is meant for AdamW.
    """

    @property
    def default_lr(self) -> float | None: ...

    def build(self, groups: list[dict[str, Any]], lr: float) -> Optimizer: ...


def is_fusible(groups: list[dict[str, Any]]) -> bool:
    """Whether torch has one kernel for a whole step on the devices of `groups`."""
    return {p.device.type for group in groups for p in group["params"]} <= {"cpu", "cuda"}


def parameter_groups(model: Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters; norms, biases and other vectors are not decayed.

    `is_hidden` marks the matrices between embeddings and head.
    """
    outer = _outer_parameters(model)
    kinds: dict[tuple[float, bool], list[Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            is_hidden = parameter.ndim == 2 and id(parameter) not in outer
            decay = weight_decay if parameter.ndim >= 2 else 0.0
            kinds.setdefault((decay, is_hidden), []).append(parameter)
    return [{"params": params, "weight_decay": decay, "is_hidden": is_hidden}
            for (decay, is_hidden), params in kinds.items()]  # fmt: skip


def _outer_parameters(model: Any) -> set[int]:
    """The identities of what belongs to embeddings (of tokens, positions, biases) or to a head."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    body = getattr(inner, "base_model", inner)
    outer = [m for m in model.modules() if isinstance(m, torch.nn.Embedding)]
    if body is not inner:
        outer += [child for child in inner.children() if child is not body]
    head = inner.get_output_embeddings() if hasattr(inner, "get_output_embeddings") else None
    outer += [head] if head is not None else []
    return {id(parameter) for module in outer for parameter in module.parameters()}


def with_own_rates(
    groups: list[dict[str, Any]], model: Module, *, lr: float, ratios: Mapping[str, float]
) -> list[dict[str, Any]]:
    """The groups, cut where parameters learn at another share of `lr` (LoRA+; Hayou et al., 2024).

    `ratios` gives the share by a part of the parameter's name.
    """
    own = {id(p): ratio for n, p in model.named_parameters()
           for part, ratio in ratios.items() if part in n and ratio != 1}  # fmt: skip
    if not own:
        return groups
    cut = []
    for group in groups:
        for ratio in sorted({own.get(id(p), 1.0) for p in group["params"]}):
            chosen = [p for p in group["params"] if own.get(id(p), 1.0) == ratio]
            cut.append({**group, "params": chosen, "lr": lr * ratio})
    return cut


def schedule_of(
    name: ScheduleName, optimizer: Optimizer, *, num_steps: int, warmup_ratio: float
) -> LRScheduler:
    """Linear warm-up over a share of the steps, then towards zero (or level).

    Step 1 of w has the rate lr / w, step w the whole one, and no step has none: transformers'
    schedules begin and end with a step at zero, so theirs is entered one step late and is one
    step longer.
    """
    warmup = max(1, math.ceil(num_steps * warmup_ratio))
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    made: LRScheduler
    if name == "constant":
        made = transformers.get_constant_schedule_with_warmup(optimizer, warmup, last_epoch=0)
    else:
        schedule = (
            transformers.get_cosine_schedule_with_warmup if name == "cosine"
            else transformers.get_linear_schedule_with_warmup
        )  # fmt: skip
        made = schedule(optimizer, warmup, num_steps + 1, last_epoch=0)
    return made


def set_dropout(model: Module, probability: float) -> None:
    """Every dropout of `model`, attention's included, to `probability`, in place."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = probability
        for name in DROPOUTS:
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, probability)


def checkpoint_blocks(model: Any) -> None:
    """Have `model` compute what its blocks keep for the backward anew, in place."""
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    # transformers makes embeddings want a gradient, for re-entrant checkpoints; with these it
    # would only send the backward of an adapter through the frozen blocks below it.
    model.disable_input_require_grads()
