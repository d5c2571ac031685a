"""A served chat grounded in the task's FAQ: entries before the model, or a person's turn."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lcc.inference.requests import Step

if TYPE_CHECKING:
    from lcc.serve.served import Served

Message = dict[str, str]


@dataclass(frozen=True)
class Handed:
    """Answers that no engine writes: the words by which a person takes over, `num` times."""

    text: str
    num: int

    async def steps(self) -> AsyncIterator[tuple[int, Step]]:
        """Each answer in one step."""
        for index in range(self.num):
            yield index, Step(index, self.text, (), "stop")

    def leave(self) -> None:
        """No slot was taken."""


async def grounded(
    served: Served, messages: Sequence[Message]
) -> tuple[list[Message], str | None]:  # fmt: skip
    """The messages as the model shall see them, and what is said in its place where it is unsure.

    Searched in a thread: the event loop must go on.
    """
    task = served.task
    if task is None or task.grounding is None:
        return list(messages), None
    found = await asyncio.to_thread(task.grounding.ground, messages)
    return found.messages, found.handover
