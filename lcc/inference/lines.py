"""Rows from lines as they come: a file, a growing file, a pipe; read beside the answering."""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lcc.core import preemption
from lcc.core.errors import DataError

if TYPE_CHECKING:
    from lcc.inference.asking import Numbered
    from lcc.parts.task import Row, Task

LOOK_SECONDS = 0.2  # how often a growing file, and a request to stop, is looked at


class Feed:
    """Rows that a thread reads ahead, at most `most` of them."""

    def __init__(self, rows: Iterable[Numbered], most: int = 1024) -> None:
        self.ended = False
        self._queue: queue.Queue[Any] = queue.Queue(maxsize=most)
        threading.Thread(target=self._fill, args=(iter(rows),), daemon=True).start()

    def take(self, most: int, *, wait: bool) -> list[Numbered]:
        """At most so many rows; with `wait` at least one, unless it has ended."""
        found: list[Numbered] = []
        while len(found) < most and not self.ended:
            try:
                item = self._queue.get(timeout=LOOK_SECONDS) if wait else self._queue.get_nowait()
            except queue.Empty:
                if not wait:
                    break
                preemption.check("infer")
                continue
            wait = False
            if isinstance(item, BaseException):
                raise item
            if item is None:
                self.ended = True
            else:
                found.append(item)
        return found

    def _fill(self, rows: Iterator[Numbered]) -> None:
        try:
            for row in rows:
                self._queue.put(row)
            self._queue.put(None)
        except BaseException as error:
            self._queue.put(error)


def lines_of(path: Path, *, follow: bool = False) -> Iterator[str]:
    """The lines of a file; with `follow` also those that are still to be written, for ever."""
    try:
        file = path.open(encoding="utf-8", newline="\n")
    except OSError as error:
        raise DataError(f"input {path}: {error.strerror}.") from None
    with file:
        half = ""
        while True:
            try:
                line = half + file.readline()
            except UnicodeDecodeError:
                raise DataError(f"input {path} is not UTF-8 text.") from None
            half = ""
            if line.endswith("\n") or (line and not follow):
                yield line
            elif follow:
                half = line  # Its writer has not finished it.
                time.sleep(LOOK_SECONDS)
            else:
                return


def numbered(lines: Iterable[str], task: Task, *, strict: bool = False) -> Iterator[Numbered]:
    """A row for every line that is not blank, counted from 0."""
    number = 0
    for place, line in enumerate(lines, 1):
        if line.strip():
            yield number, row_of(line.rstrip("\r\n"), task, place, strict=strict)
            number += 1


def row_of(line: str, task: Task, place: int, *, strict: bool = False) -> Row:
    """A row with the fields of the prompt; the answer's own are empty, for nobody knows them.

    A plain line is the only field of the prompt; with `strict` every line is JSON.
    """
    wanted = list(task.asked)
    blank: dict[str, Any] = {"id": str(place), **dict.fromkeys(task.fields, "")}
    if not wanted:
        raise DataError(f"task {task.name!r} has no prompt to fill; infer needs one with a prompt.")
    try:
        given = json.loads(line)
    except ValueError:
        given = None
    if isinstance(given, dict) and set(wanted) <= set(given):
        return {**blank, **given}
    if len(wanted) == 1 and not strict:
        return {**blank, wanted[0]: line}
    raise DataError(f"line {place}: expected a JSON object with {', '.join(wanted)}.")
