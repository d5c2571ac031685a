"""Train keys and values before the text in every layer (prefix tuning; Li and Liang, 2021)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from lcc.config.cards import card
from lcc.core.lazy import peft
from lcc.core.types import Form
from lcc.methods.adapters._peft import TASK_TYPES, Virtual, adapt
from lcc.models.adapters import hush

if TYPE_CHECKING:
    from torch.nn import Module

    from lcc.models.bundle import Bundle


@card
class PrefixTuning(Virtual):
    """`projection` is the width of a network that makes the prefix while it trains; null: none.

    Checkpointed gradients are refused: the second forward would find the first one's cache.
    """

    word: ClassVar[str] = "prefix_tuning"
    revision: ClassVar[int] = 1
    produces: ClassVar[Form] = "adapter"
    merges: ClassVar[bool] = False
    over_packed: ClassVar[bool] = True
    recomputes: ClassVar[bool] = False
    default_lr: ClassVar[float] = 1e-2

    projection: Annotated[int, Field(ge=1)] | None = None

    def apply(self, bundle: Bundle, *, device: str, dtype: str, seed: int) -> Module:
        base = bundle.load(device=device, dtype=dtype)
        hush()
        config = peft.PrefixTuningConfig(
            num_virtual_tokens=self.num_tokens,
            prefix_projection=self.projection is not None,
            encoder_hidden_size=self.projection or 0,
            task_type=TASK_TYPES[bundle.card.head],
        )
        return adapt(bundle, base, config, seed=seed)
