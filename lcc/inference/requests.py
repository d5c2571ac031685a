"""What is asked of an engine, and what it says: tokens in, tokens out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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
class Step:
    """What one turn added to one answer.

    `text` is what may be shown now: never half a character, nor the beginning of a stop string.
    `finish` is set on the last step of an answer, which may carry no token.
    """

    handle: int
    text: str = ""
    tokens: tuple[Token, ...] = ()
    finish: Finish | None = None
