"""Inference engine: continuous batching of requests, of a module in this process or of an exported model."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from lcc.config.cards import decode
from lcc.evaluation.generate import answer, demanded_settings, eos_ids
from lcc.evaluation.score import context_length
from lcc.inference import model_runner
from lcc.inference.kv_cache import PrefixCache
from lcc.inference.model_runner import runner_for
from lcc.inference.sampler import Sampler, TextStream, sample, sampler
from lcc.inference.session import Ability, AnswerStep, BaseSession, Opening, Request, Token, listed
from lcc.inference.sidecar import Sidecar
from lcc.models.adapters import is_prompt
from lcc.tasks.task import Decode

if TYPE_CHECKING:
    from lcc.core.types import Array
    from lcc.models.bundle import Bundle

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
    runner = begin(1 + len(others))
    for other in others:
        runner.take([other])
        runner.advance([1])
    logits = [runner.take([row])[-1]]
    logits += [runner.advance([1] * len(others) + [token])[-1] for token in (2, 1)]
    return torch.stack(logits)


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


class ModelRunner(Protocol):
    """What an engine does in a turn; its rows are those that were taken in, in order.

    Where `joins` is false, rows are taken in only while there are none. For a row of which `plain`
    says that nothing but its likeliest token is asked, that token may stand for its logits.
    """

    joins: bool

    def take(self, prompts: Sequence[Sequence[int]], plain: Sequence[bool]) -> Sequence[Tensor | int]:
        """A row for each prompt; logits (vocabulary,) of each one's next token."""
        ...

    def advance(self, tokens: Sequence[int], plain: Sequence[bool]) -> Sequence[Tensor | int]:
        """One more token of every row; logits (vocabulary,) of each one's next."""
        ...

    def remove(self, row: int) -> None:
        """Remove a row; the last one takes its number."""
        ...


class ScheduledSession(BaseSession):
    """Answers under way, a token of each a turn; see `inference.session.Session` for the contract."""

    def __init__(self, runner: ModelRunner | None, sidecar: Sidecar, *, context: int, slots: int) -> None:
        super().__init__(sidecar.card, sidecar.tokenizer, context=context, slots=slots)
        self._runner: Any = runner
        self._ends, self._settings, self._start = sidecar.ends, sidecar.settings, sidecar.start
        self._waiting = list[RunningSequence]()
        self._running = list[RunningSequence]()  # by row

    def _num_admitted(self) -> int:
        return len(self._running) + len(self._waiting)

    def start(self, request: Request) -> int:
        """Admit a request; raises DataError for one that this model cannot take."""
        self._require(request)
        before = list(request.ids) if self._start is None else [self._start]
        # An encoder-decoder's answer begins with its start token, which takes a place only in exports.
        limit = min(request.max_new_tokens, self._room(len(before)))
        one = RunningSequence(
            next(self._handles),
            request,
            limit,
            sampler(request, before, limit, self._settings),
            TextStream(self.tokenizer, request.stop),
        )
        self._admit(one)
        return one.handle

    def _room(self, num_before: int) -> int:
        return self.context - num_before

    def _admit(self, one: RunningSequence) -> None:
        self._waiting.append(one)

    def step(self) -> list[AnswerStep]:
        """A token more of every answer; who waits is taken in where the engine lets rows join."""
        steps = list[AnswerStep]()
        with torch.inference_mode():
            if going := self._running[:]:
                logits = self._runner.advance([one.last for one in going], _plain(going))
                steps += self._sampled(logits, going)
            if self._waiting and (self._runner.joins or not self._running):
                waiting, self._waiting = self._waiting, []
                for begun in self._batches(waiting):
                    logits = self._runner.take([one.request.ids for one in begun], _plain(begun))
                    self._running += begun
                    steps += self._sampled(logits, begun)
        return steps

    def _batches(self, waiting: list[RunningSequence]) -> list[list[RunningSequence]]:
        """Those whose prompts are read together."""
        return [waiting]

    def drop(self, handle: int) -> None:
        """Drop a request; nothing happens where it is finished already."""
        self._waiting = [one for one in self._waiting if one.handle != handle]
        for one in self._running[:]:
            if one.handle == handle:
                with torch.inference_mode():
                    self._leave(one)

    def close(self) -> None:
        """Give memory back."""
        self._running, self._waiting = [], []

    def _sampled(self, logits: Any, answers: list[RunningSequence]) -> list[AnswerStep]:
        """A token for each of `answers`; those that end leave."""
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


TURN_TOKENS = 2048  # of prompts taken in by one forward, padding included
READS: dict[str, frozenset[Ability]] = {
    "classify": frozenset({"classify", "logits", "embed"}),
    "embed": frozenset({"embed"}),
    "masked": frozenset({"logits", "embed"}),
    "paired": frozenset({"logits", "embed"}),
    "extract": frozenset({"embed"}),  # answers are found by what knows the passage
    "transcribe": frozenset(),  # see inference.backends.whisper
}
WHOLE: frozenset[Ability] = frozenset({"beams", "logits", "embed"})
SAMPLES: frozenset[Ability] = frozenset({"sampling", "min_p", "repetition_penalty", "logprobs"})
EXPORTED: frozenset[Ability] = SAMPLES | {"logits"}
JOINS: frozenset[Ability] = frozenset({"continuous"})


