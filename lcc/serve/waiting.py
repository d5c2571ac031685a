"""The event loop's side of the engine's thread: waiting for answers, vectors and logits."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from lcc.serve.turning import Job, Ticket, Turner

if TYPE_CHECKING:
    import numpy as np

    from lcc.inference.requests import Request, Step


class Answers:
    """The answers to one HTTP request, step by step as they come; `leave` once done with them."""

    def __init__(self, turner: Turner, requests: Sequence[Request]) -> None:
        self._turner = turner
        self._events: asyncio.Queue[tuple[int, Step | Exception]] = asyncio.Queue()
        deadline = time.monotonic() + turner.queue_seconds
        self._tickets = [Ticket(request, self._teller(index), deadline)
                         for index, request in enumerate(requests)]  # fmt: skip
        turner.submit(self._tickets)

    def _teller(self, index: int) -> Callable[[Step | Exception], None]:
        return lambda what: self._events.put_nowait((index, what))

    async def steps(self) -> AsyncIterator[tuple[int, Step]]:
        """(number of the request, its step) until all are finished; raises what the engine did."""
        num_open = len(self._tickets)
        while num_open:
            index, what = await self._events.get()
            if isinstance(what, Exception):
                raise what
            num_open -= what.finish is not None
            yield index, what

    def leave(self) -> None:
        """Give the slots of unfinished answers back."""
        self._turner.leave(self._tickets)


async def computed(
    turner: Turner, kind: Literal["embed", "logits"], rows: Sequence[Sequence[int]]
) -> list[np.ndarray[Any, Any]]:
    """What the session makes of `rows`, computed together with others' rows."""
    done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def tell(what: Any) -> None:
        if done.done():
            return
        if isinstance(what, Exception):
            done.set_exception(what)
        else:
            done.set_result(what)

    job = Job(kind, rows, tell)
    turner.compute(job)
    try:
        return list(await done)
    finally:
        job.left = True
