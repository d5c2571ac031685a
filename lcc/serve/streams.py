"""Answers over a connection that may end at any moment: whole ones, and streams of events."""

from __future__ import annotations

import asyncio
import json
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from http import HTTPStatus
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from lcc.serve.refusals import Gone, refusal_of

T = TypeVar("T")


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What `work` gives; it is cancelled, and Gone raised, when the client has hung up."""
    return await _first(work, request.receive)


async def _first(work: Coroutine[Any, Any, T], receive: Receive) -> T:
    worker = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({worker, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if not worker.done():
            raise Gone
        return worker.result()
    finally:
        for task in (worker, watcher):
            task.cancel()
        await asyncio.gather(worker, watcher, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Server-sent events, one JSON object each, `[DONE]` last; `leave` is called however it ends.

    An error after the first byte cannot change the status any more: it is told as an event.
    """

    media_type = "text/event-stream"

    def __init__(
        self, events: AsyncIterator[Any], leave: Callable[[], None], *, ends: str | None = "[DONE]"
    ) -> None:
        self.status_code, self.background = 200, None
        self._events, self._leave, self._ends = events, leave, ends
        self.init_headers({"Cache-Control": "no-store", "X-Accel-Buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await _first(self._send_all(send), receive)
        except Gone:
            scope["usage"]["gone"] = True
        finally:
            self._leave()

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        try:
            async for event in self._events:
                await _tell(send, json.dumps(event, ensure_ascii=False))
        except Exception as error:
            refusal = refusal_of(error)
            if refusal.status == HTTPStatus.INTERNAL_SERVER_ERROR:
                traceback.print_exc()  # the sentence says that the log tells why
            await _tell(send, json.dumps(refusal.body))
        if self._ends is not None:
            await _tell(send, self._ends)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _tell(send: Send, data: str) -> Awaitable[None]:
    body = f"data: {data}\n\n".encode()
    return send({"type": "http.response.body", "body": body, "more_body": True})
