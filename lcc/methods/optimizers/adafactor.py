"""Adafactor: second moments kept as a row and a column per matrix (Shazeer and Stern, 2018)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from lcc.config.cards import card
from lcc.core.lazy import torch

if TYPE_CHECKING:
    from torch.optim import Optimizer


@card
class Adafactor:
    """Almost no optimizer memory: for whole models that AdamW's moments would not fit beside.

    `lr` is relative: a step is min(lr, 1/√t) times the root mean square of the tensor (at least
    `epsilon2`), and updates of a root mean square above `clip_threshold` are scaled down to it.
    """

    word: ClassVar[str] = "adafactor"
    revision: ClassVar[int] = 1
    shardable: ClassVar[bool] = False  # its state is not cut as the weights are
    state_bytes: ClassVar[int] = 1
    default_lr: ClassVar[float | None] = 0.01
    beta2_decay: Annotated[float, Field(le=0)] = -0.8
    epsilon1: Annotated[float, Field(ge=0)] | None = None
    epsilon2: Annotated[float, Field(ge=0)] = 1e-3
    clip_threshold: Annotated[float, Field(ge=1)] = 1.0

    def build(self, groups: list[dict[str, Any]], lr: float) -> Optimizer:
        return torch.optim.Adafactor(
            groups,
            lr=lr,
            beta2_decay=self.beta2_decay,
            eps=(self.epsilon1, self.epsilon2),
            d=self.clip_threshold,
        )
