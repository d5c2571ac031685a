"""A gap in a text, and which word a masked language model puts there (Schick and Schütze, 2021)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from lcc.core.lazy import torch
from lcc.engine.encoder_heads import masked_logits
from lcc.engine.objectives import Batch, LogitsOf
from lcc.engine.scoring import likeliest
from lcc.parts.adapters import is_prompt

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase


def cloze_logits(model: Any) -> LogitsOf:
    """Logits (num_targets, V) in the gaps."""
    if not is_prompt(model):
        return masked_logits(model.get_base_model() if hasattr(model, "get_base_model") else model)

    def logits(batch: Batch) -> Tensor:
        assert batch.positions is not None
        whole = model(**batch.inputs).logits[:, -batch.positions.shape[1] :]
        found: Tensor = whole[batch.positions]
        return found

    return logits


def fills(
    module: Any,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[list[int]],
    words: Sequence[int],
    *,
    batch_size: int = 32,
    advance: Callable[[int], None] = lambda n: None,
) -> list[int]:
    """Which of the tokens `words` is likeliest in each row's gap, by its number, in order."""

    def in_gaps(logits: Tensor, batch: list[list[int]]) -> Tensor:
        own = logits[:, -max(map(len, batch)) :]  # what stands before the text has logits too
        gaps = [row.index(tokenizer.mask_token_id) for row in batch]
        return own[torch.arange(len(batch)), gaps][:, list(words)]  # (rows, words)

    return likeliest(module, tokenizer, rows, in_gaps, batch_size=batch_size, advance=advance)
