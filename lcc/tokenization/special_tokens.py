"""Special tokens that a tokenizer puts around one text and around a pair, read off itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lcc.core.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROBE = "a"


@dataclass(frozen=True)
class Frame:
    """Ids before a text, between the two of a pair (of which text: `kinds`), and after.

    Without a template for pairs of that form, `kinds` is None.
    """

    before: list[int]
    between: list[int]
    after: list[int]
    kinds: list[int] | None

    @property
    def num_single(self) -> int:
        """Special tokens around one text."""
        return len(self.before) + len(self.after)

    @property
    def num_pair(self) -> int:
        """Special tokens around a pair."""
        return self.num_single + len(self.between)

    def single(self, ids: Sequence[int]) -> list[int]:
        """One text as the tokenizer would have it."""
        return [*self.before, *ids, *self.after]

    def pair(self, first: Sequence[int], second: Sequence[int]) -> tuple[list[int], list[int]]:
        """A pair as the tokenizer would have it, and 0 or 1 for each token's text."""
        if self.kinds is None:
            raise DataError("this tokenizer has no template for a pair of texts.")
        opening, closing = [*self.before, *first], [*second, *self.after]
        kinds = [*[0] * len(opening), *self.kinds, *[1] * len(closing)]
        return [*opening, *self.between, *closing], kinds


def frame_of(tokenizer: PreTrainedTokenizerBase) -> Frame:
    """The frame of `tokenizer`; raises DataError where it changes a text when it frames it."""
    plain = list(tokenizer(PROBE, add_special_tokens=False)["input_ids"])
    framed = list(tokenizer(PROBE)["input_ids"])
    start = _find(framed, plain, 0)
    before, after = framed[:start], framed[start + len(plain) :]
    pair = tokenizer(PROBE, PROBE, return_token_type_ids=True)
    both, kinds = list(pair["input_ids"]), list(pair["token_type_ids"])
    first = _find(both, plain, 0) + len(plain)
    between = slice(first, _find(both, plain, first))
    frame = Frame(before, both[between], after, kinds[between])
    if frame.pair(plain, plain) != (both, kinds):
        return Frame(before, [], after, None)
    return frame


def _find(ids: Sequence[int], wanted: Sequence[int], start: int) -> int:
    last = len(ids) - len(wanted)
    for place in range(start, last + 1):
        if list(ids[place : place + len(wanted)]) == list(wanted):
            return place
    raise DataError("this tokenizer changes a text's tokens when it adds its special ones.")
