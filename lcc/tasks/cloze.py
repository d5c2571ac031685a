"""Cloze tasks: the gap where a masked language model is asked for a word, and which words it may choose."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lcc.core.errors import DataError
from lcc.tasks.encode import IGNORED, Example, plain_ids
from lcc.tokenization.special_tokens import frame_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PLACE = "mask"  # in a template: {mask}
GAP = "[MASK]"  # in a prompt, whatever the tokenizer calls it


def gap_ids(
    prompt: str, tokenizer: PreTrainedTokenizerBase, *, max_length: int | None, side: str
) -> tuple[list[int], int]:
    """The prompt's tokens with its gap as one mask token, and how many were cut.

    Raises DataError for a tokenizer without a mask, and where not exactly one is left.
    """
    if tokenizer.mask_token is None:
        raise DataError(
            "a cloze needs a mask token and this tokenizer has none; choose an encoder "
            "that was trained to fill gaps."
        )
    frame = frame_of(tokenizer)
    whole = plain_ids(prompt.replace(GAP, str(tokenizer.mask_token)), tokenizer)
    room = len(whole) if max_length is None else max(1, max_length - frame.num_single)
    kept = whole[-room:] if side == "left" else whole[:room]
    if kept.count(tokenizer.mask_token_id) != 1:
        raise DataError(
            "a cloze has exactly one gap, and after cutting to "
            f"{max_length} tokens {kept.count(tokenizer.mask_token_id)} are left; set "
            "task.truncate to the side away from {mask}."
        )
    return frame.single(kept), len(whole) - len(kept)


def encode(
    prompt: str, word: str, tokenizer: PreTrainedTokenizerBase, *, max_length: int, side: str
) -> Example:
    """A cloze as training sees it: its only target is the word in the gap."""
    ids, num_cut = gap_ids(prompt, tokenizer, max_length=max_length, side=side)
    (wanted,) = word_ids([word], tokenizer)
    labels = [wanted if i == tokenizer.mask_token_id else IGNORED for i in ids]
    return Example(ids, labels, len(ids), num_cut)


def word_ids(words: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The token that stands for each word: its first; raises DataError where two share it."""
    ids = [plain_ids(word, tokenizer)[0] for word in words]
    if len(set(ids)) < len(ids):
        listed = ", ".join(map(repr, words))
        raise DataError(
            f"of the words {listed} two begin with the same token; choose others in task.verbalizer."
        )
    return ids
