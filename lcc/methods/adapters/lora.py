"""Train a low-rank change of each linear layer (LoRA; Hu et al., 2021)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from lcc.config.cards import card
from lcc.core.errors import RecipeError
from lcc.core.types import Form
from lcc.methods.adapters._peft import LowRank, adapt, initial_factors, subtract_at_writing
from lcc.models.adapter_io import fills_zeros, mask_adapters

if TYPE_CHECKING:
    from torch.nn import Module

    from lcc.models.bundle import Bundle

PISSA = "pissa_niter_16"  # a randomised SVD: exact ones of large layers take a minute each


@card
class Lora(LowRank):
    """Over a sparse parent the change is masked in the forward: pruned weights stay zero.

    `init: pissa` (Meng et al., 2024) trains the largest singular directions of W and freezes the
    rest; what is stored is what they changed, an adapter of twice the rank for the untouched base.
    """

    word: ClassVar[str] = "lora"
    revision: ClassVar[int] = 1
    produces: ClassVar[Form] = "adapter"
    merges: ClassVar[bool] = True
    over_packed: ClassVar[bool] = True
    init: Literal["zero", "pissa"] = "zero"

    def apply(self, bundle: Bundle, *, device: str, dtype: str, seed: int) -> Module:
        if self.init == "pissa":
            return self._principal(bundle, device, seed)
        masked, base = fills_zeros(bundle), bundle.load(device=device, dtype=dtype)
        model = adapt(bundle, base, self.config(bundle), seed=seed)
        if masked:
            mask_adapters(model)
        return model

    def _principal(self, bundle: Bundle, device: str, seed: int) -> Module:
        if fills_zeros(bundle):
            raise RecipeError(
                f"method.init: model {bundle.card.name!r} is sparse and pissa would "
                "fill its zeros; use init=zero, which keeps them."
            )
        # The frozen rest of each weight is no number of the stored dtype.
        base = bundle.load(device=device, dtype="float32")
        model = adapt(bundle, base, self.config(bundle, init_lora_weights=PISSA), seed=seed)
        subtract_at_writing(bundle, initial_factors(model))
        return model
