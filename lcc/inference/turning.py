"""A session over any engine that gives the logits of the next token, a turn at a time."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import TYPE_CHECKING, Any, Protocol

from lcc.core.errors import DataError
from lcc.inference.choosing import choosing, chosen
from lcc.inference.ongoing import Ongoing
from lcc.inference.requests import Request, Step
from lcc.inference.sessions import Ability, Opening
from lcc.inference.streaming import TextStream

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from lcc.inference.companions import Companions

TURNS: frozenset[Ability] = frozenset({"sampling", "logprobs", "repetition_penalty", "logits"})
JOINS: frozenset[Ability] = frozenset({"continuous"})


class Passes(Protocol):
    """What an engine does in a turn; its rows are those that were taken in, in order.

    Where `joins` is false, rows are taken in only while there are none. For a row of which `plain`
    says that nothing but its likeliest token is asked, that token may stand for its logits.
    """

    joins: bool

    def take(self, prompts: Sequence[Sequence[int]], plain: Sequence[bool]) -> list[Tensor | int]:
        """A row for each prompt; logits (vocabulary,) of each one's next token."""
        ...

    def advance(self, tokens: Sequence[int], plain: Sequence[bool]) -> list[Tensor | int]:
        """One more token of every row; logits (vocabulary,) of each one's next."""
        ...

    def remove(self, row: int) -> None:
        """Forget a row; the last one takes its number."""
        ...

    def read(self, ids: Sequence[int]) -> np.ndarray[Any, Any]:
        """Logits (num_tokens, vocabulary) of a whole text; of an encoder–decoder (1, vocabulary)
        of what its answer begins with."""
        ...

    def close(self) -> None:
        """Give memory back."""
        ...


class TurningSession:
    """See `inference.sessions.Session` for the contract."""

    def __init__(
        self, passes: Passes, beside: Companions, opening: Opening, *, context: int
    ) -> None:
        self.card, self.tokenizer, self.context = beside.card, beside.tokenizer, context
        self._passes, self._slots = passes, opening.slots
        self._ends, self._settings, self._start = beside.ends, beside.settings, beside.start
        self._handles, self._waiting = count(), list[Ongoing]()
        self._running: list[Ongoing] = []  # by row
        self.abilities = TURNS | JOINS if passes.joins else TURNS

    @property
    def free_slots(self) -> int:
        """How many more requests may be started now."""
        return self._slots - len(self._running) - len(self._waiting)

    def start(self, request: Request) -> int:
        """Admit a request; raises DataError for one that this model cannot take."""
        self._require(request)
        prompt = len(request.ids) if self._start is None else 1
        limit = min(request.max_new_tokens, self.context - prompt)
        before = list(request.ids) if self._start is None else [self._start]
        choice = choosing(request, before, limit, self._settings)
        text = TextStream(self.tokenizer, request.stop)
        one = Ongoing(next(self._handles), request, limit, choice, text)
        self._waiting.append(one)
        return one.handle

    def _require(self, request: Request) -> None:
        if self.free_slots <= 0:
            raise DataError(f"all {self._slots} slots are taken; step until one is free.")
        if not 0 < len(request.ids) < self.context:
            raise DataError(f"a prompt of {len(request.ids)} tokens; this session takes 1 to "
                            f"{self.context - 1}.")  # fmt: skip
        if request.max_new_tokens < 1:
            raise DataError("max_new_tokens must be at least 1.")
        if request.num_beams > 1:
            raise DataError("this engine has no beams; leave num_beams at 1.")

    def step(self) -> list[Step]:
        """A token more of every answer; who waits is taken in where the engine lets rows join."""
        steps = []
        if self._running:
            going = self._running[:]
            told = self._passes.advance([one.last for one in going], _plain(going))
            steps += self._told(told, going)
        if self._waiting and (self._passes.joins or not self._running):
            begun, self._waiting = self._waiting, []
            told = self._passes.take([one.request.ids for one in begun], _plain(begun))
            self._running += begun
            steps += self._told(told, begun)
        return steps

    def drop(self, handle: int) -> None:
        """Forget a request; nothing happens where it is finished already."""
        self._waiting = [one for one in self._waiting if one.handle != handle]
        for one in self._running:
            if one.handle == handle:
                self._leave(one)
                return

    def logits(self, rows: Sequence[Sequence[int]]) -> list[np.ndarray[Any, Any]]:
        """Per row (num_tokens, vocabulary); (1, vocabulary) of an encoder–decoder."""
        return [self._passes.read(row) for row in rows]

    def embed(self, rows: Sequence[Sequence[int]]) -> list[np.ndarray[Any, Any]]:
        """Refused: this engine gives no hidden states of a generating model."""
        raise DataError("this engine gives no embeddings; use engine=transformers.")

    def close(self) -> None:
        """Give memory back."""
        self._running, self._waiting = [], []
        self._passes.close()

    def _told(self, told: list[Tensor | int], answers: list[Ongoing]) -> list[Step]:
        tokens = chosen(told, [one.choosing for one in answers])
        steps = [one.take(token, self._ends) for one, token in zip(answers, tokens, strict=True)]
        for one, step in zip(answers, steps, strict=True):
            if step.finish is not None:
                self._leave(one)
        return steps

    def _leave(self, one: Ongoing) -> None:
        row = self._running.index(one)
        self._passes.remove(row)
        last = self._running.pop()
        if row < len(self._running):
            self._running[row] = last


def _plain(answers: Sequence[Ongoing]) -> list[bool]:
    return [one.choosing.is_plain for one in answers]
