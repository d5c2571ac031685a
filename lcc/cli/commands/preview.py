"""List the steps of a recipe, which are finished, and what the others will cost."""

from __future__ import annotations

import dataclasses
from typing import Any

from lcc.cli.arguments import Arguments, emit
from lcc.core.errors import RecipeError
from lcc.core.format import duration, size
from lcc.pipeline.estimate import Estimate, estimate
from lcc.pipeline.planner import pipeline_of
from lcc.pipeline.runner import refuse_sweep
from lcc.store.store import ROOT, Store

USAGE = """usage: lcc preview +recipe=NAME [key=value …] [--json]

Nothing runs. Times are reckoned from the model's size until a like step has been measured here."""


def main(arguments: Arguments) -> int:
    if not arguments.overrides:
        raise RecipeError("name a recipe: lcc preview +recipe=NAME (lcc recipes ls).")
    refuse_sweep(arguments.overrides)
    pipeline = pipeline_of(arguments.overrides, "preview")
    estimates = estimate(pipeline, Store(ROOT))
    rows = [
        {"name": s.name, "kind": s.kind, "key": s.key, **dataclasses.asdict(estimates[s.name])}
        for s in pipeline.steps
    ]
    emit(rows, arguments.json, _table(rows, list(estimates.values())))
    return 0


def _table(rows: list[dict[str, Any]], estimates: list[Estimate]) -> str:
    width = max(len(row["name"]) for row in rows)
    lines = [f"{'step':{width}}  {'state':9}  {'time':>9}  {'memory':>9}  {'disk':>9}"]
    for row in rows:
        state = "in store" if row["basis"] == "store" else row["basis"]
        cells = (
            [duration(row["seconds"]), size(row["memory_bytes"]), size(row["disk_bytes"])]
            if state != "in store"
            else ["–"] * 3
        )
        lines.append(f"{row['name']:{width}}  {state:9}  " + "  ".join(f"{c:>9}" for c in cells))
    todo = [e for e in estimates if e.basis != "store"]
    seconds = duration(sum(e.seconds for e in todo))
    memory = size(max((e.memory_bytes for e in todo), default=0))
    disk = size(sum(e.disk_bytes for e in todo))
    lines.append(
        f"{len(todo)} of {len(rows)} steps to run: about {seconds}, peak memory {memory}, disk {disk}"
    )
    return "\n".join(lines)