class InProcessSession(ScheduledSession):
    """A loaded module that answers; beams, and models whose rows cannot join, answer whole."""

    def __init__(self, bundle: Bundle, module: Any, opening: Opening) -> None:
        card, room = bundle.card, context_length(module)
        self.module, self.note = module.eval(), ""  # how it was opened, where that was chosen here
        runner: Any = None
        ends, settings = frozenset[int](), None
        self.abilities = READS.get(card.head, WHOLE)
        if card.head in ("causal", "seq2seq"):
            ends = frozenset(eos_ids(module, bundle.tokenizer))
            settings = module.generation_config = demanded_settings(module)
            settings.eos_token_id = sorted(ends) or None
            with torch.inference_mode():
                if not is_prompt(module) and joins(partial(runner_for, module)):
                    self.abilities = WHOLE | SAMPLES | JOINS
                    runner = runner_for(module, opening.slots, _prefixes(module, opening))
        sidecar = Sidecar(card, bundle.tokenizer, settings, ends, getattr(runner, "start", None), room, ())
        super().__init__(runner, sidecar, context=min(room, opening.context or room), slots=opening.slots)
        self._whole = list[RunningSequence]()

    def _num_admitted(self) -> int:
        return super()._num_admitted() + len(self._whole)

    def _room(self, num_before: int) -> int:
        return self.context - (num_before if self.card.head == "causal" else 0)

    def _admit(self, one: RunningSequence) -> None:
        is_whole = self._runner is None or one.request.num_beams > 1
        (self._whole if is_whole else self._waiting).append(one)

    def _refusal(self, lacking: Sequence[Ability]) -> str:
        return f"this model cannot be combined with {listed(lacking)}."

    def step(self) -> list[AnswerStep]:
        """One token more of every answer; who waits is taken in, beams run whole."""
        whole, self._whole = self._whole, []
        return [self._answer(one) for one in whole] + super().step()

    def _batches(self, waiting: list[RunningSequence]) -> list[list[RunningSequence]]:
        lengths = [self._runner.num_new(one.request.ids) for one in waiting]
        return [[waiting[i] for i in batch] for batch in model_runner.by_length(lengths, TURN_TOKENS)]

    def drop(self, handle: int) -> None:
        """Drop a request; nothing happens where it is finished already."""
        self._whole = [one for one in self._whole if one.handle != handle]
        super().drop(handle)

    def logits(self, rows: Sequence[Sequence[int]]) -> list[Array]:
        """Per row (num_tokens, vocabulary); (num_labels,) of a classifier."""
        return model_runner.logits(self.module, self.tokenizer, rows, self.card.head)

    def embed(self, rows: Sequence[Sequence[int]]) -> list[Array]:
        """Per row the mean of its last hidden states."""
        return model_runner.vectors(self.module, self.tokenizer, rows)

    def close(self) -> None:
        """Release the module."""
        super().close()
        self.module, self._runner, self._whole = None, None, []

    def _answer(self, one: RunningSequence) -> AnswerStep:
        request = one.request
        settings = decode(
            Decode, {"max_new_tokens": one.limit, "num_beams": request.num_beams, "stop": list(request.stop)}
        )
        with torch.inference_mode():
            generated = answer(self.module, self.tokenizer, [list(request.ids)], decode=settings)[0]
        tokens = tuple(Token(token) for token in generated.ids)
        return AnswerStep(one.handle, generated.text, tokens, "stop" if generated.finished else "length")


def _prefixes(module: Any, opening: Opening) -> PrefixCache | None:
    """Where texts that were read are kept, if asked for and if the model goes on from them."""
    asked = PrefixCache(opening.prefix_mb * 1_000_000)
    if not asked.budget or not goes_on(partial(runner_for, module, prefixes=PrefixCache(0, least=1))):
        return None
    return asked


class ExportedRunner(ModelRunner, Protocol):
    """A ModelRunner of another tool's engine, which also reads whole texts."""

    def read(self, ids: Sequence[int]) -> Array:
        """Logits (num_tokens, vocabulary) of a whole text; of an encoder–decoder (1, vocabulary)
        of what its answer begins with."""
        ...

    def close(self) -> None:
        """Give memory back."""
        ...


class ExportedSession(ScheduledSession):
    """An export in an engine that gives the logits of each next token."""

    def __init__(self, runner: ExportedRunner, sidecar: Sidecar, opening: Opening, *, context: int) -> None:
        super().__init__(runner, sidecar, context=context, slots=opening.slots)
        self.abilities = EXPORTED | JOINS if runner.joins else EXPORTED

    def logits(self, rows: Sequence[Sequence[int]]) -> list[Array]:
        """Per row (num_tokens, vocabulary); (1, vocabulary) of an encoder–decoder."""
        return [self._runner.read(row) for row in rows]

    def close(self) -> None:
        """Give memory back."""
        super().close()
        self._runner.close()
