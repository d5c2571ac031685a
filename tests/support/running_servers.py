"""A real server over a tiny model, on 127.0.0.1 and a free port, while a test lasts."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from lcc.config.cards import decode
from lcc.serving.model import ServeOptions
from lcc.serving.server import Server, address, listening


@dataclass
class Running:
    """A server under test."""

    url: str
    served: Any
    server: Server

    def client(self, key: str | None = None, timeout: float = 60.0) -> httpx2.Client:
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        return httpx2.Client(base_url=self.url, headers=headers, timeout=timeout, trust_env=False)

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def until(self, holds: Callable[[], bool], seconds: float = 30.0) -> None:
        """Wait for what another thread will do; fail where it does not."""
        deadline = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < deadline, "it did not happen"
            time.sleep(0.005)


@contextmanager
def run(folder: Path, *, task: Any = None, key: str | None = None, **options: Any) -> Any:
    from lcc.pipeline.recipe import Recipe
    from lcc.serving.model import opened

    chosen = decode(ServeOptions, {"port": 0, **options}, "serve")
    served = opened(folder, Recipe(task=task, device="cpu", threads=1), chosen, "transformers")
    listener = listening(chosen)
    server = Server(served, key)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    running = Running(address(listener), served, server)
    try:
        running.until(lambda: server.started or not thread.is_alive())
        yield running
    finally:
        server.should_exit = True
        thread.join(60)
        listener.close()
        assert not thread.is_alive(), "the server does not stop"
