"""Explain which ingredients differ between a step and the nearest finished one."""

from __future__ import annotations

from typing import Any

from lcc.cli.arguments import Arguments, emit
from lcc.core.errors import RecipeError
from lcc.pipeline.planner import pipeline_of
from lcc.pipeline.runner import last_run
from lcc.store.store import ROOT, Store

USAGE = """usage: lcc why STEP [+recipe=NAME key=value …]

Without a recipe, of the last run of this folder. Names every ingredient of the step's key that
differs from the finished step of the same kind that is nearest to it.

  lcc why finetune +recipe=tiny seed=2"""


def main(arguments: Arguments) -> int:
    if len(arguments.words) != 1:
        raise RecipeError("name one step, for example: lcc why finetune +recipe=tiny.")
    words = arguments.overrides or list(last_run()["words"])
    step = pipeline_of(words, "run").step(arguments.words[0])
    store = Store(ROOT)
    if any(artifact.key == step.key for artifact in store.artifacts()):
        text = f"{step.name} is finished ({step.key[:12]}) and would be reused."
        emit({"step": step.name, "key": step.key, "finished": True}, arguments.json, text)
        return 0
    nearest = _nearest(store, step.kind, step.ingredients)
    if nearest is None:
        text = f"{step.name} would run: no finished {step.kind} step is in the store."
        emit({"step": step.name, "key": step.key, "nearest": None}, arguments.json, text)
        return 0
    key, differences = nearest
    lines = [
        f"{step.name} would run; it differs from the finished {key[:12]} in:",
        *(f"  {d['key']}: {d['then']} → {d['now']}" for d in differences),
    ]
    facts = {"step": step.name, "key": step.key, "nearest": key, "differences": differences}
    emit(facts, arguments.json, "\n".join(lines))
    return 0


def _nearest(store: Store, kind: str, wanted: dict[str, Any]) -> tuple[str, list[dict[str, Any]]] | None:
    """The artifact of this kind with the fewest differing ingredients, and these."""
    candidates = [
        (a.key, differences(a.report["ingredients"], wanted))
        for a in store.artifacts()
        if a.report.get("kind") == kind
    ]
    return min(candidates, key=lambda item: len(item[1])) if candidates else None


def differences(then: dict[str, Any], now: dict[str, Any]) -> list[dict[str, Any]]:
    """Leaf by leaf: the dotted key, the value then and the value now."""
    before, after = _leaves(then), _leaves(now)
    return [
        {"key": key, "then": before.get(key), "now": after.get(key)}
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]


def _leaves(node: Any, key: str = "") -> dict[str, Any]:
    if isinstance(node, dict):
        leaves: dict[str, Any] = {}
        for name, value in node.items():
            leaves.update(_leaves(value, f"{key}.{name}" if key else str(name)))
        return leaves
    return {key: node[:12] if isinstance(node, str) and len(node) == 64 else node}
