"""Where a model comes from, as far as the run or the store that made it tells."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lcc.parts.folder import read_json

Measures = dict[str, float]
EVALUATIONS = ("eval.before", "eval.this")  # inputs of an export, where the recipe evaluated
REPORT_FILE = "report.json"
TOLD_AS = {"merge": "adapter merged", "attach": "adapter attached"}


@dataclass
class Provenance:
    """What a model card says of a model's making; all of it may be unknown.

    `metrics` are evaluations by the checkpoint they judge, in order: the last one is of the model
    that is exported, and the first, if there are several, of what it was made from.
    """

    base: str = ""
    data: str = ""
    data_licence: str = ""
    task: str = ""
    steps: list[str] = field(default_factory=list)
    command: str = ""
    metrics: dict[str, Measures] = field(default_factory=dict)

    @classmethod
    def of_run(cls, facts: Mapping[str, Any], checkpoint: str) -> Provenance:
        """From a run's run.json, for its checkpoint of this name."""
        recipe = facts.get("recipe") or {}
        steps = []
        for step in facts.get("steps", []):
            if step.get("checkpoint"):
                steps.append(_told(step["checkpoint"], step["kind"]))
            if step.get("checkpoint") == checkpoint:
                break
        return cls(base=_named(recipe.get("model")), data=_named(recipe.get("dataset")),
                   data_licence=_named(recipe.get("dataset"), "licence"),
                   task=_named(recipe.get("task")), steps=steps[1:],
                   command=str(facts.get("command", "")))  # fmt: skip

    @classmethod
    def of_inputs(cls, inputs: Mapping[str, Path]) -> Provenance:
        """From what a step of a recipe was given: reports beside it in the store lead back."""
        found, steps = cls(), dict[str, str]()
        for report in list(_lineage(inputs.get("model")))[::-1]:  # the first step first
            spec, name = report["node"].get("spec"), report["name"].partition(".")[0]
            if report["kind"] == "base":
                found.base = _named(spec)
            elif report["kind"] == "prepare":
                found.data, found.data_licence = _named(spec), _named(spec, "licence")
            else:
                # Where an adapter was merged this takes the place of its training.
                steps[name] = _told(name, report["kind"])
            found.task = _named(report["ingredients"].get("task")) or found.task
        found.steps = list(steps.values())
        for name in EVALUATIONS:
            judged = _report(inputs.get(name))
            if judged is not None:
                found.metrics[judged["name"].partition(".")[2]] = evaluated(judged)
        return found

    def judge(self, evaluations: Mapping[str, Measures], checkpoint: str) -> None:
        """Keep evaluations up to that of the exported `checkpoint`; none where it has none."""
        names = list(evaluations)
        if checkpoint in names:
            kept = names[: names.index(checkpoint) + 1]
            self.metrics = {name: evaluations[name] for name in kept}


def evaluated(report: Mapping[str, Any]) -> Measures:
    """The scores of an evaluation's report: what has no unit of time or size."""
    plain = ("", "nats", "bits", "points", "percent", "share", None)
    return {name: float(m["value"]) for name, m in report.get("measures", {}).items()
            if m.get("unit") in plain and isinstance(m.get("value"), int | float)}  # fmt: skip


def _lineage(artifact: Path | None) -> Iterator[dict[str, Any]]:
    """Reports of an artifact's step and of all before it that are still there, data among them."""
    report = _report(artifact)
    if artifact is None or report is None:
        return
    yield report
    for name in ("adapter", "data", "model"):
        if name in report["inputs"]:
            beside = artifact.parent / report["inputs"][name]
            yield from _lineage(beside) if name == "model" else _nearest(beside)


def _nearest(artifact: Path) -> Iterator[dict[str, Any]]:
    """The report of a step whose model is told by another one, and of its data."""
    report = _report(artifact)
    if report is not None:
        yield report
        if "data" in report["inputs"]:
            yield from _nearest(artifact.parent / report["inputs"]["data"])


def _report(artifact: Path | None) -> dict[str, Any] | None:
    if artifact is None or not (artifact / REPORT_FILE).is_file():
        return None
    found: dict[str, Any] = read_json(artifact / REPORT_FILE)
    return found


def _told(name: str, kind: str) -> str:
    return f"{name} ({TOLD_AS.get(kind, kind)})"


def _named(node: Any, key: str = "name") -> str:
    return str(node.get(key, "")) if isinstance(node, Mapping) else ""
