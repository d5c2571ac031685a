"""Adam (Kingma and Ba, 2015), and AdamW with decoupled weight decay (Loshchilov and Hutter, 2019)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from lcc.config.cards import card
from lcc.core.lazy import torch
from lcc.training.optim import is_fusible

if TYPE_CHECKING:
    from torch.optim import Optimizer


@card
class AdamW:
    """torch's AdamW in its fused form where the device has one."""

    word: ClassVar[str] = "adamw"
    revision: ClassVar[int] = 1
    default_lr: ClassVar[float | None] = None
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    epsilon: Annotated[float, Field(gt=0)] = 1e-8

    def build(self, groups: list[dict[str, Any]], lr: float) -> Optimizer:
        kind: type[Optimizer] = getattr(torch.optim, type(self).__name__)
        betas, fused = (self.beta1, self.beta2), is_fusible(groups)
        return kind(groups, lr=lr, betas=betas, eps=self.epsilon, fused=fused)  # type: ignore[call-arg]


@card
class Adam(AdamW):
    """Weight decay is a part of the gradient, as in older work; `adamw` is the better choice with it."""

    word: ClassVar[str] = "adam"
    revision: ClassVar[int] = 1
