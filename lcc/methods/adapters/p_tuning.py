"""Train word vectors before the text through a small network (P-tuning; Liu et al., 2021)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from lcc.config.cards import card
from lcc.core.lazy import peft
from lcc.core.types import Form
from lcc.methods.adapters._peft import TASK_TYPES, Virtual, adapt
from lcc.models.adapters import hush

if TYPE_CHECKING:
    from torch.nn import Module

    from lcc.models.bundle import Bundle


@card
class PTuning(Virtual):
    """The network ties the vectors together while they train; only what it says is stored."""

    word: ClassVar[str] = "p_tuning"
    revision: ClassVar[int] = 1
    produces: ClassVar[Form] = "adapter"
    merges: ClassVar[bool] = False
    over_packed: ClassVar[bool] = True
    default_lr: ClassVar[float] = 3e-3

    network: Literal["MLP", "LSTM"] = "MLP"
    width: Annotated[int, Field(ge=1)] = 128

    def apply(self, bundle: Bundle, *, device: str, dtype: str, seed: int) -> Module:
        base = bundle.load(device=device, dtype=dtype)
        hush()
        config = peft.PromptEncoderConfig(
            num_virtual_tokens=self.num_tokens,
            encoder_hidden_size=self.width,
            encoder_reparameterization_type=self.network,
            num_transformer_submodules=1,
            task_type=TASK_TYPES[bundle.card.head],
        )
        return adapt(bundle, base, config, seed=seed)
