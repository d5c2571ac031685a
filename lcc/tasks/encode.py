"""Token ids of one example (BOS exactly once, cut from a stated side), and rows padded to a rectangle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from lcc.core.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

IGNORED = -100  # what cross entropy skips


@dataclass(frozen=True)
class Example:
    """One row as a model trains on it.

    `labels`: causal, as long as `input_ids`, IGNORED on the prompt; seq2seq, the target's ids;
    classify, the label's number; embed, empty; extract, the answer's first and last place.
    `num_truncated` tokens were cut off.
    """

    input_ids: list[int]
    labels: list[int] | int
    num_prompt: int = 0
    num_truncated: int = 0
    kinds: list[int] | None = None  # of a pair, which text each token is of


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """What fills short rows; masked, so any token will do where the tokenizer has none."""
    for token_id in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if isinstance(token_id, int):
            return token_id
    return 0


def padded_rows(
    rows: Sequence[Sequence[int]], value: int, *, left: bool = False, device: Any = None
) -> Tensor:
    """(num_rows, longest), filled up with `value` on the right, or on the left."""
    width = max(map(len, rows))
    fillers = [[value] * (width - len(row)) for row in rows]
    filled = [[*f, *row] if left else [*row, *f] for f, row in zip(fillers, rows, strict=True)]
    return torch.tensor(filled, device=device)


def padded(
    rows: Sequence[Sequence[int]], pad: int, *, left: bool = False, device: Any = None
) -> tuple[Tensor, Tensor]:
    """(ids, attention mask), each (num_rows, longest)."""
    mask = padded_rows([[1] * len(row) for row in rows], 0, left=left, device=device)
    return padded_rows(rows, pad, left=left, device=device), mask


def needs_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a text must start with BOS: the tokenizer writes one, says so, or is Gemma's.

    Gemma without BOS has a perplexity of 262 in place of 8, so its family needs no word for it.
    """
    bos = tokenizer.bos_token_id
    if bos is None:
        return False
    if getattr(tokenizer, "add_bos_token", None) or "Gemma" in type(tokenizer).__name__:
        return True
    ids = tokenizer("a")["input_ids"]
    return bool(ids) and ids[0] == bos


def plain_ids(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The text's own tokens, no special ones added."""
    if not text:
        return []
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def cut(
    ids: list[int], length: int | None, side: Literal["left", "right"], *, num_tail: int = 0
) -> list[int]:
    """At most `length` ids; the first (BOS) always stays, and the last `num_tail` (EOS)."""
    if length is None or len(ids) <= length:
        return ids
    if length <= 0:
        return []
    if side == "left":
        return ids[:1] + (ids[-(length - 1) :] if length > 1 else [])
    return ids[: length - num_tail] + ids[len(ids) - num_tail :]
