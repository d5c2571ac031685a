"""Train the normalisation layers and nothing else (LN tuning; Zhao et al., 2023)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from lcc.config.cards import card
from lcc.core.lazy import peft
from lcc.core.types import Form
from lcc.methods.adapters._peft import TASK_TYPES, adapt
from lcc.models.adapters import hush

if TYPE_CHECKING:
    from torch.nn import Module

    from lcc.models.bundle import Bundle


@card
class Layernorm:
    """Scales and shifts of every layer or RMS norm; merging puts them in the old ones' place."""

    word: ClassVar[str] = "layernorm"
    revision: ClassVar[int] = 1
    produces: ClassVar[Form] = "adapter"
    merges: ClassVar[bool] = True
    over_packed: ClassVar[bool] = True
    default_lr: ClassVar[float] = 1e-2

    def apply(self, bundle: Bundle, *, device: str, dtype: str, seed: int) -> Module:
        base = bundle.load(device=device, dtype=dtype)
        hush()
        config = peft.LNTuningConfig(target_modules=norms(base), task_type=TASK_TYPES[bundle.card.head])
        return adapt(bundle, base, config, seed=seed)


def norms(model: Any) -> list[str]:
    """Names of the layers that normalise: one scale per channel, and Norm in their type's name."""
    return [
        name
        for name, module in model.named_modules()
        if "Norm" in type(module).__name__
        and getattr(module, "weight", None) is not None
        and module.weight.dim() == 1
    ]
