"""Stage contract: what the runner gives a stage, and what a stage hands back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, runtime_checkable

from lcc.core.errors import DataError
from lcc.core.progress import Measure

if TYPE_CHECKING:
    from lcc.core.progress import Progress, Tracker
    from lcc.core.types import Form
    from lcc.data.dataset import PreparedData
    from lcc.distributed.dist import Dist
    from lcc.models.bundle import Bundle
    from lcc.tasks.task import Task

Noun = Literal["task", "data", "seed", "device", "dtype"]
"""What a stage may `read` beside its own fields and its model; each enters the step's key."""


@dataclass
class Outcome:
    """What a stage hands back.

    `bundle` is the changed model (the runner saves it, in `card.form`), or None for "unchanged".
    `measures` are the facts of the report; `files` are paths below `context.folder` to keep, by
    their name in the artifact; `tables` are small row lists for the report; `notes` are sentences
    a reader must see (warnings, refusals, "0 bytes saved"); `warnings` likewise but alarming.
    """

    bundle: Bundle | None = None
    measures: dict[str, Measure] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Context:
    """What a stage gets beside the model."""

    folder: Path  # this step's work folder; survives a kill, adopted by the next owner
    seed: int
    device: str  # "cpu", "cuda", "mps"
    dtype: str  # compute dtype: "float32" or "bfloat16"
    dist: Dist
    progress: Progress
    tracker: Tracker
    task: Task | None = None
    inputs: Mapping[str, Path] = field(default_factory=dict)  # name → artifact folder

    def open(self, name: str) -> Bundle:
        """The model of another input: `teacher`, `reference`, or a named checkpoint."""
        from lcc.models.bundle import open_bundle

        return open_bundle(self.inputs[name] / "model")

    @property
    def data(self) -> PreparedData:
        """The prepared splits; raises DataError when the recipe has none."""
        from lcc.data.dataset import PreparedData

        if "data" not in self.inputs:
            raise DataError("this step needs data; choose one with dataset=NAME.")
        return PreparedData.open(self.inputs["data"] / "data")

    @property
    def state(self) -> Path:
        """Folder for resume state: safetensors and JSON only; not part of the artifact."""
        path = self.folder / "state"
        path.mkdir(parents=True, exist_ok=True)
        return path

    @property
    def required_task(self) -> Task:
        """The task; raises DataError when the recipe has none."""
        if self.task is None:
            raise DataError("this step needs a task; choose one with task=NAME.")
        return self.task


@runtime_checkable
class Stage(Protocol):
    """One verb. Implementations are `@card` dataclasses whose fields are the YAML keys.

    `reads`: which nouns change its numbers. `accepts`: checkpoint forms it takes. `changes_model`:
    whether it hands back a bundle. `revision` is raised when its numbers change.
    """

    reads: ClassVar[tuple[Noun, ...]]
    accepts: ClassVar[tuple[Form, ...]]
    changes_model: ClassVar[bool]
    revision: ClassVar[int]

    def run(self, bundle: Bundle, context: Context) -> Outcome: ...
