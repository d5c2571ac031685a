"""HTTP server: uvicorn over h11 with deadlines for a request to arrive and a response to be taken."""

from __future__ import annotations

import asyncio
import functools
import logging
import resource
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from lcc.core.errors import LccError, ResourceError
from lcc.serving.app import application
from lcc.serving.model import Served, ServeOptions
from lcc.serving.protocol import Refusal, busy, phrase, raw

LINGER_SECONDS = 2.0  # for a client to read why it is refused
SPILL = 8  # times the largest body is thrown away of one that was refused, before the line is cut


class BoundedProtocol(H11Protocol):
    """One connection that may be neither slow nor endless.

    uvicorn bounds what h11 buffers of a head, idle connections and shutting down; it has no
    deadline for a head or body that trickles in, nor for a response that nobody reads.
    """

    def __init__(self, *args: Any, bounds: ServeOptions, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._bounds = bounds
        self._reading: asyncio.TimerHandle | None = None
        self._writing: asyncio.TimerHandle | None = None
        self._num_bytes = 0  # of the request that is arriving

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self._bounds.max_connections:
            self._refuse(busy("too many connections; try again later."))
        else:
            self._await_request()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return  # only read so that the client gets to read what it was told
        self._num_bytes += len(data)
        super().data_received(data)
        self._settle()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.get_write_buffer_size() and self._writing is None:
            self._await_taking()
        self._settle()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._await_taking()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._writing = _cancelled(self._writing)

    def connection_lost(self, exc: Exception | None) -> None:
        self._reading, self._writing = _cancelled(self._reading), _cancelled(self._writing)
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        # Called while h11's error is being handled, which knows a better status.
        status = getattr(sys.exc_info()[1], "error_status_hint", 400)
        sentence = {431: "the headers are too large.", 501: "that transfer encoding is unknown."}
        self._refuse(Refusal(status, sentence.get(status, "that is no HTTP request.")))

    def _settle(self) -> None:
        """Watch the clock while a request is under way, and only then."""
        is_body = self.conn.their_state is h11.SEND_BODY
        is_head = self.conn.their_state is h11.IDLE and bool(self.conn.trailing_data[0])
        if not is_head and not is_body:
            self._reading, self._num_bytes = _cancelled(self._reading), 0
        elif self._reading is None:
            self._await_request()
        elif self._num_bytes > SPILL * self._bounds.max_body_bytes + self._bounds.max_header_bytes:
            self.transport.abort()

    def _await_request(self) -> None:
        self._reading = self.loop.call_later(self._bounds.read_seconds, self._too_slow)

    def _await_taking(self) -> None:
        self._writing = _cancelled(self._writing)
        self._writing = self.loop.call_later(self._bounds.write_seconds, self._not_taken)

    def _too_slow(self) -> None:
        self._reading = None
        if self.transport.is_closing():
            return
        seconds = self._bounds.read_seconds
        if self.conn.their_state is h11.SEND_BODY or self.conn.trailing_data[0]:
            self._refuse(Refusal(408, f"the request did not arrive within {seconds:g} s."))
        else:
            self.transport.close()

    def _not_taken(self) -> None:
        self._writing = None
        if self.transport.get_write_buffer_size():
            self.transport.abort()

    def _refuse(self, refusal: Refusal) -> None:
        """Say why, if a response can still begin, and hang up."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            headers, body = raw(refusal)
            start = h11.Response(status_code=refusal.status, headers=headers, reason=phrase(refusal.status))
            for event in (start, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True  # the application must neither wait nor speak any more
            self.cycle.message_event.set()
        self._reading = _cancelled(self._reading)
        self.transport.close()
        self.loop.call_later(LINGER_SECONDS, self.transport.abort)


def _cancelled(timer: asyncio.TimerHandle | None) -> asyncio.TimerHandle | None:
    """What is left of a timer that need not ring any more: none."""
    if timer is not None:
        timer.cancel()
    return None


# Listening, serving until asked to stop, and going down without cutting anybody off.

BACKLOG = 512


def serve(served: Served, key: str | None) -> None:
    """Serve until SIGTERM or Ctrl-C; open answers are finished first.

    Raises ResourceError where the address is taken, or when the engine failed.
    """
    listener = listening(served.options)
    server = Server(served, key)
    with _signals_stop(server):
        print(f"serving {served.name} ({served.engine}) at {address(listener)}", flush=True)
        server.run(sockets=[listener])
    if server.error is not None:
        raise ResourceError(f"the engine failed: {server.error!r}") from server.error
    if not server.started:
        raise LccError("the server could not start; the lines above say why.")


class Server(uvicorn.Server):
    """uvicorn over what is served; `error` is what the engine failed of."""

    def __init__(self, served: Served, key: str | None) -> None:
        self.error: BaseException | None = None
        super().__init__(_config(served, key, self._stop))

    def _stop(self, error: BaseException) -> None:
        self.error, self.should_exit = error, True


def listening(options: ServeOptions) -> socket.socket:
    """A socket at the address that `options` name."""
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((options.host, options.port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise ResourceError(
            f"cannot listen on {options.host}:{options.port} ({error.strerror}); "
            "choose another with serve.port=, 0 for any."
        ) from None
    return listener


def address(listener: socket.socket) -> str:
    """The URL of a listening socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _config(served: Served, key: str | None, failed: Callable[[BaseException], None]) -> uvicorn.Config:
    options = served.options
    _more_files(options.max_connections)
    # Its warnings are one a bad request, which anybody can send by the million.
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    protocol: Any = functools.partial(BoundedProtocol, bounds=options)
    return uvicorn.Config(
        application(served, key, failed=failed),
        http=protocol,
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=options.keep_alive_seconds,
        timeout_graceful_shutdown=options.drain_seconds,
        h11_max_incomplete_event_size=options.max_header_bytes,
    )


def _more_files(num: int) -> None:
    """Each connection is an open file; systems allow more of them than they allow at first."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = num + 256
    if soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


@contextmanager
def _signals_stop(server: Server) -> Iterator[None]:
    """A signal before uvicorn listens to them, or after, when it raises again those it obeyed."""

    def stop(number: int, frame: FrameType | None) -> None:
        server.should_exit = True

    kept = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
