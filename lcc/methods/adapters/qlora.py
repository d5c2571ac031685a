"""LoRA over a base held in 4 bits (QLoRA; Dettmers et al., 2023), through bitsandbytes NF4."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from lcc.core.decode import card
from lcc.engine.adapting import load_nf4, refuse_sparse
from lcc.methods.adapters._low_rank import LowRank, adapt
from lcc.parts.checkpoint import Form

if TYPE_CHECKING:
    from torch.nn import Module

    from lcc.parts.model import Bundle


@card
class Qlora(LowRank):
    """The adapter fits the NF4 base only, so merging dequantizes that base, not the original."""

    revision: ClassVar[int] = 1
    produces: ClassVar[Form] = "adapter"
    default_lr: ClassVar[float] = 1e-3

    def apply(self, bundle: Bundle, *, device: str, dtype: str, seed: int) -> Module:
        refuse_sparse(bundle, "qlora")
        base = load_nf4(bundle, device, dtype, seed=seed)
        return adapt(bundle, base, self.config(bundle), seed=seed, form="nf4")
