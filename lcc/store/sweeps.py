"""Sweeps on disk: which points one has, and what became of each, in JSON of one writer a file.

`sweep.json` is the driver's; `points/NNN.json` belongs to the process that runs the point, which
holds the lease `leases/NNN` as long as it lives. So a point that runs is known from anywhere, and
from the moment its process is gone also that it runs no more.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from lcc.config.search_space import Direction
from lcc.core.disk import write_json
from lcc.core.errors import DataError, RecipeError, did_you_mean
from lcc.store.locks import Leases
from lcc.store.store import ROOT

FORMAT = 1
DRIVER = "driver"  # the lease of who decides what runs next
Status = Literal["waiting", "queued", "running", "preempted", "finished", "failed", "pruned"]


@dataclass
class Point:
    """One point as its driver knows it."""

    index: int
    words: list[str]
    chosen: dict[str, str]
    run: str = ""  # the run below runs/ that these words mean
    submitted: bool = False
    pruned: bool = False
    values: dict[str, float] = field(default_factory=dict)  # objective → figure
    curve: dict[str, float] = field(default_factory=dict)  # step → watched number
    memory: dict[str, Any] = field(default_factory=dict)

    @property
    def varied(self) -> list[str]:
        """The words that tell it from the other points."""
        return [f"{head}={value}" for head, value in self.chosen.items()]

    @property
    def label(self) -> str:
        """The same, short: the choice itself where one group varies."""
        if len(self.varied) == 1:
            head, _, value = self.varied[0].partition("=")
            return value if "." not in head else self.varied[0]
        return ",".join(self.varied)


@dataclass
class Result:
    """What the process of a point says about itself."""

    status: Status
    run: str = ""
    error: str = ""
    exit_code: int = 0
    started: str = ""
    seconds: float = 0.0
    attempts: int = 1
    host: str = ""


@dataclass
class Sweep:
    """A sweep as it lies on disk."""

    folder: Path
    verb: str
    words: list[str]
    name: str = ""
    command: str = ""
    started: str = ""
    launcher: dict[str, Any] = field(default_factory=dict)
    sampler: dict[str, Any] = field(default_factory=dict)
    objectives: dict[str, Direction] = field(default_factory=dict)
    ranges: list[dict[str, Any]] = field(default_factory=list)
    points: list[Point] = field(default_factory=list)

    @property
    def leases(self) -> Leases:
        return Leases(self.folder / "leases")

    def log(self, index: int) -> Path:
        """Everything that the point printed, over all its attempts."""
        return self.folder / "points" / f"{index:03d}.log"

    def result(self, index: int) -> Result | None:
        """The point's own word, or None before it has started."""
        path = self.folder / "points" / f"{index:03d}.json"
        facts = _read(path) if path.is_file() else None
        return Result(**facts) if facts else None

    def keep_result(self, index: int, result: Result) -> None:
        """Write the point's own word in one rename."""
        write_json(self.folder / "points" / f"{index:03d}.json", asdict(result))

    def is_running(self, index: int) -> bool:
        """Whether a process that lives has the point."""
        return self.leases.holder(f"{index:03d}") is not None

    def status(self, point: Point) -> Status:
        """What became of `point`, as far as its own files say."""
        if point.pruned:
            return "pruned"
        if self.is_running(point.index):
            return "running"
        result = self.result(point.index)
        if result is None:
            return "queued" if point.submitted else "waiting"
        # Its process is gone and wrote no end: it was killed.
        return "failed" if result.status == "running" else result.status

    def write(self) -> None:
        """Write sweep.json in one rename."""
        facts = {k: v for k, v in asdict(self).items() if k != "folder"}
        write_json(self.folder / "sweep.json", {"format": FORMAT, **facts})


def read_sweep(folder: Path) -> Sweep:
    """The sweep in `folder`; raises DataError where sweep.json is missing or not ours to read."""
    path = folder / "sweep.json"
    if not path.is_file():
        raise DataError(f"{folder}: is no sweep; a sweep's folder holds a sweep.json.")
    facts = _read(path)
    if facts.pop("format", FORMAT) > FORMAT:
        raise DataError(f"{path}: was written by a newer lcc; update this one to read it.")
    facts["points"] = [Point(**point) for point in facts["points"]]
    return Sweep(folder=folder, **facts)


def find_sweep(name: str | None, root: Path = ROOT) -> Path:
    """The folder of the sweep `name` (a name or a path), or of the newest; raises RecipeError."""
    folders = {path.parent.name: path for path in root.glob("*/sweep.json")}
    if name is not None and (Path(name) / "sweep.json").is_file():
        return Path(name)
    if not folders:
        raise RecipeError(
            "no sweep in this folder yet; start one with lcc run -m +recipe=NAME "
            "and a word with several values, for example seed=1,2."
        )
    if name is None:
        return max(folders.values(), key=lambda path: path.stat().st_mtime_ns).parent
    if name not in folders:
        raise RecipeError(f"no sweep is named {name!r}{did_you_mean(name, sorted(folders))}")
    return folders[name].parent


def _read(path: Path) -> dict[str, Any]:
    try:
        facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}: line {error.lineno} is no JSON; delete it and run the same command again."
        ) from None
    return facts
