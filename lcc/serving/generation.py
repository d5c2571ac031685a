"""Generation of a request's answers: body → session requests, steps → texts and log-probabilities."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from lcc.inference.session import AnswerStep, Request, Token
from lcc.serving.engine_thread import StepQueue
from lcc.serving.http import EventStream
from lcc.serving.model import Served
from lcc.serving.protocol import (
    SEEDS,
    Finish,
    Generating,
    LikelyToken,
    TextLogprobs,
    TokenLogprobs,
    TokenUsage,
    TranslateBody,
)
from lcc.tasks.task import Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


COLDEST = 0.01  # below it logits overflow, and the likeliest token is all there is anyway
LEAST_SHARE = 1e-6  # the likeliest token, however little is asked for
LEAST_LOGPROB = -9999.0  # JSON has no infinity


def request_of(
    body: Generating, ids: Sequence[int], served: Served, *, limit: int, number: int, logprobs: int
) -> Request:
    """The `number`-th answer to one prompt of at most `limit` new tokens."""
    samples = "sampling" in served.session.abilities
    usual = served.options.temperature
    usual = (1.0 if samples else 0.0) if usual is None else usual
    # The fields of `Sampling` have the names of the body's.
    wishes = {f.name: getattr(body, f.name) for f in fields(Sampling)} | {
        "temperature": usual if body.temperature is None else body.temperature
    }
    sampling = Sampling(**{name: wish for name, wish in wishes.items() if wish is not None})
    return Request(
        ids=tuple(ids),
        max_new_tokens=room(served, len(ids), limit),
        sampling=replace(
            sampling,
            temperature=sampling.temperature if sampling.temperature >= COLDEST else 0.0,
            top_p=max(LEAST_SHARE, sampling.top_p),
        ),
        seed=None if body.seed is None else (body.seed + number) % SEEDS,
        stop=body.stops,
        logprobs=logprobs,
    )


def room(served: Served, num_prompt: int, limit: int) -> int:
    """How many new tokens there is room for behind a prompt: at most `limit`, at least one."""
    is_decoder = served.session.card.head == "causal"
    return max(1, min(limit, served.context - (num_prompt if is_decoder else 0)))


@dataclass
class AnswerText:
    """One answer, put together from its steps."""

    text: str = ""
    tokens: list[Token] = field(default_factory=list)
    finish: Finish | None = None

    def add(self, step: AnswerStep) -> None:
        self.text += step.text
        self.tokens += step.tokens
        self.finish = step.finish or self.finish


@dataclass
class Generation:
    """The answers to one HTTP request: gathered, or streamed step by step; counts their tokens."""

    served: Served
    http: HttpRequest
    num_prompt: int
    answers: StepQueue | HandoverAnswers
    num_answers: int
    num_new: int = 0
    begun: float = field(default_factory=time.perf_counter)

    async def steps(self) -> AsyncIterator[tuple[int, AnswerStep]]:
        """As Answers, counting."""
        meters = self.served.meters
        meters.prompt_tokens.inc(self.num_prompt)
        try:
            async for index, step in self.answers.steps():
                if not self.num_new and step.tokens:
                    meters.first_token.observe(time.perf_counter() - self.begun)
                self.num_new += len(step.tokens)
                yield index, step
        finally:
            meters.new_tokens.inc(self.num_new)
            self.http.scope["usage"].update(self.usage)

    async def first(self) -> AsyncIterator[tuple[int, AnswerStep]]:
        """`steps` once the first is there: until then a refusal can still be a status."""
        steps = self.steps()
        head = await anext(steps)

        async def chained() -> AsyncIterator[tuple[int, AnswerStep]]:
            yield head
            async for item in steps:
                yield item

        return chained()

    async def all(self) -> list[AnswerText]:
        """Every answer, whole."""
        answers = [AnswerText() for _ in range(self.num_answers)]
        async for index, step in self.steps():
            answers[index].add(step)
        return answers

    @property
    def usage(self) -> TokenUsage:
        """What was read and written so far."""
        return {
            "prompt_tokens": self.num_prompt,
            "completion_tokens": self.num_new,
            "total_tokens": self.num_prompt + self.num_new,
        }


def begin(served: Served, http: HttpRequest, requests: Sequence[Request], num_prompt: int) -> Generation:
    """Let the engine write; raises Refusal where too many wait already."""
    answers = StepQueue(served.engine_thread, requests)
    return Generation(served, http, num_prompt, answers, len(requests))


async def respond(
    generation: Generation,
    body: Generating | TranslateBody,
    *,
    events: Callable[[AsyncIterator[tuple[int, AnswerStep]]], AsyncIterator[Any]],
    reply: Callable[[list[AnswerText]], Any],
) -> Response:
    """A stream of events where the body asks for one, else one reply; slots are left either way."""
    if body.stream:
        try:
            steps = await generation.first()
        except BaseException:
            generation.answers.leave()
            raise
        return EventStream(events(steps), generation.answers.leave)
    try:
        answers = await generation.all()
    finally:
        generation.answers.leave()
    return JSONResponse(reply(answers))


def new_id(prefix: str) -> str:
    """A name for one reply."""
    return f"{prefix}-{secrets.token_hex(12)}"


@dataclass(frozen=True)
class TokenText:
    """Tokens as text, for log-probabilities."""

    tokenizer: PreTrainedTokenizerBase

    def token(self, number: int) -> str:
        """One token, its leading space included; half a character is spelled U+FFFD."""
        piece = self.tokenizer.convert_ids_to_tokens(number)
        if isinstance(piece, str) and "▁" in piece:
            return piece.replace("▁", " ")
        return str(self.tokenizer.decode([number]))

    def likely(self, number: int, logprob: float | None) -> LikelyToken:
        """A token as the chat endpoint reports it."""
        text = self.token(number)
        spelled = None if "\ufffd" in text else list(text.encode())
        return {"token": text, "logprob": finite(logprob), "bytes": spelled}

    def token_logprobs(self, token: Token) -> TokenLogprobs:
        """A token of an answer with its alternatives."""
        top = [self.likely(number, logprob) for number, logprob in token.top]
        return {**self.likely(token.id, token.logprob), "top_logprobs": top}

    def completion(self, tokens: Sequence[Token], offset: int, num_top: int) -> TextLogprobs:
        """Tokens as the completions endpoint reports them; the first begins at `offset`."""
        words = [self.token(token.id) for token in tokens]
        offsets = [offset + sum(map(len, words[:i])) for i in range(len(words))]
        top: list[dict[str, float]] | None = None
        if num_top:
            top = [{self.token(n): finite(p) for n, p in token.top} for token in tokens]
        return {
            "tokens": words,
            "token_logprobs": [finite(t.logprob) for t in tokens],
            "top_logprobs": top,
            "text_offset": offsets,
        }


def finite(logprob: float | None) -> float:
    """A log-probability that JSON can hold."""
    return LEAST_LOGPROB if logprob is None else max(float(logprob), LEAST_LOGPROB)


def chunk(kind: str, head: dict[str, Any], choices: list[Any], **more: Any) -> dict[str, Any]:
    """One event of a stream."""
    return {**head, "object": kind, "choices": choices, **more}


# A served chat grounded in the task's FAQ: entries before the model, or a person's turn.

Message = dict[str, str]


@dataclass(frozen=True)
class HandoverAnswers:
    """Answers that no engine writes: the words by which a person takes over, `num` times."""

    text: str
    num: int

    async def steps(self) -> AsyncIterator[tuple[int, AnswerStep]]:
        """Each answer in one step."""
        for index in range(self.num):
            yield index, AnswerStep(index, self.text, (), "stop")

    def leave(self) -> None:
        """No slot was taken."""


async def grounded(served: Served, messages: Sequence[Message]) -> tuple[list[Message], str | None]:
    """The messages as the model shall see them, and the hand-over text in its place where it is unsure.

    Searched in a thread: the event loop must go on.
    """
    task = served.task
    if task is None or task.grounding is None:
        return list(messages), None
    result = await asyncio.to_thread(task.grounding.ground, messages)
    return result.messages, result.handover
