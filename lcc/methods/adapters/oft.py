"""Turn each weight by block-diagonal rotations of its inputs (OFT; Qiu et al., 2023)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from lcc.config.cards import card
from lcc.core.lazy import peft
from lcc.core.types import Form
from lcc.methods.adapters._peft import TASK_TYPES, adapt, named
from lcc.models.adapter_io import refuse_sparse
from lcc.models.adapters import hush

if TYPE_CHECKING:
    from torch.nn import Module

    from lcc.models.bundle import Bundle


@card
class Oft:
    """W R with R orthogonal in blocks of `block_size` inputs, by the exact Cayley transform.

    Angles and lengths among a layer's rows stay as they were. A width that `block_size` does not
    divide takes the nearest size that does.
    """

    word: ClassVar[str] = "oft"
    revision: ClassVar[int] = 1
    produces: ClassVar[Form] = "adapter"
    merges: ClassVar[bool] = True
    over_packed: ClassVar[bool] = True
    default_lr: ClassVar[float] = 1e-3

    block_size: Annotated[int, Field(ge=2)] = 32
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    target: tuple[str, ...] | str = "all-linear"

    def apply(self, bundle: Bundle, *, device: str, dtype: str, seed: int) -> Module:
        refuse_sparse(bundle, "oft")
        base = bundle.load(device=device, dtype=dtype)
        hush()
        config = peft.OFTConfig(
            oft_block_size=self.block_size,
            module_dropout=self.dropout,
            use_cayley_neumann=False,
            target_modules=named(self.target),
            task_type=TASK_TYPES[bundle.card.head],
        )
        return adapt(bundle, base, config, seed=seed)
