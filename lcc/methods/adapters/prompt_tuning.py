"""Train word vectors that stand before the text (prompt tuning; Lester et al., 2021)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from lcc.config.cards import card
from lcc.core.lazy import peft, torch
from lcc.core.types import Form
from lcc.methods.adapters._peft import TASK_TYPES, Virtual, adapt
from lcc.models.adapters import hush
from lcc.tasks.encode import plain_ids

if TYPE_CHECKING:
    from torch.nn import Module

    from lcc.models.bundle import Bundle


@card
class PromptTuning(Virtual):
    """They begin as random words of the vocabulary, or as those of `text`, repeated as needed."""

    word: ClassVar[str] = "prompt_tuning"
    revision: ClassVar[int] = 1
    produces: ClassVar[Form] = "adapter"
    merges: ClassVar[bool] = False
    over_packed: ClassVar[bool] = True
    default_lr: ClassVar[float] = 3e-2

    init: Literal["vocabulary", "text"] = "vocabulary"
    text: str = ""

    def __post_init__(self) -> None:
        if (self.init == "text") != bool(self.text):
            raise ValueError("init: text and a text belong together; give both or neither")

    def apply(self, bundle: Bundle, *, device: str, dtype: str, seed: int) -> Module:
        base = bundle.load(device=device, dtype=dtype)
        hush()
        config = peft.PromptTuningConfig(
            num_virtual_tokens=self.num_tokens,
            prompt_tuning_init="SAMPLE_VOCAB",
            num_transformer_submodules=1,
            task_type=TASK_TYPES[bundle.card.head],
        )
        model = adapt(bundle, base, config, seed=seed)
        if self.text:
            self._initialise(model, bundle)
        return model

    def _initialise(self, model: Any, bundle: Bundle) -> None:
        ids = plain_ids(self.text, bundle.tokenizer)
        chosen = torch.tensor([ids[i % len(ids)] for i in range(self.num_tokens)])
        weight = model.prompt_encoder["default"].embedding.weight
        with torch.no_grad():
            weight.copy_(model.word_embeddings(chosen.to(weight.device)))
