"""Real processes for tests of what several of them do at once, told what to do by lines."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROLOGUE = """
import os, sys
from pathlib import Path
from lcc.store.artifact import Artifact
from lcc.core.errors import LccError
from lcc.store.locks import Leases
from lcc.store.store import Store

def say(line): print(line, flush=True)
def wait(): sys.stdin.readline()

root = Path(sys.argv[1])
store = Store(root, warn=say)
"""


class Process:
    """A Python process that speaks in lines."""

    def __init__(self, code: str, root: Path) -> None:
        self.popen = subprocess.Popen(
            [sys.executable, "-c", PROLOGUE + code, str(root)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def heard(self) -> str:
        """The next line it says; empty when it is gone."""
        assert self.popen.stdout is not None
        return self.popen.stdout.readline().strip()

    def go(self) -> None:
        """Let it go past its next `wait()`."""
        assert self.popen.stdin is not None
        self.popen.stdin.write("go\n")
        self.popen.stdin.flush()

    def kill(self) -> None:
        """SIGKILL, and wait until it is dead."""
        self.popen.kill()
        self.popen.wait()


@contextmanager
def process(code: str, root: Path) -> Iterator[Process]:
    """A process that is gone when the block ends, whatever happened in it."""
    started = Process(code, root)
    try:
        yield started
    finally:
        started.kill()
        for pipe in (started.popen.stdin, started.popen.stdout):
            assert pipe is not None
            pipe.close()
