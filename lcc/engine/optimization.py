"""From gradients to changed weights: parameter groups, schedules, what clipping promises."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from lcc.core.lazy import torch, transformers

if TYPE_CHECKING:
    from torch.nn import Module, Parameter
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

ScheduleName = Literal["cosine", "linear", "constant"]
_SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}
# Where families keep a probability that they hand to a function, not to a module.
DROPOUTS = ("dropout", "attention_dropout", "activation_dropout", "dropout_prob", "dropout_rate")


@dataclass(frozen=True)
class ClipResult:
    """What clipping found: the gradient norm before it, and whether it changed anything."""

    norm_before: float
    clipped: bool


class Clip(Protocol):
    """A card of the shelf `clipping`; changes gradients in place."""

    @property
    def threshold(self) -> float | None: ...

    def apply(self, parameters: Sequence[Parameter]) -> ClipResult: ...


class OptimizerCard(Protocol):
    """A card of the shelf `optimizers`."""

    def build(self, groups: list[dict[str, Any]], lr: float) -> Optimizer: ...


def gradient_norm(parameters: Iterable[Parameter]) -> float:
    """The 2-norm over all gradients, infinite or NaN where one of them is."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    return float(torch.nn.utils.get_total_norm(gradients)) if gradients else 0.0


def parameter_groups(model: Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters; norms, biases and other vectors are not decayed."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def schedule_of(
    name: ScheduleName, optimizer: Optimizer, *, num_steps: int, warmup_ratio: float
) -> LRScheduler:
    """Linear warm-up over a share of the steps, then down to zero (or level)."""
    warmup = math.ceil(num_steps * warmup_ratio)
    scheduler: LRScheduler = transformers.get_scheduler(
        _SCHEDULES[name], optimizer, num_warmup_steps=warmup, num_training_steps=num_steps
    )
    return scheduler


def set_dropout(model: Module, probability: float) -> None:
    """Every dropout of `model`, attention's included, to `probability`, in place."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = probability
        for name in DROPOUTS:
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, probability)
