"""Clients of a server: honest ones, some that hang up, and a crowd of slow ones."""

from __future__ import annotations

import http.client
import json
import random
import selectors
import socket
import threading
import time
from dataclasses import dataclass
from typing import Any

PULSE_SECONDS = 0.5  # a slow client sends or reads a byte
HOST = b"host: localhost\r\n"
KIND = b"content-type: application/json\r\n"
READ = b"GET /openapi.json HTTP/1.1\r\n" + HOST + b"\r\n"
STREAM = json.dumps({"prompt": "and so on", "max_tokens": 400, "temperature": 0, "stream": True}).encode()


@dataclass(frozen=True)
class Reply:
    """What an honest client got."""

    status: int
    seconds: float
    num_tokens: int


def honest(port: int, dice: random.Random | None = None, *, num_tokens: int = 8) -> Reply:
    """One request that nothing is wrong with, of any kind where there is a dice."""
    path, body = "/v1/completions", completion(num_tokens)
    if dice is not None:
        path, body = dice.choice(
            [
                (path, body),
                (path, {**body, "stream": True}),
                (path, {**body, "n": 3, "seed": 1}),
                ("/v1/embeddings", {"input": ["one", "two"]}),
                (
                    "/v1/chat/completions",
                    {
                        "messages": [{"role": "user", "content": "hello"}],
                        "max_tokens": 8,
                        "logprobs": True,
                        "top_logprobs": 3,
                    },
                ),
            ]
        )
    line = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    begun = time.perf_counter()
    try:
        line.request("POST", path, json.dumps(body), {"content-type": "application/json"})
        reply = line.getresponse()
        text = reply.read()
    finally:
        line.close()
    seconds = time.perf_counter() - begun
    is_json = reply.status == 200 and "json" in reply.headers["content-type"]
    usage = json.loads(text).get("usage", {}) if is_json else {}
    return Reply(reply.status, seconds, int(usage.get("completion_tokens", 0)))


def completion(num_tokens: int) -> dict[str, Any]:
    """A body for /v1/completions."""
    return {"prompt": "once upon a time", "max_tokens": num_tokens, "temperature": 0}


def hung_up(port: int) -> None:
    """Ask for a long answer and leave after its first piece."""
    with socket.create_connection(("127.0.0.1", port), timeout=120) as line:
        line.sendall(_post(STREAM))
        line.recv(1024)


def _post(body: bytes) -> bytes:
    head = b"POST /v1/completions HTTP/1.1\r\n" + HOST + KIND
    return head + b"content-length: " + str(len(body)).encode() + b"\r\n\r\n" + body


class Slow:
    """`num` connections held open by a thread: a third each trickle a head or a body, or hardly
    read what they asked for; one that the server cuts is opened again."""

    def __init__(self, port: int, num: int) -> None:
        self._port, self._num = port, num
        self._selector = selectors.DefaultSelector()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._live)
        self.num_cut = 0

    def __enter__(self) -> Slow:
        for number in range(self._num):
            self._open(number)
        self._thread.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self._ended.set()
        self._thread.join()
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self._selector.close()

    def _open(self, number: int) -> None:
        line = socket.socket()
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        line.settimeout(60)
        line.connect(("127.0.0.1", self._port))
        kind = number % 3
        head = b"POST /v1/completions HTTP/1.1\r\n" + HOST + KIND
        line.sendall([head, head + b"content-length: 900\r\n\r\n{", READ][kind])
        line.setblocking(False)
        self._selector.register(line, selectors.EVENT_READ, (number, kind))

    def _live(self) -> None:
        while not self._ended.wait(PULSE_SECONDS):
            for key in list(self._selector.get_map().values()):
                line: Any = key.fileobj
                number, kind = key.data
                if not self._pulse(line, kind):
                    self._selector.unregister(line)
                    line.close()
                    self.num_cut += 1
                    self._open(number)

    def _pulse(self, line: socket.socket, kind: int) -> bool:
        """A byte sent, or read; False where the server has hung up."""
        try:
            if kind < 2:
                line.send(b"x")
                return line.recv(4096) == b"never"
            return line.recv(1) != b""
        except BlockingIOError:
            return True
        except OSError:
            return False
