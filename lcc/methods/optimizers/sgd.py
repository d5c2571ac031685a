"""SGD: gradient descent with momentum, Nesterov's or the plain one (Sutskever et al., 2013)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from lcc.config.cards import card
from lcc.core.lazy import torch

if TYPE_CHECKING:
    from torch.optim import Optimizer


@card
class SGD:
    """The least memory: one moment, none without momentum. Steps are as large as gradients are.

    Transformers need clipping and a rate orders above AdamW's, which learns faster on most of them.
    """

    word: ClassVar[str] = "sgd"
    revision: ClassVar[int] = 1
    state_bytes: ClassVar[int] = 4
    default_lr: ClassVar[float | None] = 0.1
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    nesterov: bool = True

    def __post_init__(self) -> None:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs momentum; set nesterov: false with momentum: 0")

    def build(self, groups: list[dict[str, Any]], lr: float) -> Optimizer:
        return torch.optim.SGD(groups, lr=lr, momentum=self.momentum, nesterov=self.nesterov)
