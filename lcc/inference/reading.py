"""What a model makes of texts that it only reads: logits, and one vector for each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from lcc.engine.decoding import pad_id, padded
from lcc.engine.encoder_heads import token_logits
from lcc.engine.scoring import MAX_LOGITS

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    Vectors = list[np.ndarray[Any, Any]]

BATCH_TOKENS = 4096
ENOUGH = 512  # tokens that keep a CPU busy: a batch of so many takes no row that needs padding


def logits(module: Any, tokenizer: Any, rows: Sequence[Sequence[int]], head: str) -> Vectors:
    """Per row (num_tokens, vocabulary); (num_labels,) of a classifier.

    Of an encoder–decoder (1, vocabulary): what it would begin its answer with.
    """
    width = 1 if head == "classify" else int(module.config.get_text_config().vocab_size)

    def read(ids: Tensor, mask: Tensor) -> Tensor:
        if head == "seq2seq":
            start = module.generation_config.decoder_start_token_id
            first = torch.full((len(ids), 1), int(start), device=ids.device)
            output = module(input_ids=ids, attention_mask=mask, decoder_input_ids=first)
        else:
            output = module(input_ids=ids, attention_mask=mask)
        return token_logits(output)

    trimmed = head not in ("classify", "seq2seq")
    budget = max(1, min(BATCH_TOKENS, MAX_LOGITS // width))
    return _each(module, tokenizer, rows, read, trimmed=trimmed, budget=budget)


def vectors(module: Any, tokenizer: Any, rows: Sequence[Sequence[int]]) -> Vectors:
    """Per row the mean of its last hidden states (of the encoder, where there is one)."""
    body = module.get_encoder() if module.config.is_encoder_decoder else module.base_model

    def read(ids: Tensor, mask: Tensor) -> Tensor:
        hidden = body(input_ids=ids, attention_mask=mask).last_hidden_state  # (B, T, H)
        weights = mask[..., None].to(hidden.dtype)
        found: Tensor = (hidden * weights).sum(1) / weights.sum(1)
        return found

    return _each(module, tokenizer, rows, read, trimmed=False, budget=BATCH_TOKENS)


def _each(
    module: Any, tokenizer: Any, rows: Sequence[Sequence[int]],
    read: Callable[[Tensor, Tensor], Tensor], *, trimmed: bool, budget: int,
) -> Vectors:  # fmt: skip
    """`read` of every row, in order, batched by length; `trimmed` of what stands for padding."""
    found: dict[int, Any] = {}
    lengths = [len(row) for row in rows]
    enough = ENOUGH if module.device.type == "cpu" else budget
    with torch.inference_mode():
        for chosen in by_length(lengths, budget, enough):
            batch = [list(rows[i]) for i in chosen]
            # Padded on the right: encoders number their positions themselves.
            ids, mask = padded(batch, pad_id(tokenizer), left=False, device=module.device)
            values = read(ids, mask).float().cpu().numpy()
            for i, value in zip(chosen, values, strict=True):
                found[i] = value[: lengths[i]] if trimmed else value
    return [found[i] for i in range(len(rows))]


def by_length(
    lengths: Sequence[int], budget: int, enough: int | None = None
) -> Iterator[list[int]]:
    """Indices in batches of rows alike in length, each of at most `budget` tokens with padding.

    A batch that has `enough` tokens takes only rows as long as its longest.
    """
    enough = budget if enough is None else enough
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i], reverse=True):
        longest = lengths[batch[0]] if batch else 0
        is_full = (len(batch) + 1) * longest > budget
        if batch and (is_full or (len(batch) * longest >= enough and lengths[i] < longest)):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch
