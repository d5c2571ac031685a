"""Our own session: a module in this process, whose requests join and leave at any turn."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from lcc.config.cards import decode
from lcc.core.errors import DataError
from lcc.evaluation.generate import answer, demanded_settings, eos_ids
from lcc.evaluation.score import context_length
from lcc.inference import model_runner
from lcc.inference.kv_cache import PrefixCache
from lcc.inference.model_runner import runner_for
from lcc.inference.sampler import Sampler, TextStream, sample, sampler
from lcc.inference.session import Ability, AnswerStep, Opening, Request, Token
from lcc.models.adapters import is_prompt
from lcc.tasks.task import Decode

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from lcc.inference.sidecar import Sidecar
    from lcc.models.bundle import Bundle

# -----------------------------------------------------------------------------
# Whether answers may be written together: asked of the model itself.


def joins(begin: Callable[[int], Any]) -> bool:
    """Whether a row that joins another mid-way says what it says alone.

    `begin` gives fresh passes for so many rows, whose `take` and `advance` give logits by row.
    """
    first, second = [1, 2, 3, 1], [2, 1]
    return _says_the_same(begin, [(first, second), (second, first)])


def goes_on(begin: Callable[[int], Any]) -> bool:
    """The same of a row that begins as another did, whose keys and values are copied for it."""
    return _says_the_same(begin, [([1, 2, 3, 1, 2], [1, 2, 3, 2])])


def _says_the_same(begin: Callable[[int], Any], cases: list[tuple[list[int], list[int]]]) -> bool:
    """Of each row and the one that was there before it."""
    try:
        alone = [_steps_of(begin, row, others=[]) for row, _ in cases]
        together = [_steps_of(begin, row, others=[other]) for row, other in cases]
    except (AttributeError, TypeError, ValueError, RuntimeError, IndexError, KeyError):
        return False  # Its cache is of another kind.
    scale = float(torch.stack(alone).abs().max())
    return all(
        torch.allclose(a, b, rtol=0, atol=1e-3 * scale + 1e-6) for a, b in zip(alone, together, strict=True)
    )


def _steps_of(begin: Callable[[int], Any], row: list[int], others: list[list[int]]) -> Tensor:
    """Logits (3, vocabulary) of a row's prompt and two tokens more; others were there before it."""
    runner_for = begin(1 + len(others))
    for other in others:
        runner_for.take([other])
        runner_for.advance([1])
    logits = [runner_for.take([row])[-1]]
    logits += [runner_for.advance([1] * len(others) + [token])[-1] for token in (2, 1)]
    return torch.stack(logits)


# -----------------------------------------------------------------------------
# One answer under way: what its next token adds to it.


@dataclass
class RunningSequence:
    """A request that was admitted; `last` is its newest token, which no forward has read yet."""

    handle: int
    request: Request
    limit: int
    sampler: Sampler
    text: TextStream
    last: int = -1
    num: int = 0

    def take(self, token: Token, ends: Collection[int]) -> AnswerStep:
        """One more token; `ends` are the tokens that end an answer and do not stand in it."""
        if token.id in ends and not self.request.ignore_ends:
            return AnswerStep(self.handle, self.text.finish(), finish="stop")
        self.last, self.num = token.id, self.num + 1
        self.sampler.seen.append(token.id)
        text = self.text.push(token.id)
        if self.text.stopped:
            return AnswerStep(self.handle, text, (token,), "stop")
        if self.num < self.limit:
            return AnswerStep(self.handle, text, (token,))
        text += self.text.finish()
        return AnswerStep(self.handle, text, (token,), "stop" if self.text.stopped else "length")


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
CONTINUOUS: frozenset[Ability] = frozenset({"sampling", "logprobs", "continuous", "repetition_penalty"})


@dataclass
class _Queue:
    """Admitted, not begun."""

    waiting: list[RunningSequence] = field(default_factory=list)
    whole: list[RunningSequence] = field(default_factory=list)


