"""Rows as the batches that calibration runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lcc.core import preemption
from lcc.core.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from lcc.engine.walking import Batch
    from lcc.parts.task import Task

MAX_POSITIONS = 512


def encoded_batches(
    rows: list[dict[str, Any]],
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    *,
    model: Any,
    batch_tokens: int = 2048,
    max_length: int = MAX_POSITIONS,
    device: str | None = None,
    max_tokens: int | None = None,
) -> list[Batch]:
    """Rows of like length together, at most `batch_tokens` tokens with their padding.

    Of `rows`, those count whose tokens are `max_tokens` together, the last one cut to fit.
    """
    positions = getattr(model.config, "max_position_embeddings", None) or max_length
    longest = min(max_length, positions)
    examples: list[Any] = []
    left = max_tokens or len(rows) * longest
    for row in rows:
        preemption.check("calibrate")
        if left > 0:
            examples.append(task.encode(row, tokenizer, max_length=min(longest, left)))
            left -= len(examples[-1].input_ids)
    examples.sort(key=lambda example: len(example.input_ids))
    pad = tokenizer.pad_token_id or 0
    batches: list[list[Any]] = []
    for example in examples:
        longest = len(example.input_ids)  # Sorted: the newest is the longest of its batch.
        if not batches or longest * (len(batches[-1]) + 1) > batch_tokens:
            batches.append([])
        batches[-1].append(example)
    return [_batch(group, model, pad=pad, device=device or model.device) for group in batches]


def _batch(examples: list[Any], model: Any, *, pad: int, device: Any) -> Batch:
    ids, mask = _padded([example.input_ids for example in examples], pad, device)
    batch = {"input_ids": ids, "attention_mask": mask}
    if any(any(example.kinds or ()) for example in examples):
        kinds = [example.kinds or [0] * len(example.input_ids) for example in examples]
        batch["token_type_ids"], _ = _padded(kinds, 0, device)
    if model.config.is_encoder_decoder:
        labels, seen = _padded([example.labels for example in examples], -100, device)
        batch["decoder_input_ids"] = model.prepare_decoder_input_ids_from_labels(labels=labels)
        batch["decoder_attention_mask"] = seen
    return batch


def _padded(rows: list[list[int]], pad: int, device: Any) -> tuple[Tensor, Tensor]:
    longest = max(map(len, rows))
    ids = torch.tensor([row + [pad] * (longest - len(row)) for row in rows], device=device)
    mask = torch.tensor(
        [[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=device
    )
    return ids, mask
