"""Numbers along training: the tracker's contract, and the curve file that every report reads."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from lcc.core.writing import write_text

Value = float | int | bool


@runtime_checkable
class Tracker(Protocol):
    """Where training numbers are sent beside the curve file."""

    def log(self, step: int, values: Mapping[str, Value]) -> None:
        """The numbers of one step."""
        ...

    def close(self) -> None:
        """Write what is still held back."""
        ...


@runtime_checkable
class TrackerCard(Protocol):
    """What `tracker=NAME` chooses: it opens a tracker for one step of a run."""

    def open(self, folder: Path, name: str) -> Tracker:
        """A tracker that keeps its files below `folder` and shows the step as `name`."""
        ...


class CurveFile:
    """Training numbers as JSON lines, appended as they come and cut back when a run resumes."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def log(self, step: int, values: Mapping[str, Value | None]) -> None:
        """Append one step; a number that is not finite is kept as null, which JSON can say."""
        row = {"step": step, **{name: _finite(value) for name, value in values.items()}}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")

    def close(self) -> None:
        """Nothing is held back; every line was written as it came."""

    def rewind(self, step: int) -> None:
        """Drop every line after `step`, and a half-written last one: the run resumes there."""
        if not self.path.is_file():
            return
        kept = [json.dumps(row) + "\n" for row in self.rows() if row["step"] <= step]
        write_text(self.path, "".join(kept))

    def rows(self) -> Iterator[dict[str, Any]]:
        """Every complete line; the last may be cut off by a kill and is then left out."""
        if not self.path.is_file():
            return
        with self.path.open(encoding="utf-8") as file:
            for line in file:
                if line.endswith("\n"):
                    yield json.loads(line)


def _finite(value: Value | None) -> Value | None:
    return None if isinstance(value, float) and not math.isfinite(value) else value
