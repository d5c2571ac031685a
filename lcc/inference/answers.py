"""Whole answers from a session: its turns taken for a list of prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lcc.inference.requests import Finish, Request, Token

if TYPE_CHECKING:
    from lcc.inference.sessions import Session


@dataclass
class Answer:
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
) -> list[Answer]:
    """The likeliest answer to each prompt, in order."""
    asked = [Request(tuple(prompt), max_new_tokens, logprobs=logprobs) for prompt in prompts]
    return answers(session, asked)


def answers(session: Session, requests: Sequence[Request]) -> list[Answer]:
    """The answer to each request, in order; as many at once as the session takes."""
    found = [Answer() for _ in requests]
    running: dict[int, Answer] = {}
    waiting = list(zip(requests, found, strict=True))[::-1]
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
    return found
