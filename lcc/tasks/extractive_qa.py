"""Extractive question answering: windows over a passage, spans by character.

The encoder sees the question first, then a piece of the passage; pieces overlap, so that an
answer that one of them cuts is whole in another.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lcc.core.errors import DataError
from lcc.tasks.encode import Example, plain_ids
from lcc.tasks.template import PromptSource, Row, fill
from lcc.tokenization.special_tokens import Frame, frame_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OVERLAP = 0.25  # of a window's passage, shown again at the beginning of the next


@dataclass(frozen=True)
class PassageWindow:
    """One piece: its tokens, which text each is of, and where the passage's tokens stand.

    Token `first + i` is the characters `places[i]` of the whole passage.
    """

    ids: list[int]
    kinds: list[int]
    first: int
    places: list[tuple[int, int]]

    @property
    def end(self) -> int:
        """The token after the passage's last."""
        return self.first + len(self.places)


def passage_windows(
    task: PromptSource, row: Row, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> Iterator[PassageWindow]:
    """Windows of at most `max_length` tokens over a row's passage, in order; one at least."""
    frame = frame_of(tokenizer)
    passage = str(row.get(task.passage, ""))
    ids, places = _placed(passage, tokenizer)
    question = plain_ids(fill(task.template, row), tokenizer)[: max(1, max_length // 2)]
    room = max(1, max_length - frame.num_pair - len(question))
    step = max(1, room - int(OVERLAP * room))
    start = 0
    while True:
        yield _window(frame, question, ids[start : start + room], places[start : start + room])
        if start + room >= len(ids):
            return
        start += step


def encode(task: PromptSource, row: Row, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Example:
    """The window that holds the answer, labelled with its first and last token; none: no label."""
    begin, end = _answer(task, row)
    num = 0
    for window in passage_windows(task, row, tokenizer, max_length):
        num += 1
        inside = [i for i, (a, b) in enumerate(window.places) if a < end and b > begin]
        if begin < 0 or not inside:
            continue
        is_whole = window.places[inside[0]][0] <= begin and window.places[inside[-1]][1] >= end
        if is_whole:
            labels = [window.first + inside[0], window.first + inside[-1]]
            return Example(window.ids, labels, window.first, 0, window.kinds)
    return Example(window.ids, [], window.first, 0, window.kinds)


def _answer(task: PromptSource, row: Row) -> tuple[int, int]:
    """Characters of the passage; by `answer_start` where the row has one, else its first place."""
    text, passage = task.completion(row).strip(), str(row.get(task.passage, ""))
    given = row.get("answer_start")
    begin = given if isinstance(given, int) else passage.find(text)
    if begin >= 0 and passage[begin : begin + len(text)] != text:
        begin = passage.find(text)  # cleaning changed spaces before it
    return (begin, begin + len(text)) if text else (-1, -1)


def _window(
    frame: Frame, question: list[int], ids: list[int], places: list[tuple[int, int]]
) -> PassageWindow:
    whole, kinds = frame.pair(question, ids)
    return PassageWindow(whole, kinds, len(whole) - len(frame.after) - len(ids), places)


def _placed(text: str, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[tuple[int, int]]]:
    if not tokenizer.is_fast:
        raise DataError(
            "finding answers in a passage needs a fast tokenizer (tokenizer.json), "
            "which says where in the text each token stands."
        )
    made: Any = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return list(made["input_ids"]), [(int(a), int(b)) for a, b in made["offset_mapping"]]
