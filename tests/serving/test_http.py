"""What a stranger may not do: each limit has a status, a sentence, and leaves the server well."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from running_servers import Running

KEY = "a-key-of-at-least-sixteen-characters"
LOCAL = {"host": "127.0.0.1"}


@pytest.fixture(scope="module")
def strict(plain_folder: Path) -> Iterator[Running]:
    from running_servers import run

    with run(
        plain_folder,
        max_body_bytes=2048,
        max_header_bytes=2048,
        read_seconds=0.3,
        write_seconds=0.3,
        max_connections=8,
        keep_alive_seconds=1,
    ) as running:
        yield running


def talk(running: Running, sent: bytes) -> bytes:
    """Send bytes, and read until the server hangs up."""
    with socket.create_connection(("127.0.0.1", running.port), timeout=30) as line:
        line.sendall(sent)
        got = b""
        while piece := line.recv(65536):
            got += piece
    return got


def post(body: bytes, *, kind: str = "application/json", close: bool = True) -> bytes:
    end = "connection: close\r\n" if close else ""
    return (
        f"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: {kind}\r\n"
        f"content-length: {len(body)}\r\n{end}\r\n"
    ).encode() + body


def status(answer: bytes) -> int:
    head, _, body = answer.partition(b"\r\n\r\n")
    if head.startswith(b"HTTP/1.1 4") and b"transfer-encoding" not in head.lower():
        assert json.loads(body)["error"]["message"], answer
    return int(answer.split()[1])


@pytest.mark.parametrize(
    "sent, wanted",
    [
        (post(b'{"prompt": "' + b"x" * 4096 + b'"}'), 413),
        (post(b'{"prompt": "x"}', kind="text/plain"), 415),
        (post(b"{"), 400),
        (post(b"[]"), 400),
        (post(b"[" * 2000), 400),
        (post(b'{"prompt": "\xff"}'), 400),
        (post(b'{"prompt": "\\ud800"}'), 400),
        (post(b'{"prompt": "x", "seed": ' + b"9" * 1900 + b"}"), 400),
        (post(b'{"prompt": "x", "temperature": NaN}'), 400),
        (post(b'{"prompt": "x", "max_token": 1}'), 400),
        (b"GET / HTTP/1.1\r\nhost: localhost\r\nx: " + b"x" * 4096 + b"\r\n\r\n", 431),
        (b"GET /" + b"x" * 100_000, 431),
        (b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 200 + b"host: localhost\r\n\r\n", 431),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: evil.example\r\nconnection: close\r\n\r\n", 403),
        (
            b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5\r\n"
            b"content-length: 6\r\n\r\n",
            400,
        ),
    ],
)
def test_what_is_wrong_has_its_status(strict: Running, sent: bytes, wanted: int) -> None:
    assert status(talk(strict, sent)) == wanted


@pytest.mark.parametrize(
    "begun",
    [
        b"GET / HTT",
        b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        b"content-length: 100\r\n\r\n{",
    ],
)
def test_a_request_that_does_not_arrive_is_cut_with_408(strict: Running, begun: bytes) -> None:
    assert status(talk(strict, begun)) == 408


def test_a_silent_connection_is_cut_without_a_word(strict: Running) -> None:
    assert talk(strict, b"") == b""


def test_a_second_request_on_a_line_has_the_same_time(strict: Running) -> None:
    first = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n"
    answer = talk(strict, first + b"GET /heal")
    assert answer.count(b"HTTP/1.1 200") == 1 and answer.count(b"HTTP/1.1 408") == 1


def test_a_body_without_end_is_not_read_for_ever(strict: Running) -> None:
    head = (
        b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\n"
        b"content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", strict.port), timeout=30) as line:
        line.sendall(head)
        with pytest.raises(OSError):
            while True:
                line.sendall(b"400\r\n" + b"x" * 1024 + b"\r\n")


def test_a_client_that_does_not_read_is_cut(plain_folder: Path, serve: Callable[..., Any]) -> None:
    with serve(plain_folder, write_seconds=0.2) as running:
        line = socket.socket()
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        line.connect(("127.0.0.1", running.port))
        with line:
            ask = b"GET /openapi.json HTTP/1.1\r\nhost: localhost\r\n\r\n"
            with pytest.raises(OSError):
                while True:  # until the server has answers that nobody takes, and hangs up
                    line.sendall(ask * 100)


def test_more_connections_than_allowed_are_told_to_come_back(strict: Running) -> None:
    strict.until(lambda: not strict.server.server_state.connections)
    lines = [socket.create_connection(("127.0.0.1", strict.port), timeout=30) for _ in range(9)]
    answers = b""
    for line in lines:
        with line:
            line.sendall(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
            answers += line.recv(65536)
    assert answers.count(b"HTTP/1.1 429") >= 1 and b"retry-after" in answers.lower()


def test_every_route_but_health_asks_for_the_key(plain_folder: Path, serve: Callable[..., Any]) -> None:
    with serve(plain_folder, key=KEY) as running, running.client() as client:
        assert client.get("/healthz").status_code == 200
        paths = [
            "/",
            "/page.js",
            "/page.css",
            "/page.json",
            "/openapi.json",
            "/metrics",
            "/v1/models",
            "/v1/nothing",
        ]
        for path in paths:
            assert client.get(path).status_code == 401, path
        assert client.post("/v1/completions", content=b"{").status_code == 401
        assert client.get("/").headers["www-authenticate"].startswith("Basic ")
        assert client.get("/", auth=("anyone", KEY)).status_code == 200
        for wrong in ("", "Bearer", f"Bearer {KEY[:-1]}", "Basic !", "Basic ÿ", f"bearer {KEY} x"):
            shown = {"authorization": wrong.encode("latin-1")}
            assert client.get("/v1/models", headers=shown).status_code == 401, wrong
    with serve(plain_folder, key=KEY) as running, running.client(KEY) as client:
        assert client.get("/v1/models").status_code == 200


def test_other_sites_pages_may_ask_only_where_named(plain_folder: Path, serve: Callable[..., Any]) -> None:
    asked = {"origin": "https://example.org", "access-control-request-method": "POST"}
    with serve(plain_folder) as running, running.client() as client:
        assert client.options("/v1/completions", headers=asked).status_code == 405
        reply = client.get("/healthz", headers=asked)
        assert "access-control-allow-origin" not in reply.headers
    named = {"origins": ["https://example.org"], "key": KEY}
    with serve(plain_folder, **named) as running, running.client() as client:
        reply = client.options("/v1/completions", headers=asked)
        assert reply.headers["access-control-allow-origin"] == "https://example.org"
        other = {**asked, "origin": "https://example.com"}
        assert client.options("/v1/completions", headers=other).status_code == 400
        assert client.post("/v1/completions", headers=asked, json={}).status_code == 401


def test_the_log_has_neither_prompts_nor_paths_nor_keys(
    chat: Running, capfd: pytest.CaptureFixture[str]
) -> None:
    with chat.client("my-secret-key-my-secret") as client:
        client.post("/v1/completions?my-secret=1", json={"prompt": "my-secret", "max_tokens": 1})
        client.get("/my-secret")
        client.post("/v1/completions", json={"my-secret": 1})
    chat.until(lambda: not chat.served.engine_thread.active)
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert "my-secret" not in json.dumps(lines)
    assert [line["status"] for line in lines] == [200, 404, 400]
    assert lines[0]["completion_tokens"] == 1 and lines[0]["prompt_tokens"] == 9
    assert lines[1]["route"] == "unknown"
