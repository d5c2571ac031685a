"""Our own session: a module in this process, whose requests join and leave at any turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any

import torch

from lcc.core.decode import decode
from lcc.core.errors import DataError
from lcc.engine.decoding import answer, demanded_settings, eos_ids
from lcc.engine.scoring import context_length
from lcc.inference import reading
from lcc.inference.choosing import choosing, chosen
from lcc.inference.joining import goes_on, joins
from lcc.inference.ongoing import Ongoing
from lcc.inference.passes import passes
from lcc.inference.prefixes import Prefixes
from lcc.inference.requests import Request, Step, Token
from lcc.inference.sessions import Ability, Opening
from lcc.inference.streaming import TextStream
from lcc.parts.adapters import is_prompt
from lcc.parts.task import Decode

if TYPE_CHECKING:
    from torch import Tensor

    from lcc.parts.model import Bundle

TURN_TOKENS = 2048  # of prompts taken in by one forward, padding included
READS: dict[str, frozenset[Ability]] = {
    "classify": frozenset({"classify", "logits", "embed"}),
    "embed": frozenset({"embed"}),
    "masked": frozenset({"logits", "embed"}),
    "paired": frozenset({"logits", "embed"}),
    "extract": frozenset({"embed"}),  # answers are found by what knows the passage
    "transcribe": frozenset(),  # see inference.listening
}
WHOLE: frozenset[Ability] = frozenset({"beams", "logits", "embed"})
TURNS: frozenset[Ability] = frozenset({"sampling", "logprobs", "continuous", "repetition_penalty"})


@dataclass
class _Queue:
    """Admitted, not begun."""

    waiting: list[Ongoing] = field(default_factory=list)
    whole: list[Ongoing] = field(default_factory=list)


class InProcessSession:
    """A loaded module that answers; see `inference.sessions.Session` for the contract."""

    def __init__(self, bundle: Bundle, module: Any, opening: Opening) -> None:
        self.card, self.tokenizer = bundle.card, bundle.tokenizer
        room = context_length(module)
        self.context = min(room, opening.context or room)
        self.told = ""  # how the module was opened, where that was chosen here
        self.module, self._slots = module.eval(), opening.slots
        self._handles, self._queue = count(), _Queue()
        self._running: list[Ongoing] = []  # by row
        self._passes: Any = None
        self.abilities = READS.get(self.card.head, WHOLE)
        if self.card.head in ("causal", "seq2seq"):
            self._ends = frozenset(eos_ids(module, self.tokenizer))
            self._settings = module.generation_config = demanded_settings(module)
            self._settings.eos_token_id = sorted(self._ends) or None
            with torch.inference_mode():
                if not is_prompt(module) and joins(partial(passes, module)):
                    self.abilities = WHOLE | TURNS
                    self._passes = passes(module, opening.slots, _prefixes(module, opening))

    @property
    def free_slots(self) -> int:
        """How many more requests may be started now."""
        return self._slots - len(self._running) - len(self._queue.waiting) - len(self._queue.whole)

    def start(self, request: Request) -> int:
        """Admit a request; raises DataError for one that this model cannot take."""
        self._require(request)
        room = self.context - (0 if self.card.head == "seq2seq" else len(request.ids))
        limit = min(request.max_new_tokens, room)
        before = [self._passes.start] if hasattr(self._passes, "start") else list(request.ids)
        one = Ongoing(next(self._handles), request, limit,
                      choosing(request, before, limit, self._settings),
                      TextStream(self.tokenizer, request.stop))  # fmt: skip
        is_whole = self._passes is None or request.num_beams > 1
        (self._queue.whole if is_whole else self._queue.waiting).append(one)
        return one.handle

    def _require(self, request: Request) -> None:
        if self.card.head not in ("causal", "seq2seq"):
            raise DataError(f"model {self.card.name!r} ({self.card.head}) writes no answers.")
        if self.free_slots <= 0:
            raise DataError(f"all {self._slots} slots are taken; step until one is free.")
        longest = self.context - (self.card.head == "causal")
        if not 0 < len(request.ids) <= longest:
            raise DataError(f"a prompt of {len(request.ids)} tokens; this model takes 1 to "
                            f"{longest}.")  # fmt: skip
        if request.max_new_tokens < 1:
            raise DataError("max_new_tokens must be at least 1.")
        alone = request.num_beams > 1 or self._passes is None
        asked = [word for word, is_asked in [
            ("temperature", request.temperature > 0), ("logprobs", request.logprobs >= 0),
            ("repetition_penalty", request.repetition_penalty != 1.0)] if is_asked]  # fmt: skip
        if alone and asked:
            why = "beams" if request.num_beams > 1 else "this model"
            raise DataError(f"{why} cannot be combined with {' and '.join(asked)}.")

    def step(self) -> list[Step]:
        """One token more of every answer; who waits is taken in first, beams run whole."""
        with torch.inference_mode():
            steps = [self._whole(one) for one in self._queue.whole]
            self._queue.whole = []
            steps += self._advance() if self._running else []
            return steps + self._take_in()

    def drop(self, handle: int) -> None:
        """Forget a request; nothing happens where it is finished already."""
        for queue in (self._queue.waiting, self._queue.whole):
            queue[:] = [one for one in queue if one.handle != handle]
        rows = [row for row, one in enumerate(self._running) if one.handle == handle]
        with torch.inference_mode():
            for row in rows:
                self._leave(row)

    def logits(self, rows: Sequence[Sequence[int]]) -> reading.Vectors:
        """Per row (num_tokens, vocabulary); (num_labels,) of a classifier."""
        return reading.logits(self.module, self.tokenizer, rows, self.card.head)

    def embed(self, rows: Sequence[Sequence[int]]) -> reading.Vectors:
        """Per row the mean of its last hidden states."""
        return reading.vectors(self.module, self.tokenizer, rows)

    def close(self) -> None:
        """Forget the module."""
        self.module = self._passes = None
        self._running, self._queue = [], _Queue()

    def _advance(self) -> list[Step]:
        logits = self._passes.advance([one.last for one in self._running])
        return self._told(logits, list(range(len(self._running))))

    def _take_in(self) -> list[Step]:
        steps: list[Step] = []
        waiting, self._queue.waiting = self._queue.waiting, []
        lengths = [self._passes.num_new(one.request.ids) for one in waiting] if waiting else []
        for batch in reading.by_length(lengths, TURN_TOKENS):
            begun = [waiting[i] for i in batch]
            logits = self._passes.take([one.request.ids for one in begun])
            rows = range(len(self._running), len(self._running) + len(begun))
            self._running += begun
            steps += self._told(logits, list(rows))
        return steps

    def _told(self, logits: Tensor, rows: list[int]) -> list[Step]:
        """Choose a token for each of `rows`; those that end leave."""
        answers = [self._running[row] for row in rows]
        tokens = chosen(logits, [one.choosing for one in answers])
        steps = [one.take(token, self._ends) for one, token in zip(answers, tokens, strict=True)]
        for row, step in sorted(zip(rows, steps, strict=True), key=lambda pair: -pair[0]):
            if step.finish is not None:
                self._leave(row)
        return steps

    def _leave(self, row: int) -> None:
        self._passes.remove(row)
        last = self._running.pop()
        if row < len(self._running):
            self._running[row] = last

    def _whole(self, one: Ongoing) -> Step:
        request = one.request
        settings = decode(Decode, {"max_new_tokens": one.limit, "num_beams": request.num_beams,
                                   "stop": list(request.stop)})  # fmt: skip
        found = answer(self.module, self.tokenizer, [list(request.ids)], decode=settings)[0]
        tokens = tuple(Token(token) for token in found.ids)
        return Step(one.handle, found.text, tokens, "stop" if found.finished else "length")


def _prefixes(module: Any, opening: Opening) -> Prefixes | None:
    """Where texts that were read are kept, if asked for and if the model goes on from them."""
    asked = Prefixes(opening.prefix_mb * 1_000_000)
    if not asked.budget or not goes_on(partial(passes, module, prefixes=Prefixes(0, least=1))):
        return None
    return asked
