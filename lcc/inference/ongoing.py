"""One answer under way: what its next token adds to it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from lcc.inference.choosing import Choosing
from lcc.inference.requests import Request, Step, Token
from lcc.inference.streaming import TextStream


@dataclass
class Ongoing:
    """A request that was admitted; `last` is its newest token, which no forward has read yet."""

    handle: int
    request: Request
    limit: int
    choosing: Choosing
    text: TextStream
    last: int = -1
    num: int = 0

    def take(self, token: Token, ends: Collection[int]) -> Step:
        """One more token; `ends` are the tokens that end an answer and do not stand in it."""
        if token.id in ends and not self.request.ignore_ends:
            return Step(self.handle, self.text.finish(), finish="stop")
        self.last, self.num = token.id, self.num + 1
        self.choosing.seen.append(token.id)
        text = self.text.push(token.id)
        if self.text.stopped:
            return Step(self.handle, text, (token,), "stop")
        if self.num < self.limit:
            return Step(self.handle, text, (token,))
        text += self.text.finish()
        return Step(self.handle, text, (token,), "stop" if self.text.stopped else "length")
