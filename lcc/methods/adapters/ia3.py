"""Train one factor per key, value and feed-forward channel ((IA)³; Liu et al., 2022)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from lcc.config.cards import card
from lcc.core.errors import RecipeError
from lcc.core.lazy import peft
from lcc.core.types import Form
from lcc.methods.adapters._peft import TASK_TYPES, adapt
from lcc.models.adapters import hush

if TYPE_CHECKING:
    from torch.nn import Module

    from lcc.models.bundle import Bundle


@card
class Ia3:
    """The fewest trained weights of all methods; they want a high learning rate.

    `target` and `feedforward` (those of them scaled at their input) are peft's choice for the
    model's family unless given. Factors leave a sparse parent's zeros alone.
    """

    word: ClassVar[str] = "ia3"
    revision: ClassVar[int] = 1
    produces: ClassVar[Form] = "adapter"
    merges: ClassVar[bool] = True
    over_packed: ClassVar[bool] = False  # peft has no such layer around bitsandbytes' own
    default_lr: ClassVar[float] = 5e-3
    target: tuple[str, ...] | None = None
    feedforward: tuple[str, ...] | None = None

    def apply(self, bundle: Bundle, *, device: str, dtype: str, seed: int) -> Module:
        base = bundle.load(device=device, dtype=dtype)
        hush()
        config = peft.IA3Config(
            target_modules=list(self.target) if self.target else None,
            feedforward_modules=list(self.feedforward or ()) if self.target else None,
            task_type=TASK_TYPES[bundle.card.head],
        )
        known = peft.utils.TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING
        if not self.target and base.config.model_type not in known:
            raise RecipeError(
                f"method.target: ia3 has no default for {base.config.model_type!r} "
                "models; name the key, value and feed-forward layers."
            )
        return adapt(bundle, base, config, seed=seed)
