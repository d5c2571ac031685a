"""`lcc serve` as its users run it, with what it says kept in a file."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any


class ServerProcess:
    """A server over a model folder, on a free port of this machine; ends with SIGTERM."""

    def __init__(self, model: Path, folder: Path, *words: str) -> None:
        self._log = folder / "server.log"
        command = [
            sys.executable,
            "-m",
            "lcc",
            "serve",
            f"model={model}",
            "serve.port=0",
            "threads=1",
            *words,
        ]
        with self._log.open("w") as log:
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise AssertionError(f"the server did not start:\n{self._log.read_text()[-2000:]}")
        self.port = int(line.rpartition(":")[2])

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(self, *error: Any) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(120)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def bytes(self) -> int:
        """Memory that it and the process of its templates have now."""
        pid = self._process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return sum(_resident(number) for number in [str(pid), *children])

    def require_clean(self) -> None:
        """It went down by itself, and told of no fault of its own."""
        log = self._log.read_text()
        assert self._process.returncode == 0, (self._process.returncode, log[-2000:])
        assert "Traceback" not in log, log[log.index("Traceback") :][:4000]


def _resident(pid: str) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    found = next((line for line in lines if line.startswith("VmRSS:")), "VmRSS: 0 kB")
    return int(found.split()[1]) * 1024
