"""Runs on disk: run.json and every step's report.json, typed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from lcc.core.errors import DataError, RecipeError, did_you_mean
from lcc.core.progress import CurveFile, Measure

FORMAT = 1


@dataclass(frozen=True)
class MetricFacts:
    """What the card of a metric says of it: its spelling, its unit, which way is better, its column."""

    label: str
    unit: str = ""
    higher_is_better: bool = True
    order: int = 1000  # behind every metric that says where it belongs

    @classmethod
    def of(cls, metric: Any, word: str) -> MetricFacts:
        """The facts of a card; a label or an order that it lacks follow from its word."""
        return cls(
            getattr(metric, "label", word.replace("_", " ")),
            metric.unit,
            metric.higher_is_better,
            getattr(metric, "order", cls.order),
        )


@dataclass(frozen=True)
class StepReport:
    """What one step did, from the report.json of its artifact in `folder`."""

    folder: Path
    facts: Mapping[str, Any]

    @property
    def key(self) -> str:
        return str(self.facts.get("key", ""))

    @property
    def inputs(self) -> dict[str, str]:
        """Input name → key of the artifact it came from."""
        return dict(self.facts.get("inputs") or {})

    @property
    def node(self) -> dict[str, Any]:
        """The stage's options, every default spelled out."""
        return dict(self.facts.get("node") or {})

    @cached_property
    def measures(self) -> dict[str, Measure]:
        measures = self.facts.get("measures") or {}
        return {name: Measure(m.get("value"), m.get("unit", "")) for name, m in measures.items()}

    @property
    def tables(self) -> dict[str, list[dict[str, Any]]]:
        return dict(self.facts.get("tables") or {})

    @property
    def notes(self) -> list[str]:
        return list(self.facts.get("notes") or [])

    @property
    def warnings(self) -> list[str]:
        return list(self.facts.get("warnings") or [])

    @property
    def machine(self) -> dict[str, Any]:
        return dict(self.facts.get("machine") or {})

    @property
    def versions(self) -> dict[str, str]:
        return dict(self.facts.get("versions") or {})

    @property
    def metrics(self) -> dict[str, MetricFacts]:
        """Metric → its card's facts when this evaluation ran; empty in reports of older versions."""
        rows = (dict(row) for row in self.tables.get("metrics", []))
        return {str(row.pop("metric")): MetricFacts(**row) for row in rows}

    def number(self, name: str) -> float | None:
        """The measure `name`, where it is a number."""
        value = self.measures[name].value if name in self.measures else None
        return value if isinstance(value, int | float) and not isinstance(value, bool) else None

    def word(self, name: str) -> str:
        """The measure `name`, where it is a word; empty otherwise."""
        value = self.measures[name].value if name in self.measures else None
        return value if isinstance(value, str) else ""

    def curve(self) -> list[dict[str, Any]]:
        """The training numbers of every optimizer step, in order."""
        return list(CurveFile(self.folder / "curves.jsonl").rows())

    def samples(self) -> Iterator[dict[str, Any]]:
        """Every evaluated sample with the model's output."""
        return CurveFile(self.folder / "samples.jsonl").rows()


@dataclass(frozen=True)
class RunStep:
    """One line of run.json, with the step's report where it has finished."""

    name: str
    kind: str
    key: str
    status: str
    seconds: float
    checkpoint: str | None
    report: StepReport | None

    @property
    def finished(self) -> bool:
        return self.status in ("finished", "reused")

    @property
    def model_bytes(self) -> int | None:
        return self.report.facts.get("model_bytes") if self.report else None


@dataclass(frozen=True)
class RunFacts:
    """One walk over a recipe's steps."""

    folder: Path
    facts: Mapping[str, Any]
    steps: list[RunStep] = field(default_factory=list)

    @property
    def name(self) -> str:
        return str(self.facts.get("run") or self.folder.name)

    @property
    def status(self) -> str:
        return str(self.facts.get("status", ""))

    @property
    def error(self) -> str:
        return str(self.facts.get("error") or "")

    @property
    def recipe(self) -> dict[str, Any]:
        return dict(self.facts.get("recipe") or {})

    @property
    def checkpoints(self) -> dict[str, RunStep]:
        """Checkpoint name → the finished step that made it, in order."""
        return {s.checkpoint: s for s in self.steps if s.checkpoint and s.report}

    def with_key(self, key: str) -> RunStep | None:
        """The step whose artifact is `key`."""
        return next((step for step in self.steps if key and step.key == key), None)

    def of_kind(self, kind: str) -> list[RunStep]:
        """The finished steps of one kind, in order."""
        return [step for step in self.steps if step.kind == kind and step.report]


def read_run(folder: Path) -> RunFacts:
    """The run in `folder`; raises DataError where run.json is missing or not ours to read."""
    facts = _json(folder / "run.json")
    if facts is None:
        raise DataError(f"{folder}: is no run; a run's folder holds a run.json.")
    steps = [_step(folder, entry) for entry in facts.get("steps") or []]
    return RunFacts(folder=folder, facts=facts, steps=steps)


def find_run(name: str | None, root: Path = Path("runs")) -> Path:
    """The folder of the run `name` (a name or a path), or of the newest; raises RecipeError."""
    pointer = root / "last"
    if name is None:
        if not pointer.is_file():
            raise RecipeError("no run in this folder yet; start one with lcc run +recipe=NAME.")
        name = pointer.read_text(encoding="utf-8").strip()
    for folder in (root / name, Path(name)):
        if (folder / "run.json").is_file():
            return folder
    known = sorted(path.parent.name for path in root.glob("*/run.json"))
    if not known:
        raise RecipeError("no run in this folder yet; start one with lcc run +recipe=NAME.")
    raise RecipeError(f"no run is named {name!r}{did_you_mean(name, known)}")


def _step(folder: Path, entry: Mapping[str, Any]) -> RunStep:
    key = str(entry.get("key", ""))
    done = entry.get("status") in ("finished", "reused")
    return RunStep(
        name=str(entry["name"]),
        kind=str(entry.get("kind", entry["name"])),
        key=key,
        status=str(entry.get("status", "pending")),
        seconds=float(entry.get("seconds") or 0),
        checkpoint=entry.get("checkpoint"),
        report=_report(folder, key, str(entry.get("folder", ""))) if done else None,
    )


def _report(folder: Path, key: str, link: str) -> StepReport | None:
    """The step's report, by its readable link or else by its key in the store beside the run."""
    for artifact in (folder / link, folder.parent / "store" / key):
        facts = _json(artifact / "report.json") if artifact.is_dir() else None
        if facts is not None:
            return StepReport(folder=artifact, facts=facts)
    return None


def _json(path: Path) -> dict[str, Any] | None:
    """The mapping in `path`, None where there is no file; raises DataError where it is no JSON."""
    if not path.is_file():
        return None
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: line {error.lineno} is no JSON; run the recipe again.") from None
    if not isinstance(facts, dict) or facts.get("format", FORMAT) > FORMAT:
        raise DataError(f"{path}: was written by a newer lcc; update this one to read it.")
    return facts
