"""Conversation: a chat by the model's own template, turns in order, the oldest dropped."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lcc.core import signals
from lcc.core.errors import DataError
from lcc.inference.batch import row_seed
from lcc.inference.session import Request
from lcc.tasks.encode import plain_ids

if TYPE_CHECKING:
    from lcc.inference.session import Session
    from lcc.tasks.faq import Grounded, Grounding
    from lcc.tasks.task import Decode, Sampling


@dataclass
class Conversation:
    """`turns` as the template takes them; `system`, where there is one, is never dropped."""

    session: Session
    decode: Decode
    sampling: Sampling
    seed: int = 0
    system: str = ""
    grounding: Grounding | None = None
    turns: list[dict[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.session.tokenizer.chat_template:
            raise DataError(
                f"model {self.session.card.name!r} has no chat template; give it a task instead of --chat."
            )

    def reply(self, text: str) -> Iterator[str]:
        """The answer to one more turn, in pieces as it is made."""
        self.turns.append({"role": "user", "content": text})
        pieces = []
        handover = self._grounded().handover if self.grounding else None
        for piece in self._generate(self._ids()) if handover is None else [handover]:
            pieces.append(piece)
            yield piece
        self.turns.append({"role": "assistant", "content": "".join(pieces).strip()})

    def forget(self) -> None:
        """Begin anew."""
        self.turns.clear()

    def _ids(self) -> list[int]:
        """The conversation's tokens; old turns go, two at a time, until an answer has room."""
        room = max(1, self.session.context - self.decode.max_new_tokens)
        while True:
            ids = plain_ids(self._text(), self.session.tokenizer)
            if len(ids) <= room or len(self.turns) < 3:
                return ids
            del self.turns[:2]

    def _text(self) -> str:
        turns = self._grounded().messages if self.grounding else self._shown()
        return str(
            self.session.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        )

    def _shown(self) -> list[dict[str, str]]:
        first = [{"role": "system", "content": self.system}] if self.system else []
        return first + self.turns

    def _grounded(self) -> Grounded:
        assert self.grounding is not None
        return self.grounding.ground(self._shown())

    def _generate(self, ids: list[int]) -> Iterator[str]:
        seed, limit = row_seed(self.seed, len(self.turns)), self.decode.max_new_tokens
        handle = self.session.start(Request.of(self.decode, self.sampling, ids, limit=limit, seed=seed))
        finished = False
        try:
            while not finished:
                signals.check("infer")
                for step in self.session.step():
                    finished = step.finish is not None
                    if step.text:
                        yield step.text
        finally:
            if not finished:
                self.session.drop(handle)
