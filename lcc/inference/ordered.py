"""Answers in a file, line for line with what was asked: whoever goes on knows where.

Line n answers row n, so that a killed process leaves neither gap nor duplicate: at most half a
line, which is cut off. What made the answers stands beside, and another maker is refused.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lcc.core.errors import BusyError, DataError, RecipeError

SYNC_SECONDS = 5.0
BLOCK = 1 << 20


class OrderedFile:
    """A jsonl file that is appended to in order; `num_done` lines are there already.

    Raises BusyError where another process writes it, RecipeError where another maker began it.
    """

    def __init__(self, path: Path, maker: Mapping[str, Any]) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise BusyError(f"output {path}: another process is writing it.") from None
        self._waiting: dict[int, Mapping[str, Any]] = {}
        self._synced = time.monotonic()
        try:
            self.num_done, end = _whole_lines(self._file)
            self._require_maker(maker)
            self._file.truncate(end)
        except BaseException:
            self._file.close()
            raise

    def require_same(self, number: int, source: Mapping[str, Any]) -> None:
        """Raise DataError unless the last line there answers this row."""
        self._file.seek(0)
        last = _last_line(self._file)
        kept = {name: last.get(name) for name in source}
        if number != self.num_done - 1 or kept != dict(source):
            raise DataError(
                f"output {self.path}: line {self.num_done} does not answer row {number + 1} of the "
                "input, which has changed since; choose another output."
            )

    def put(self, number: int, line: Mapping[str, Any]) -> int:
        """Keep an answer until all before it are there; returns how many lines were written."""
        self._waiting[number] = line
        before, text = self.num_done, []
        while self.num_done in self._waiting:
            text.append(json.dumps(self._waiting.pop(self.num_done), ensure_ascii=False) + "\n")
            self.num_done += 1
        if text:
            self._file.write("".join(text).encode())
            self._file.flush()
            if time.monotonic() - self._synced > SYNC_SECONDS:
                self._sync()
        return self.num_done - before

    def close(self) -> None:
        """Everything that is in order is safely on the disk."""
        self._sync()
        self._file.close()

    def _sync(self) -> None:
        os.fsync(self._file.fileno())
        self._synced = time.monotonic()

    def _require_maker(self, maker: Mapping[str, Any]) -> None:
        file = maker_file(self.path)
        if self.num_done and file.is_file():
            found = json.loads(file.read_text(encoding="utf-8"))
            other = [name for name in maker if found.get(name) != maker[name]]
            if other:
                raise RecipeError(
                    f"output {self.path} was begun with another {' and '.join(other)}; choose "
                    "another output, or remove it to begin anew."
                )
            return
        if self.num_done:
            raise RecipeError(f"output {self.path} is there and was not made by infer; choose "
                              "another.")  # fmt: skip
        draft = file.with_name(f"{file.name}.draft")
        draft.write_text(json.dumps(dict(maker), indent=1) + "\n", encoding="utf-8")
        draft.replace(file)


def maker_file(path: Path) -> Path:
    """What stands beside an output: what its answers were made with."""
    return path.with_name(f"{path.name}.made_with.json")


def begun_with(path: Path, name: str) -> Any:
    """One fact about who began an output; None where nobody has."""
    try:
        return json.loads(maker_file(path).read_text(encoding="utf-8")).get(name)
    except (OSError, ValueError):
        return None


def _whole_lines(file: Any) -> tuple[int, int]:
    """How many lines there are, and where the last whole one ends."""
    file.seek(0)
    num, end, position = 0, 0, 0
    while block := file.read(BLOCK):
        num += block.count(b"\n")
        found = block.rfind(b"\n")
        end = position + found + 1 if found >= 0 else end
        position += len(block)
    return num, end


def _last_line(file: Any) -> dict[str, Any]:
    """The last line of a file of whole lines; {} where it is not JSON."""
    size = file.seek(0, os.SEEK_END)
    length = 4096
    while True:
        file.seek(max(0, size - length))
        lines = file.read().splitlines()
        if len(lines) > 1 or length >= size:
            break
        length *= 4
    try:
        found = json.loads(lines[-1])
    except (ValueError, IndexError):
        return {}
    return found if isinstance(found, dict) else {}
