"""What a run measured, under the names that objectives are written with."""

from __future__ import annotations

from collections.abc import Iterable

from lcc.core.errors import RecipeError
from lcc.core.nearest import did_you_mean
from lcc.core.report import Run
from lcc.pipeline import Pipeline
from lcc.views import results


def measured(run: Run) -> dict[str, float]:
    """Every number of `run`: `STEP.MEASURE`, and of its last model plain `bytes`, `bleu`, …"""
    found: dict[str, float] = {}
    for step in run.steps:
        if step.report is None:
            continue
        found[f"{step.name}.seconds"] = step.report.facts.get("seconds") or step.seconds
        if step.model_bytes:
            found[f"{step.name}.bytes"] = step.model_bytes
        numbers = {name: step.report.number(name) for name in step.report.measures}
        found |= {f"{step.name}.{n}": v for n, v in numbers.items() if v is not None}
    rows = results.rows(run)
    return {**found, **(_of_last(rows[-1]) if rows else {})}


def _of_last(row: results.Row) -> dict[str, float]:
    """What readers ask of the model that a run ends with."""
    known = {
        "bytes": row.bytes,
        "parameters": row.parameters,
        "tokens_per_second": row.speed.decode,
        "texts_per_second": row.speed.texts,
    }
    scores = {name: score.value for name, score in row.scores.items()}
    return {**{name: value for name, value in known.items() if value is not None}, **scores}


def values_of(run: Run, objectives: Iterable[str]) -> dict[str, float]:
    """The figure of every objective; raises RecipeError for one that the run did not measure."""
    found = measured(run)
    missing = next((name for name in objectives if name not in found), None)
    if missing is not None:
        hint = did_you_mean(missing, found)
        raise RecipeError(f"objectives: run {run.name} measured no {missing!r}{hint}")
    return {name: found[name] for name in objectives}


def check_steps(pipeline: Pipeline, objectives: Iterable[str]) -> None:
    """Raise RecipeError, before anything runs, for an objective of a step that nobody planned."""
    steps = [step.name for step in pipeline.steps]
    for name in objectives:
        place = name.rpartition(".")[0]
        if place and place not in steps:
            raise RecipeError(f"objectives: {name!r} is measured by a step {place!r}, which this "
                              f"recipe does not have{did_you_mean(place, steps)}")  # fmt: skip
