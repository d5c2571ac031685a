"""Train direction (low-rank) and length of each weight row apart (DoRA; Liu et al., 2024)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from lcc.config.cards import card
from lcc.core.types import Form
from lcc.methods.adapters._peft import LowRank, adapt
from lcc.models.adapter_io import refuse_sparse

if TYPE_CHECKING:
    from torch.nn import Module

    from lcc.models.bundle import Bundle


@card
class Dora(LowRank):
    """LoRA with a trained magnitude per output; slower by a norm of W + BA per layer and step."""

    word: ClassVar[str] = "dora"
    revision: ClassVar[int] = 1
    produces: ClassVar[Form] = "adapter"
    merges: ClassVar[bool] = True
    over_packed: ClassVar[bool] = False  # its norms are taken of the weights themselves

    def apply(self, bundle: Bundle, *, device: str, dtype: str, seed: int) -> Module:
        refuse_sparse(bundle, "dora")
        base = bundle.load(device=device, dtype=dtype)
        return adapt(bundle, base, self.config(bundle, use_dora=True), seed=seed)
