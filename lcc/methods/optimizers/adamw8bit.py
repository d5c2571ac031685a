"""AdamW with moments held in 8 bits (Dettmers et al., 2022), through bitsandbytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from lcc.config.cards import card
from lcc.core.lazy import bitsandbytes

if TYPE_CHECKING:
    from torch.optim import Optimizer


@card
class AdamW8bit:
    """A quarter of AdamW's optimizer memory; tensors under 4,096 elements keep float32 moments."""

    word: ClassVar[str] = "adamw8bit"
    revision: ClassVar[int] = 1
    shardable: ClassVar[bool] = False  # its kernels know no DTensor
    state_bytes: ClassVar[int] = 2
    default_lr: ClassVar[float | None] = None
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    epsilon: Annotated[float, Field(gt=0)] = 1e-8

    def build(self, groups: list[dict[str, Any]], lr: float) -> Optimizer:
        build: Any = bitsandbytes.optim.AdamW8bit  # type: ignore[attr-defined]
        optimizer: Optimizer = build(groups, lr=lr, betas=(self.beta1, self.beta2), eps=self.epsilon)
        return optimizer
