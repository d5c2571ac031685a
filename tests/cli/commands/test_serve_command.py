"""`lcc serve`: what it refuses before anything starts, and how it goes down."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest

from lcc.cli import main

KEY = "a-key-of-at-least-sixteen-characters"


@pytest.mark.parametrize(
    "words, code, message",
    [
        (["serve.host=0.0.0.0"], 5, "no key is set"),
        (["serve.host=::"], 5, "no key is set"),
        (["serve.host=example.org"], 5, "no key is set"),
        (["serve.prot=1"], 2, "unknown key 'prot'. Did you mean 'port'?"),
        (["serve.port=70000"], 2, "serve.port: input should be less than or equal to 65535"),
        (["serve.slots=true"], 2, "serve.slots: expected a whole number"),
        (["serve.key_file=/nowhere/at/all"], 3, "serve.key_file: cannot read"),
        (["serve.key=secret"], 2, "unknown key 'key'"),
        (["a", "b"], 2, "one checkpoint at a time"),
        ([], 2, "no run in this folder yet"),
        (["model={model}", "engine=transformer"], 2, "Did you mean 'transformers'?"),
        (["model={model}", "engine=transformers", "serve.port={port}"], 6, "cannot listen on"),
    ],
)
def test_a_mistake_is_a_sentence_and_a_code(
    words: list[str],
    code: int,
    message: str,
    plain_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LCC_API_KEY", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        given = {"model": plain_folder, "port": taken.getsockname()[1]}
        assert main(["serve", *(word.format(**given) for word in words)]) == code
    assert message in capsys.readouterr().err


def test_a_key_that_others_can_read_or_guess_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "key"
    file.write_text(KEY)
    file.chmod(0o644)
    assert main(["serve", f"serve.key_file={file}", "serve.host=0.0.0.0"]) == 5
    assert "chmod 600" in capsys.readouterr().err
    monkeypatch.setenv("LCC_API_KEY", "short")
    assert main(["serve"]) == 5
    assert "fewer than 16 characters" in capsys.readouterr().err


def test_the_options_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "serve.slots=3", "--cfg"]) == 0
    out = capsys.readouterr().out
    assert "serve.slots=3" in out and 'serve.host="127.0.0.1"' in out


def test_sigterm_lets_answers_finish(plain_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(KEY)
    file.chmod(0o600)
    command = [
        sys.executable,
        "-m",
        "lcc",
        "serve",
        f"model={plain_folder}",
        "serve.port=0",
        "engine=transformers",
        f"serve.key_file={file}",
        "threads=1",
    ]
    server = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
    )
    assert server.stdout is not None
    url = server.stdout.readline().split()[-1]
    try:
        assert url.startswith("http://127.0.0.1:")
        asked = {"prompt": "and so on", "max_tokens": 400, "temperature": 0, "stream": True}
        with httpx2.Client(
            base_url=url, headers={"authorization": f"Bearer {KEY}"}, timeout=60, trust_env=False
        ) as client:
            with client.stream("POST", "/v1/completions", json=asked) as reply:
                lines = reply.iter_lines()
                next(lines)
                server.send_signal(signal.SIGTERM)
                rest = [line for line in lines if line]
            assert rest[-1] == "data: [DONE]"
            assert '"finish_reason": "length"' in rest[-2]
            with pytest.raises(httpx2.TransportError):
                client.get("/healthz")
        _, err = server.communicate(timeout=60)
        assert server.returncode == 0, err
    finally:
        if server.poll() is None:
            server.kill()
            server.communicate()
