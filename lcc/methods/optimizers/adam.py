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
        return torch.optim.AdamW(
            groups, lr=lr, betas=(self.beta1, self.beta2), eps=self.epsilon, fused=is_fusible(groups)
        )


# Adam, its weight decay a part of the gradient (Kingma and Ba, 2015).


@card
class Adam:
    """For comparison with older work: with weight decay, `adamw` is the better choice."""

    word: ClassVar[str] = "adam"
    revision: ClassVar[int] = 1
    default_lr: ClassVar[float | None] = None
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    epsilon: Annotated[float, Field(gt=0)] = 1e-8

    def build(self, groups: list[dict[str, Any]], lr: float) -> Optimizer:
        return torch.optim.Adam(
            groups, lr=lr, betas=(self.beta1, self.beta2), eps=self.epsilon, fused=is_fusible(groups)
        )
