"""LoRA whose ranks move to the layers that need them (AdaLoRA; Zhang et al., 2023)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from lcc.config.cards import card
from lcc.core.lazy import peft
from lcc.core.types import Form
from lcc.methods.adapters._peft import TASK_TYPES, adapt, named
from lcc.models.adapter_io import fills_zeros, mask_adapters
from lcc.models.adapters import hush
from lcc.training.optim import RankAllocation

if TYPE_CHECKING:
    from torch.nn import Module

    from lcc.models.bundle import Bundle


@card
class Adalora:
    """W + B diag(E) A: values of E with little influence on the loss go, of all layers together.

    From `initial_rank` a layer the mean falls to `rank`: full until `warmup_ratio` of the steps,
    then less every `every` steps, settled for the last `settle_ratio`. `orthogonality` weighs the
    penalty that keeps A and B orthogonal, without which E says nothing of importance.
    """

    word: ClassVar[str] = "adalora"
    revision: ClassVar[int] = 1
    produces: ClassVar[Form] = "adapter"
    merges: ClassVar[bool] = True
    over_packed: ClassVar[bool] = True
    shardable: ClassVar[bool] = False  # peft weighs whole matrices against each other
    default_lr: ClassVar[float] = 2e-3

    rank: Annotated[int, Field(ge=1)] = 8
    initial_rank: Annotated[int, Field(ge=2)] = 12
    alpha: Annotated[int, Field(ge=1)] = 32
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    target: tuple[str, ...] | str = "all-linear"
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.1
    settle_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.3
    every: Annotated[int, Field(ge=1)] = 1
    orthogonality: Annotated[float, Field(ge=0)] = 0.1

    def __post_init__(self) -> None:
        if self.initial_rank <= self.rank:
            raise ValueError(
                f"initial_rank {self.initial_rank} must be above rank {self.rank}, to which it falls"
            )
        if self.warmup_ratio + self.settle_ratio >= 1:
            raise ValueError("warmup_ratio and settle_ratio leave no steps for ranks to move in")

    def apply(self, bundle: Bundle, *, device: str, dtype: str, seed: int) -> Module:
        masked, base = fills_zeros(bundle), bundle.load(device=device, dtype=dtype)
        hush()
        config = peft.AdaLoraConfig(
            target_r=self.rank,
            init_r=self.initial_rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=named(self.target),
            deltaT=self.every,
            orth_reg_weight=self.orthogonality,
            task_type=TASK_TYPES[bundle.card.head],
            total_step=1,  # not known yet; `allocator` is told
        )
        model = adapt(bundle, base, config, seed=seed)
        if masked:
            mask_adapters(model)
        return model

    def allocator(self, model: Module) -> RankAllocation:
        """What moves the ranks of `model`, once every step of its training."""
        return RankAllocation(model, self.warmup_ratio, self.settle_ratio, self.orthogonality)
