"""HTTP middleware around every request: API key, host, size of the body, and one line of log."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import json
import secrets
import sys
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, TypeVar

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lcc.serving.model import Served, ServeOptions
from lcc.serving.protocol import GONE, ClientGone, Refusal, refusal_of

OPEN_ROUTES = ("/healthz",)
MAX_HEADERS = 100
# Nothing that is answered here may be framed, sniffed or kept; the page has a policy of its own.
ALWAYS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
USUAL = (
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
)


@dataclass
class Guard:
    """The outermost application: refuses, counts, logs; what a client sent is never logged."""

    app: ASGIApp
    served: Served
    key: str | None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        watch = _Watch(send, secrets.token_hex(8))
        scope["usage"] = {}
        try:
            refusal = self._refusal(scope)
            if refusal is None:
                await self.app(scope, receive, watch.send)
            else:
                await refusal.response()(scope, receive, watch.send)
        finally:
            self._note(scope, watch)

    def _refusal(self, scope: Scope) -> Refusal | None:
        headers, options = Headers(scope=scope), self.served.options
        size = sum(len(name) + len(value) + 4 for name, value in scope["headers"])
        if size > options.max_header_bytes or len(scope["headers"]) > MAX_HEADERS:
            return Refusal(
                431,
                f"the headers are larger than {options.max_header_bytes} bytes, or more than {MAX_HEADERS}.",
            )
        if not self._is_own_host(headers, options):
            return Refusal(
                403,
                "this server does not answer to that Host; allow it with serve.hosts.",
                code="host_not_allowed",
            )
        if self.key is not None and scope["path"] not in OPEN_ROUTES:
            return self._unknown(headers, scope)
        return None

    def _is_own_host(self, headers: Headers, options: ServeOptions) -> bool:
        """A page of another site may let its own name mean this machine; its Host betrays it."""
        if self.key is not None or not options.is_loopback:
            return True
        host = headers.get("host", "")
        name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
        return name.lower() in options.allowed_hosts

    def _unknown(self, headers: Headers, scope: Scope) -> Refusal | None:
        assert self.key is not None
        shown = shown_key(headers.get("authorization", ""))
        # Digests have one length; the comparison takes the same time wherever they differ.
        if hmac.compare_digest(_digest(shown), _digest(self.key)):
            return None
        # The page is opened by browsers, which ask for a password only when told this.
        scheme = 'Basic realm="lcc", charset="UTF-8"' if scope["path"] == "/" else "Bearer"
        return Refusal(
            401,
            "show the API key: Authorization: Bearer KEY.",
            code="invalid_api_key",
            headers={"WWW-Authenticate": scheme},
        )

    def _note(self, scope: Scope, watch: _Watch) -> None:
        usage = scope["usage"]
        status = GONE if usage.pop("gone", False) else watch.status
        # A path is logged only where it is one of ours: clients may put anything into others.
        route = getattr(scope.get("route"), "path", None) or "unknown"
        seconds = time.perf_counter() - watch.begun
        self.served.meters.requests.labels(route, str(status)).inc()
        self.served.meters.seconds.labels(route).observe(seconds)
        client = scope.get("client") or ("", 0)
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "id": watch.id,
            "client": client[0],
            "method": scope["method"][:10],
            "route": route,
            "status": status,
            "seconds": round(seconds, 4),
            **usage,
        }
        print(json.dumps(line), file=sys.stderr, flush=True)


class _Watch:
    """Passes messages on, adds headers, remembers the status."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send, self.id = send, request_id
        self.status, self.begun = GONE, time.perf_counter()

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            have = {name.lower() for name, _ in message["headers"]}
            added = [pair for pair in USUAL if pair[0] not in have]
            own = (b"x-request-id", self.id.encode())
            message = {**message, "headers": [*message["headers"], *ALWAYS, *added, own]}
        await self._send(message)


def shown_key(authorization: str) -> str:
    """The key in an Authorization header: a bearer token, or a basic password (from browsers)."""
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).decode().partition(":")[2]
        except (binascii.Error, ValueError):
            return ""
    return ""


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()


# Answers over a connection that may end at any moment: whole ones, and streams of events.

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
            raise ClientGone
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
        except ClientGone:
            scope["usage"]["gone"] = True
        finally:
            self._leave()

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        try:
            async for event in self._events:
                await _send_event(send, json.dumps(event, ensure_ascii=False))
        except Exception as error:
            refusal = refusal_of(error)
            if refusal.status == HTTPStatus.INTERNAL_SERVER_ERROR:
                traceback.print_exc()  # the sentence says that the log tells why
            await _send_event(send, json.dumps(refusal.body))
        if self._ends is not None:
            await _send_event(send, self._ends)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _send_event(send: Send, data: str) -> Awaitable[None]:
    body = f"data: {data}\n\n".encode()
    return send({"type": "http.response.body", "body": body, "more_body": True})
