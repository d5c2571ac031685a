"""Train every weight of the model."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from lcc.config.cards import card
from lcc.core.types import Form

if TYPE_CHECKING:
    from torch.nn import Module

    from lcc.models.bundle import Bundle


@card
class Full:
    """Weights stay in float32 whatever the compute dtype: bfloat16 loses small updates."""

    word: ClassVar[str] = "full"
    revision: ClassVar[int] = 1
    produces: ClassVar[Form] = "dense"
    merges: ClassVar[bool] = True
    over_packed: ClassVar[bool] = False
    default_lr: ClassVar[float] = 5e-5

    def apply(self, bundle: Bundle, *, device: str, dtype: str, seed: int) -> Module:
        module: Module = bundle.load(device=device, dtype="float32")
        module.requires_grad_(True)
        return module
