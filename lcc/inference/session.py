"""A model in memory that answers, whichever engine runs it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from lcc.config.cards import decode, find_card
from lcc.core.errors import RecipeError

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedTokenizerBase

    from lcc.models.card import Card

Ability = Literal[
    "beams", "sampling", "logprobs", "logits", "embed", "classify", "continuous", "repetition_penalty"
]
"""What a session can be asked for beyond greedy answers; `continuous`: joins at any turn."""


@dataclass(frozen=True)
class Opening:
    """How a session is opened.

    `threads` of this process; at most `slots` answers at once, each of at most `context` tokens,
    prompt included (None: as many as the model takes). `prefix_mb` megabytes of what was read may
    be kept for prompts that begin so (0: nothing); llama.cpp keeps what fits into its slots.
    """

    threads: int
    slots: int = 8
    context: int | None = None
    device: str = "cpu"
    dtype: str = "float32"
    prefix_mb: int = 0


class Session(Protocol):
    """A model in memory that answers; used by one thread.

    A turn goes: `start` requests while `free_slots`, `step` until none is left, `drop` who left.
    """

    card: Card
    tokenizer: PreTrainedTokenizerBase
    abilities: frozenset[Ability]
    context: int  # most tokens of one answer, prompt included

    @property
    def free_slots(self) -> int:
        """How many more requests may be started now."""
        ...

    def start(self, request: Request) -> int:
        """Admit a request and give its handle; raises DataError for one that cannot be taken."""
        ...

    def step(self) -> list[AnswerStep]:
        """Advance every admitted request by at least a token; those that finished are forgotten."""
        ...

    def drop(self, handle: int) -> None:
        """Forget a request that nobody waits for any more."""
        ...

    def logits(self, rows: Sequence[Sequence[int]]) -> list[np.ndarray[Any, Any]]:
        """Per row (num_tokens, vocabulary) for a decoder, (num_labels,) for a classifier."""
        ...

    def embed(self, rows: Sequence[Sequence[int]]) -> list[np.ndarray[Any, Any]]:
        """Per row one vector (hidden_size,): the mean of its last hidden states."""
        ...

    def close(self) -> None:
        """Give memory and processes back."""
        ...


# -----------------------------------------------------------------------------
# What is asked of an engine, and what it says: tokens in, tokens out.


Finish = Literal["stop", "length"]
"""Why an answer ended: by an end token or a stop string, or at its limit."""


@dataclass(frozen=True)
class Request:
    """One text to go on with (or, for an encoder–decoder, to answer), by its tokens.

    `temperature` 0 is greedy, and then `top_k`, `top_p` and `seed` say nothing; `top_k` 0 is all.
    `stop` strings end an answer and do not stand in it. `logprobs` is how many likeliest tokens are
    told beside each chosen one; -1 tells none, not even its own. `ignore_ends` goes on to the
    limit, for measuring: past an end, or, in CTranslate2, by never saying one; beams do not.
    """

    ids: tuple[int, ...]
    max_new_tokens: int
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    num_beams: int = 1
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int = -1
    ignore_ends: bool = False


@dataclass(frozen=True)
class Token:
    """One token of an answer; log-probabilities are natural and of the unchanged distribution."""

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class AnswerStep:
    """What one turn added to one answer.

    `text` is what may be shown now: never half a character, nor the beginning of a stop string.
    `finish` is set on the last step of an answer, which may carry no token.
    """

    handle: int
    text: str = ""
    tokens: tuple[Token, ...] = ()
    finish: Finish | None = None


# -----------------------------------------------------------------------------
# Whole answers from a session: its turns taken for a list of prompts.


@dataclass
class GeneratedAnswer:
    """An answer that ended."""

    text: str = ""
    tokens: list[Token] = field(default_factory=list)
    finish: Finish = "length"

    @property
    def ids(self) -> list[int]:
        """Its tokens, without the one that ended it."""
        return [token.id for token in self.tokens]


def greedy(
    session: Session, prompts: Sequence[Sequence[int]], max_new_tokens: int, *, logprobs: int = -1
) -> list[GeneratedAnswer]:
    """The likeliest answer to each prompt, in order."""
    asked = [Request(tuple(prompt), max_new_tokens, logprobs=logprobs) for prompt in prompts]
    return answers(session, asked)


def answers(session: Session, requests: Sequence[Request]) -> list[GeneratedAnswer]:
    """The answer to each request, in order; as many at once as the session takes."""
    answered = [GeneratedAnswer() for _ in requests]
    running: dict[int, GeneratedAnswer] = {}
    waiting = list(zip(requests, answered, strict=True))[::-1]
    while waiting or running:
        while waiting and session.free_slots > 0:
            request, answer = waiting.pop()
            running[session.start(request)] = answer
        for step in session.step():
            answer = running[step.handle]
            answer.text += step.text
            answer.tokens += step.tokens
            if step.finish is not None:
                answer.finish = step.finish
                del running[step.handle]
    return answered


# -----------------------------------------------------------------------------
# An engine by its word, or by `{name: …, option: …}`, and a session of it.


def named(word: str | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Name and options, checked; raises RecipeError with the nearest name or key."""
    node = {"name": word} if isinstance(word, str) else dict(word)
    name = node.pop("name", None)
    if not isinstance(name, str):
        raise RecipeError("engine: expected a name, or a mapping with `name:`.")
    decode(find_card("engines", name), node, "engine")
    return name, node


def opened(name: str, options: Mapping[str, Any], folder: Path, opening: Opening) -> Session:
    """The model in memory; `folder` is in the engine's own format."""
    engine: Any = decode(find_card("engines", name), dict(options), "engine")
    session: Session = engine.open(folder, opening)
    return session
