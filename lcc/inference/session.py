"""Session: the protocol by which every inference engine is asked, its requests and its answers."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from lcc.config.cards import decode, find_card
from lcc.core.errors import DataError, RecipeError
from lcc.tasks.task import Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lcc.core.types import Array
    from lcc.models.card import Card
    from lcc.tasks.task import Decode

Ability = Literal[
    "beams",
    "sampling",
    "min_p",
    "repetition_penalty",
    "logprobs",
    "logits",
    "embed",
    "classify",
    "continuous",
]
"""What a session can be asked for beyond greedy answers; `continuous`: joins at any turn."""

# Field of `Sampling` → what an engine must have for any but its default; top_k and top_p draw, too.
SAMPLING_ABILITIES: dict[str, Ability] = {
    "temperature": "sampling",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
}


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
        """Advance every admitted request by at least a token; those that finished are removed."""
        ...

    def drop(self, handle: int) -> None:
        """Drop a request that nobody waits for any more."""
        ...

    def logits(self, rows: Sequence[Sequence[int]]) -> list[Array]:
        """Per row (num_tokens, vocabulary) for a decoder, (num_labels,) for a classifier."""
        ...

    def embed(self, rows: Sequence[Sequence[int]]) -> list[Array]:
        """Per row one vector (hidden_size,): the mean of its last hidden states."""
        ...

    def close(self) -> None:
        """Give memory and processes back."""
        ...


class BaseSession:
    """Slots, and the checks that a request passes before an engine takes it."""

    abilities: frozenset[Ability] = frozenset()
    with_beams: frozenset[Ability] = frozenset({"beams"})  # what may be asked for beside them

    def __init__(self, card: Card, tokenizer: PreTrainedTokenizerBase, *, context: int, slots: int) -> None:
        self.card, self.tokenizer, self.context = card, tokenizer, context
        self._slots, self._handles = slots, count()

    def _num_admitted(self) -> int:
        raise NotImplementedError

    @property
    def free_slots(self) -> int:
        """How many more requests may be started now."""
        return self._slots - self._num_admitted()

    def _require(self, request: Request) -> None:
        """Raise DataError for a request that this session cannot take."""
        if self.card.head not in ("causal", "seq2seq"):
            raise DataError(f"model {self.card.name!r} ({self.card.head}) writes no answers.")
        if self.free_slots <= 0:
            raise DataError(f"all {self._slots} slots are taken; step until one is free.")
        longest = self.context - (self.card.head == "causal")
        if not 0 < len(request.ids) <= longest:
            raise DataError(f"a prompt of {len(request.ids)} tokens; this session takes 1 to {longest}.")
        if request.max_new_tokens < 1:
            raise DataError("max_new_tokens must be at least 1.")
        if lacking := request.lacking(self.abilities):
            raise DataError(self._refusal(lacking))
        if request.num_beams > 1 and (others := request.lacking(self.with_beams)):
            raise DataError(f"beams cannot be combined with {listed(others)}.")

    def _refusal(self, lacking: Sequence[Ability]) -> str:
        return f"this engine has no {' nor '.join(lacking)}; use engine=transformers."

    def logits(self, rows: Sequence[Sequence[int]]) -> list[Array]:
        """Refused by an engine that gives none."""
        raise DataError("this engine gives no logits; use engine=transformers.")

    def embed(self, rows: Sequence[Sequence[int]]) -> list[Array]:
        """Refused by an engine that gives no hidden states."""
        raise DataError("this engine gives no embeddings; use engine=transformers.")


# What is asked of an engine, and what it says: tokens in, tokens out.

Finish = Literal["stop", "length"]
"""Why an answer ended: by an end token or a stop string, or at its limit."""

GREEDY = Sampling()


@dataclass(frozen=True)
class Request:
    """One text to go on with (or, for an encoder–decoder, to answer), by its tokens.

    `sampling` at temperature 0 is greedy, and then `seed` changes nothing. `stop` strings end an
    answer and are no part of it. `logprobs` is how many likeliest tokens are reported beside each
    chosen one; -1 reports none, not even its own. `ignore_ends` generates up to the limit, for
    measuring: past an end, or, in CTranslate2, by never choosing one; beams do not.
    """

    ids: tuple[int, ...]
    max_new_tokens: int
    sampling: Sampling = GREEDY
    num_beams: int = 1
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int = -1
    ignore_ends: bool = False

    @staticmethod
    def of(decode: Decode, sampling: Sampling, ids: Sequence[int], *, limit: int, **fields: Any) -> Request:
        """A prompt answered as a task says; `fields` are further ones, in place of the task's."""
        of_task = {"sampling": sampling, "num_beams": decode.num_beams, "stop": decode.stop}
        return Request(tuple(ids), limit, **{**of_task, **fields})

    def lacking(self, abilities: Collection[Ability]) -> list[Ability]:
        """What this asks for and an engine of these abilities has not."""
        wanted: list[Ability] = [
            ability
            for name, ability in SAMPLING_ABILITIES.items()
            if getattr(self.sampling, name) != getattr(GREEDY, name)
        ]
        wanted += ["beams"] if self.num_beams > 1 else []
        wanted += ["logprobs"] if self.logprobs >= 0 else []
        return [ability for ability in wanted if ability not in abilities]


def listed(abilities: Sequence[Ability]) -> str:
    """Abilities by the fields that ask for them."""
    fields = {ability: name for name, ability in SAMPLING_ABILITIES.items()}
    return " and ".join(fields.get(ability, ability) for ability in abilities)


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
