"""Requests that are wrong in every way that a dice can think of, as bytes on a line."""

from __future__ import annotations

import json
import random
import socket
from typing import Any

ASKING = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")
OTHERS = ("/v1/models", "/healthz", "/metrics", "/openapi.json", "/", "/v1/nothing", "/%00",
          "/v1/../v1/models", "//")  # fmt: skip
GOOD: dict[str, Any] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 2},
    "/v1/completions": {"prompt": "hello", "max_tokens": 2, "stop": ["x"], "seed": 1, "n": 1},
    "/v1/embeddings": {"input": ["hello"], "encoding_format": "float"},
}
ODD: tuple[Any, ...] = (
    None, True, -1, 0, 1.5, 2**63, 2**64, -(2**70), 1e308, "", "x", "\0", "x" * 5000, "🙂" * 100,
    [], {}, [[]], [None], {"a": {"b": {}}}, [1, "x"], [[1], ["x"]], [2**31], [-1], [[[]]], "NaN",
    {"type": "text"}, [{"role": "user"}], [{"role": "tool", "content": "x"}], ["x"] * 3000,
)  # fmt: skip
KEYS = ("model", "messages", "prompt", "input", "max_tokens", "temperature", "top_p", "top_k",
        "n", "stop", "seed", "stream", "stream_options", "logprobs", "top_logprobs", "user",
        "tools", "response_format", "__class__", "", "\0", "repetition_penalty",
        "encoding_format")  # fmt: skip
METHODS = ("POST", "GET", "PUT", "DELETE", "OPTIONS", "HEAD", "BREW", "p")
KINDS = ("application/json",) * 20 + ("text/plain", "", "a/b; c=d", "application/json; x")


def request(dice: random.Random) -> bytes:
    """One request, most of them wrong in the body, some in the head, a few in the bytes."""
    kind = dice.random()
    body = _body(dice, dice.choice(ASKING)) if kind < 0.8 else _garbage(dice)
    whole = _head(dice, len(body)) + body
    if kind > 0.9:
        return _torn(dice, whole)
    return whole


def status(port: int, sent: bytes) -> int:
    """The status of the answer; 0 where the server hung up without one."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as line:
        try:
            line.sendall(sent)
            answer = line.recv(65536)
        except OSError:
            return 0
    return int(answer.split(maxsplit=2)[1]) if answer.startswith(b"HTTP/1.1 ") else 0


def _head(dice: random.Random, size: int) -> bytes:
    method, path = "POST", dice.choice(ASKING)
    if dice.random() < 0.2:
        method, path = dice.choice(METHODS), dice.choice(OTHERS + ASKING)
    lines = [
        f"{method} {path} HTTP/1.1",
        "host: localhost",
        "connection: close",
        f"content-type: {dice.choice(KINDS)}",
    ]
    length = size if dice.random() < 0.95 else dice.choice([0, -1, size + 5, 10**12, "x"])
    lines.append(f"content-length: {length}")
    if dice.random() < 0.05:
        lines.append(
            dice.choice(
                [
                    "transfer-encoding: chunked",
                    "x: " + "y" * 20_000,
                    "no colon",
                    "expect: 100-continue",
                    "upgrade: websocket",
                    "host: evil",
                    "authorization: Bearer \xff",
                    "x: y\r\n" * 200,
                ]
            )
        )
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def _body(dice: random.Random, path: str) -> bytes:
    node = json.loads(json.dumps(GOOD[path]))
    for _ in range(dice.randint(1, 3)):
        node[dice.choice(KEYS)] = dice.choice(ODD)
    if dice.random() < 0.2:
        node.pop(dice.choice(list(node)))
    text = json.dumps(node, ensure_ascii=dice.random() < 0.5).encode("utf-8", "surrogatepass")
    if dice.random() < 0.1:
        text = text[: dice.randrange(len(text))]
    return text


def _garbage(dice: random.Random) -> bytes:
    return dice.choice(
        [
            b"",
            b"null",
            b"[]",
            b'"x"',
            b"{" * 5000,
            b"[" * 5000,
            b'{"a":' * 5000,
            b"\xff\xfe{}",
            b'{"prompt": "\\ud800"}',
            b'{"n": 1' + b"0" * 5000 + b"}",
            dice.randbytes(200),
            b'{"prompt": "a", "prompt": "b"}',
            b'{"temperature": NaN}',
            b'{"prompt": 1e999}',
        ]
    )


def _torn(dice: random.Random, whole: bytes) -> bytes:
    at = dice.randrange(len(whole))
    return dice.choice(
        [
            whole[:at],
            whole[:at] + dice.randbytes(8) + whole[at:],
            dice.randbytes(300),
            whole[at:],
            whole.replace(b"\r\n", b"\n"),
            whole.replace(b"HTTP/1.1", b"HTTP/9.9"),
        ]
    )
