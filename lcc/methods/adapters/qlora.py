"""LoRA over a base held in 4 bits (QLoRA; Dettmers et al., 2023), through bitsandbytes NF4."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from lcc.config.cards import card
from lcc.core.types import Form
from lcc.methods.adapters._peft import LowRank, adapt, make_up_for_nf4
from lcc.models.adapter_io import load_nf4, refuse_sparse

if TYPE_CHECKING:
    from torch.nn import Module

    from lcc.models.bundle import Bundle


@card
class Qlora(LowRank):
    """The adapter fits the NF4 base only, so merging dequantizes that base, not the original.

    `init: loftq` (Li et al., 2023) begins with the change of this rank that makes up for most of
    what the 4 bits lost, where `zero` begins with the loss.
    """

    word: ClassVar[str] = "qlora"
    revision: ClassVar[int] = 1
    produces: ClassVar[Form] = "adapter"
    merges: ClassVar[bool] = True
    over_packed: ClassVar[bool] = False
    shardable: ClassVar[bool] = False  # four bits of several weights share a byte
    init: Literal["zero", "loftq"] = "zero"

    def apply(self, bundle: Bundle, *, device: str, dtype: str, seed: int) -> Module:
        refuse_sparse(bundle, "qlora")
        base = load_nf4(bundle, device, dtype, seed=seed)
        model = adapt(bundle, base, self.config(bundle), seed=seed, form="nf4")
        if self.init == "loftq":
            make_up_for_nf4(model, bundle)
        return model
