"""A gap in a text, and which word a masked language model puts there (Schick and Schütze, 2021)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from lcc.core.lazy import torch
from lcc.engine.decoding import pad_id, padded
from lcc.engine.encoder_heads import masked_logits
from lcc.engine.objectives import Batch, LogitsOf
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
    module.eval()
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]), reverse=True)
    found: dict[int, int] = {}
    with torch.inference_mode():
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            batch = [rows[i] for i in chosen]
            ids, mask = padded(batch, pad_id(tokenizer), left=False, device=module.device)
            logits = module(input_ids=ids, attention_mask=mask).logits[:, -ids.shape[1] :]
            gaps = [row.index(tokenizer.mask_token_id) for row in batch]
            each = logits[torch.arange(len(batch)), gaps][:, list(words)]  # (rows, words)
            found.update(zip(chosen, each.argmax(-1).tolist(), strict=True))
            advance(len(chosen))
    return [found[i] for i in range(len(rows))]
