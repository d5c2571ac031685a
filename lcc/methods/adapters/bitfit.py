"""Train the biases and nothing else (BitFit; Ben Zaken et al., 2021)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from lcc.config.cards import card
from lcc.core.errors import RecipeError
from lcc.core.types import Form

if TYPE_CHECKING:
    from torch.nn import Module

    from lcc.models.bundle import Bundle

HEADS = ("classifier.", "score.")  # a fresh classification head is trained whole


@card
class Bitfit:
    """Leaves a dense checkpoint: peft has no form for changed biases, and every reader knows dense.

    A file of biases alone would need a loader that nobody else has; the state that a killed
    training resumes from holds only them anyway. Models without biases (Llama, T5) are refused.
    """

    word: ClassVar[str] = "bitfit"
    revision: ClassVar[int] = 1
    produces: ClassVar[Form] = "dense"
    merges: ClassVar[bool] = True
    over_packed: ClassVar[bool] = False
    default_lr: ClassVar[float] = 5e-3

    def apply(self, bundle: Bundle, *, device: str, dtype: str, seed: int) -> Module:
        module: Module = bundle.load(device=device, dtype="float32")
        module.requires_grad_(False)
        num_biases = 0
        for name, parameter in module.named_parameters():
            is_bias = name.rpartition(".")[2] == "bias"
            parameter.requires_grad = is_bias or name.startswith(HEADS)
            num_biases += is_bias and not name.startswith(HEADS)
        if not num_biases:
            raise RecipeError(
                f"method: bitfit trains biases and model {bundle.card.name!r} has "
                "none; use layernorm, ia3 or lora."
            )
        return module