class InProcessSession:
    """A loaded module that answers; see `inference.sessions.Session` for the contract."""

    def __init__(self, bundle: Bundle, module: Any, opening: Opening) -> None:
        self.card, self.tokenizer = bundle.card, bundle.tokenizer
        room = context_length(module)
        self.context = min(room, opening.context or room)
        self.note = ""  # how the module was opened, where that was chosen here
        self.module, self._slots = module.eval(), opening.slots
        self._handles, self._queue = count(), _Queue()
        self._running: list[RunningSequence] = []  # by row
        self._runner: Any = None
        self.abilities = READS.get(self.card.head, WHOLE)
        if self.card.head in ("causal", "seq2seq"):
            self._ends = frozenset(eos_ids(module, self.tokenizer))
            self._settings = module.generation_config = demanded_settings(module)
            self._settings.eos_token_id = sorted(self._ends) or None
            with torch.inference_mode():
                if not is_prompt(module) and joins(partial(runner_for, module)):
                    self.abilities = WHOLE | CONTINUOUS
                    self._runner = runner_for(module, opening.slots, _prefixes(module, opening))

    @property
    def free_slots(self) -> int:
        """How many more requests may be started now."""
        return self._slots - len(self._running) - len(self._queue.waiting) - len(self._queue.whole)

    def start(self, request: Request) -> int:
        """Admit a request; raises DataError for one that this model cannot take."""
        self._require(request)
        room = self.context - (0 if self.card.head == "seq2seq" else len(request.ids))
        limit = min(request.max_new_tokens, room)
        before = [self._runner.start] if hasattr(self._runner, "start") else list(request.ids)
        one = RunningSequence(
            next(self._handles),
            request,
            limit,
            sampler(request, before, limit, self._settings),
            TextStream(self.tokenizer, request.stop),
        )
        is_whole = self._runner is None or request.num_beams > 1
        (self._queue.whole if is_whole else self._queue.waiting).append(one)
        return one.handle

    def _require(self, request: Request) -> None:
        if self.card.head not in ("causal", "seq2seq"):
            raise DataError(f"model {self.card.name!r} ({self.card.head}) writes no answers.")
        if self.free_slots <= 0:
            raise DataError(f"all {self._slots} slots are taken; step until one is free.")
        longest = self.context - (self.card.head == "causal")
        if not 0 < len(request.ids) <= longest:
            raise DataError(f"a prompt of {len(request.ids)} tokens; this model takes 1 to {longest}.")
        if request.max_new_tokens < 1:
            raise DataError("max_new_tokens must be at least 1.")
        alone = request.num_beams > 1 or self._runner is None
        asked = [
            word
            for word, is_asked in [
                ("temperature", request.temperature > 0),
                ("logprobs", request.logprobs >= 0),
                ("repetition_penalty", request.repetition_penalty != 1.0),
            ]
            if is_asked
        ]
        if alone and asked:
            why = "beams" if request.num_beams > 1 else "this model"
            raise DataError(f"{why} cannot be combined with {' and '.join(asked)}.")

    def step(self) -> list[AnswerStep]:
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

    def logits(self, rows: Sequence[Sequence[int]]) -> model_runner.Vectors:
        """Per row (num_tokens, vocabulary); (num_labels,) of a classifier."""
        return model_runner.logits(self.module, self.tokenizer, rows, self.card.head)

    def embed(self, rows: Sequence[Sequence[int]]) -> model_runner.Vectors:
        """Per row the mean of its last hidden states."""
        return model_runner.vectors(self.module, self.tokenizer, rows)

    def close(self) -> None:
        """Forget the module."""
        self.module = self._runner = None
        self._running, self._queue = [], _Queue()

    def _advance(self) -> list[AnswerStep]:
        logits = self._runner.advance([one.last for one in self._running])
        return self._steps_of(logits, list(range(len(self._running))))

    def _take_in(self) -> list[AnswerStep]:
        steps: list[AnswerStep] = []
        waiting, self._queue.waiting = self._queue.waiting, []
        lengths = [self._runner.num_new(one.request.ids) for one in waiting] if waiting else []
        for batch in model_runner.by_length(lengths, TURN_TOKENS):
            begun = [waiting[i] for i in batch]
            logits = self._runner.take([one.request.ids for one in begun])
            rows = range(len(self._running), len(self._running) + len(begun))
            self._running += begun
            steps += self._steps_of(logits, list(rows))
        return steps

    def _steps_of(self, logits: Tensor, rows: list[int]) -> list[AnswerStep]:
        """Choose a token for each of `rows`; those that end leave."""
        answers = [self._running[row] for row in rows]
        tokens = sample(logits, [one.sampler for one in answers])
        steps = [one.take(token, self._ends) for one, token in zip(answers, tokens, strict=True)]
        for row, step in sorted(zip(rows, steps, strict=True), key=lambda pair: -pair[0]):
            if step.finish is not None:
                self._leave(row)
        return steps

    def _leave(self, row: int) -> None:
        self._runner.remove(row)
        last = self._running.pop()
        if row < len(self._running):
            self._running[row] = last

    def _whole(self, one: RunningSequence) -> AnswerStep:
        request = one.request
        settings = decode(
            Decode, {"max_new_tokens": one.limit, "num_beams": request.num_beams, "stop": list(request.stop)}
        )
        generated = answer(self.module, self.tokenizer, [list(request.ids)], decode=settings)[0]
        tokens = tuple(Token(token) for token in generated.ids)
        return AnswerStep(one.handle, generated.text, tokens, "stop" if generated.finished else "length")


