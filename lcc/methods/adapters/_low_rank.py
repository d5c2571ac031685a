"""What LoRA, QLoRA and DoRA share: their options, and a peft model around a base."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from lcc.core.decode import card
from lcc.core.lazy import peft, torch
from lcc.engine.adapting import BaseForm, Note, attach, hush

if TYPE_CHECKING:
    from torch.nn import Module

    from lcc.parts.model import Bundle

TASK_TYPES = {"causal": "CAUSAL_LM", "seq2seq": "SEQ_2_SEQ_LM", "classify": "SEQ_CLS"}


@card
class LowRank:
    """W + (alpha / rank) BA on `target`: a list of module names, or every linear layer.

    "all-linear" leaves the output layer alone, and with it embeddings tied to it. A classification
    head is trained whole.
    """

    rank: Annotated[int, Field(ge=1)] = 16
    alpha: Annotated[int, Field(ge=1)] = 32
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    target: tuple[str, ...] | str = "all-linear"

    def config(self, bundle: Bundle, *, use_dora: bool = False) -> Any:
        hush()
        target = self.target if isinstance(self.target, str) else list(self.target)
        return peft.LoraConfig(
            r=self.rank, lora_alpha=self.alpha, lora_dropout=self.dropout, target_modules=target,
            use_dora=use_dora, task_type=TASK_TYPES[bundle.card.head],
        )  # fmt: skip


def adapt(bundle: Bundle, base: Any, config: Any, *, seed: int, form: BaseForm = "dense") -> Module:
    """Freeze `base` and put a fresh adapter in it; the bundle becomes that adapter."""
    torch.manual_seed(seed)  # draws A; B starts at zero
    model: Module = peft.get_peft_model(base, config)
    labels: tuple[str, ...] = ()
    if bundle.card.head == "classify":
        labels = tuple(str(base.config.id2label[i]) for i in range(base.config.num_labels))
    attach(bundle, model, Note(form, bundle.card.head, labels))
    return model
