"""Train a low-rank change of each linear layer (LoRA; Hu et al., 2021)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from lcc.core.decode import card
from lcc.engine.sparse_training import mask_adapters
from lcc.methods.adapters._low_rank import LowRank, adapt
from lcc.parts.checkpoint import Form

if TYPE_CHECKING:
    from torch.nn import Module

    from lcc.parts.model import Bundle


@card
class Lora(LowRank):
    """Over a sparse parent the change is masked in the forward: pruned weights stay zero."""

    revision: ClassVar[int] = 1
    produces: ClassVar[Form] = "adapter"
    default_lr: ClassVar[float] = 1e-3

    def apply(self, bundle: Bundle, *, device: str, dtype: str, seed: int) -> Module:
        base = bundle.load(device=device, dtype=dtype)
        model = adapt(bundle, base, self.config(bundle), seed=seed)
        if bundle.card.sparse:
            mask_adapters(model)
        return model