def _prefixes(module: Any, opening: Opening) -> PrefixCache | None:
    """Where texts that were read are kept, if asked for and if the model goes on from them."""
    asked = PrefixCache(opening.prefix_mb * 1_000_000)
    if not asked.budget or not goes_on(partial(runner_for, module, prefixes=PrefixCache(0, least=1))):
        return None
    return asked


# -----------------------------------------------------------------------------
# A session over any engine that gives the logits of the next token, a turn at a time.


TURNS: frozenset[Ability] = frozenset({"sampling", "logprobs", "repetition_penalty", "logits"})
JOINS: frozenset[Ability] = frozenset({"continuous"})


class ModelRunner(Protocol):
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


class ScheduledSession:
    """See `inference.sessions.Session` for the contract."""

    def __init__(self, runner_for: ModelRunner, beside: Sidecar, opening: Opening, *, context: int) -> None:
        self.card, self.tokenizer, self.context = beside.card, beside.tokenizer, context
        self._runner, self._slots = runner_for, opening.slots
        self._ends, self._settings, self._start = beside.ends, beside.settings, beside.start
        self._handles, self._waiting = count(), list[RunningSequence]()
        self._running: list[RunningSequence] = []  # by row
        self.abilities = TURNS | JOINS if runner_for.joins else TURNS

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
        choice = sampler(request, before, limit, self._settings)
        text = TextStream(self.tokenizer, request.stop)
        one = RunningSequence(next(self._handles), request, limit, choice, text)
        self._waiting.append(one)
        return one.handle

    def _require(self, request: Request) -> None:
        if self.free_slots <= 0:
            raise DataError(f"all {self._slots} slots are taken; step until one is free.")
        if not 0 < len(request.ids) < self.context:
            raise DataError(
                f"a prompt of {len(request.ids)} tokens; this session takes 1 to {self.context - 1}."
            )
        if request.max_new_tokens < 1:
            raise DataError("max_new_tokens must be at least 1.")
        if request.num_beams > 1:
            raise DataError("this engine has no beams; leave num_beams at 1.")

    def step(self) -> list[AnswerStep]:
        """A token more of every answer; who waits is taken in where the engine lets rows join."""
        steps = []
        if self._running:
            going = self._running[:]
            logits = self._runner.advance([one.last for one in going], _plain(going))
            steps += self._steps_of(logits, going)
        if self._waiting and (self._runner.joins or not self._running):
            begun, self._waiting = self._waiting, []
            logits = self._runner.take([one.request.ids for one in begun], _plain(begun))
            self._running += begun
            steps += self._steps_of(logits, begun)
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
        return [self._runner.read(row) for row in rows]

    def embed(self, rows: Sequence[Sequence[int]]) -> list[np.ndarray[Any, Any]]:
        """Refused: this engine gives no hidden states of a generating model."""
        raise DataError("this engine gives no embeddings; use engine=transformers.")

    def close(self) -> None:
        """Give memory back."""
        self._running, self._waiting = [], []
        self._runner.close()

    def _steps_of(self, logits: list[Tensor | int], answers: list[RunningSequence]) -> list[AnswerStep]:
        tokens = sample(logits, [one.sampler for one in answers])
        steps = [one.take(token, self._ends) for one, token in zip(answers, tokens, strict=True)]
        for one, step in zip(answers, steps, strict=True):
            if step.finish is not None:
                self._leave(one)
        return steps

    def _leave(self, one: RunningSequence) -> None:
        row = self._running.index(one)
        self._runner.remove(row)
        last = self._running.pop()
        if row < len(self._running):
            self._running[row] = last


def _plain(answers: Sequence[RunningSequence]) -> list[bool]:
    return [one.sampler.is_plain for one in answers]
