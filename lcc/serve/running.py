"""Listening, serving until asked to stop, and going down without cutting anybody off."""

from __future__ import annotations

import functools
import logging
import resource
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import uvicorn

from lcc.core.errors import LccError, ResourceError
from lcc.serve.app import application
from lcc.serve.options import ServeOptions
from lcc.serve.protocol import BoundedProtocol
from lcc.serve.served import Served

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
        raise ResourceError(f"cannot listen on {options.host}:{options.port} ({error.strerror}); "
                            "choose another with serve.port=, 0 for any.") from None  # fmt: skip
    return listener


def address(listener: socket.socket) -> str:
    """The URL of a listening socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _config(
    served: Served, key: str | None, failed: Callable[[BaseException], None]
) -> uvicorn.Config:
    options = served.options
    _more_files(options.max_connections)
    # Its warnings are one a bad request, which anybody can send by the million.
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    protocol: Any = functools.partial(BoundedProtocol, bounds=options)
    return uvicorn.Config(
        application(served, key, failed=failed), http=protocol, ws="none", loop="asyncio",
        lifespan="on", log_config=None, access_log=False, proxy_headers=False,
        server_header=False, backlog=BACKLOG, timeout_keep_alive=options.keep_alive_seconds,
        timeout_graceful_shutdown=options.drain_seconds,
        h11_max_incomplete_event_size=options.max_header_bytes,
    )  # fmt: skip


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
