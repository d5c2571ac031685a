"""Where a model comes from, as far as the run that made it tells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Measures = dict[str, float]


@dataclass
class Provenance:
    """What a model card says of a model's making; all of it may be unknown.

    `metrics` are evaluations by the checkpoint they judge, in order: the first is the model before,
    the last the one that is exported.
    """

    base: str = ""
    data: str = ""
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
            if step.get("checkpoint") and step["kind"] not in ("merge", "attach"):
                steps.append(f"{step['name']} ({step['kind']})")
            if step.get("checkpoint") == checkpoint:
                break
        return cls(base=_name(recipe.get("model")), data=_name(recipe.get("dataset")),
                   task=_name(recipe.get("task")), steps=steps[1:],
                   command=str(facts.get("command", "")))  # fmt: skip


def evaluated(report: Mapping[str, Any]) -> Measures:
    """The scores of an evaluation's report: what has no unit of time or size."""
    plain = ("", "nats", "bits", "points", "percent", "share", None)
    return {name: float(m["value"]) for name, m in report.get("measures", {}).items()
            if m.get("unit") in plain and isinstance(m.get("value"), int | float)}  # fmt: skip


def _name(node: Any) -> str:
    return str(node.get("name", "")) if isinstance(node, Mapping) else ""
