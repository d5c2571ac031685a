"""Text as tokens come: never half a character, nor the beginning of a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HALF = "\ufffd"  # what bytes decode to that are no whole character yet


class TextStream:
    """The text of one answer; `stopped` once a stop string was met, which is not part of it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str] = ()) -> None:
        self.stopped = False
        self._tokenizer, self._stop = tokenizer, [word for word in stop if word]
        self._ids: list[int] = []
        self._known = ""  # the text so far, held text included
        self._begin = self._read = 0  # the tokens whose text was told last: a context to decode in
        self._held = ""

    def push(self, token: int) -> str:
        """Take one more token; returns what may be shown now."""
        self._ids.append(token)
        context = self._decode(self._ids[self._begin : self._read])
        text = self._decode(self._ids[self._begin :])
        if len(text) <= len(context) or text.endswith(HALF) or not text.startswith(context):
            return ""
        self._begin, self._read = self._read, len(self._ids)
        return self._tell(text[len(context) :])

    def finish(self) -> str:
        """What was still held back, once no token will come."""
        if self.stopped:
            return ""
        whole = self._decode(self._ids)
        rest = whole[len(self._known) :] if whole.startswith(self._known) else ""
        text = self._tell(rest)
        held, self._held = self._held, ""
        return text if self.stopped else text + held

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True)) if ids else ""

    def _tell(self, new: str) -> str:
        self._known += new
        if not self._stop:
            return new
        text, self._held = self._held + new, ""
        cuts = [text.index(word) for word in self._stop if word in text]
        if cuts:
            self.stopped = True
            return text[: min(cuts)]
        shown = len(text) - max(_overlap(text, word) for word in self._stop)
        self._held = text[shown:]
        return text[:shown]


def _overlap(text: str, word: str) -> int:
    """How many characters at the end of `text` are the beginning of `word`."""
    return next((n for n in range(min(len(word) - 1, len(text)), 0, -1)
                 if text.endswith(word[:n])), 0)  # fmt: skip
