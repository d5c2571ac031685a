"""How long the soak is: short in the suite, long under `make soak`, which prints what was done."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lengths_of_soak import IS_LONG

HERE = Path(__file__).parent
_done: list[str] = []


@pytest.fixture(scope="session")
def amount() -> Callable[[int, int], int]:
    """The long or the short one of two numbers."""
    return lambda long, short: long if IS_LONG else short


@pytest.fixture(scope="session")
def note() -> Callable[..., None]:
    """Counts for the summary."""
    return lambda what, **counts: _done.append(
        f"{what}: " + ", ".join(f"{n.replace('_', ' ')} {c}" for n, c in counts.items())
    )


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Any]]:
    """Run one of the scripts here in a process of its own; what it prints last."""

    def run(script: str, *words: object) -> dict[str, Any]:
        folder = tmp_path_factory.mktemp(script.removesuffix(".py"))
        command = [sys.executable, str(HERE / script), str(folder), *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found

    return run


def pytest_terminal_summary(terminalreporter: Any) -> None:
    for line in _done:
        terminalreporter.write_line(f"soak: {line}")
