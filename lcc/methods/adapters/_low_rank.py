"""What LoRA, QLoRA, DoRA and AdaLoRA share: their options, and a peft model around a base."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from lcc.core.decode import card
from lcc.core.lazy import peft, torch
from lcc.engine.adapting import BaseForm, Note, attach, hush

if TYPE_CHECKING:
    from torch.nn import Module

    from lcc.parts.model import Bundle

TASK_TYPES = {"causal": "CAUSAL_LM", "seq2seq": "SEQ_2_SEQ_LM", "classify": "SEQ_CLS",
              "masked": "FEATURE_EXTRACTION", "extract": "QUESTION_ANS"}  # fmt: skip


@card
class LowRank:
    """W + s·BA on `target`: a list of module names, or every linear layer.

    s is alpha / rank, or alpha / √rank with `rslora` (Kalajdzievski, 2023), under which a large
    rank learns as fast as a small one. B learns at `lr_ratio` times the rate of A (LoRA+; Hayou et
    al., 2024). "all-linear" leaves the output layer alone, and with it embeddings tied to it. A
    classification head is trained whole.
    """

    rank: Annotated[int, Field(ge=1)] = 16
    alpha: Annotated[int, Field(ge=1)] = 32
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    target: tuple[str, ...] | str = "all-linear"
    rslora: bool = False
    lr_ratio: Annotated[float, Field(ge=1)] = 1.0

    @property
    def default_lr(self) -> float:
        """Of A; the geometric mean of both rates stays where it is best for LoRA."""
        return 1e-3 / math.sqrt(self.lr_ratio)

    @property
    def lr_ratios(self) -> dict[str, float]:
        return {"lora_B": self.lr_ratio}

    def config(self, bundle: Bundle, **options: Any) -> Any:
        hush()
        return peft.LoraConfig(
            r=self.rank, lora_alpha=self.alpha, lora_dropout=self.dropout, use_rslora=self.rslora,
            target_modules=named(self.target), task_type=TASK_TYPES[bundle.card.head], **options,
        )  # fmt: skip


def named(target: tuple[str, ...] | str) -> list[str] | str:
    """Module names as peft takes them."""
    return target if isinstance(target, str) else list(target)


def adapt(
    bundle: Bundle, base: Any, config: Any, *, seed: int, form: BaseForm = "dense",
) -> Module:  # fmt: skip
    """Freeze `base` and put a fresh adapter in it; the bundle becomes that adapter."""
    torch.manual_seed(seed)  # draws A; B starts at zero
    model: Module = peft.get_peft_model(base, config)
    attach(bundle, model, note_of(bundle, base, form))
    return model


def note_of(bundle: Bundle, base: Any, form: BaseForm = "dense") -> Note:
    """What whoever opens the adapter again must know of its base."""
    labels: tuple[str, ...] = ()
    if bundle.card.head == "classify":
        labels = tuple(str(base.config.id2label[i]) for i in range(base.config.num_labels))
    return Note(form, bundle.card.head, labels)
