"""Specification of a sweep before it runs: its launcher, sampler, objectives, ranges and folder."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lcc.config.cards import describe, digest
from lcc.config.compose import compose
from lcc.config.search_space import Search, ranges
from lcc.core.errors import RecipeError, did_you_mean
from lcc.pipeline.recipe import Recipe, load_composed
from lcc.pipeline.steps import Pipeline
from lcc.reports import results
from lcc.store.runs import RunFacts
from lcc.store.sweeps import Sweep, read_sweep

OWN = ("launcher", "sampler", "objectives")  # groups and keys that speak of the sweep as a whole


@dataclass(frozen=True)
class SweepSpec:
    """The words of a sweep, understood."""

    name: str
    launcher: Any
    sampler: Any
    search: Search
    words: list[str] = field(default_factory=list)  # of a point, its ranges still open


def parse_sweep(words: Sequence[str]) -> SweepSpec:
    """What `-m WORDS` asks for; raises RecipeError with one sentence a mistake."""
    about = [word for word in words if _head(word) in OWN]
    several = next((word for word in about if ranges([word])), None)
    if several is not None:
        raise RecipeError(f"'{several}': a sweep has one {_head(several)}; write one value.")
    open_words = [word for word in words if word not in about]
    recipe = _recipe_of([*_recipes(open_words), *about])
    search = Search(tuple(ranges(open_words)), dict(recipe.objectives))
    recipe.sampler.check(search)
    return SweepSpec(recipe.name, recipe.launcher, recipe.sampler, search, open_words)


def _recipe_of(words: list[str]) -> Recipe:
    """Only what a recipe says about the sweep: its points may still be full of mistakes."""
    composed = compose(words)
    composed.values.update({"stages": {}, "plan": {}})
    return load_composed(composed)


def _recipes(words: Sequence[str]) -> list[str]:
    """The word that names the recipe; where several are swept, the first speaks for all."""
    recipe_words = [word for word in words if _head(word) == "recipe"]
    listed = ranges(recipe_words)
    return [f"+recipe={listed[0].values[0]}"] if listed and hasattr(listed[0], "values") else recipe_words


def _head(word: str) -> str:
    return word.lstrip("+~").partition("=")[0].partition(".")[0]


def open_sweep(wanted: SweepSpec, words: list[str], *, verb: str, root: Path) -> Sweep:
    """The sweep of these words: as an earlier command left it, or new.

    Where its points run is no part of what it is: another launcher goes on with the same sweep.
    """
    same = [word for word in words if _head(word) != "launcher"]
    folder = root / f"sweep-{wanted.name}-{digest([verb, same])[:8]}"
    if (folder / "sweep.json").is_file():
        sweep = read_sweep(folder)
    else:
        sweep = Sweep(folder, verb, words, started=f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}")
    sweep.name, sweep.words = wanted.name, words
    sweep.command = shlex.join(["lcc", verb, "-m", *words])
    sweep.launcher, sweep.sampler = describe(wanted.launcher), describe(wanted.sampler)
    sweep.objectives = wanted.search.objectives
    sweep.ranges = [describe(r) for r in wanted.search.ranges]
    return sweep


# What a run measured, under the names that objectives are written with.


def measured(run: RunFacts) -> dict[str, float]:
    """Every number of `run`: `STEP.MEASURE`, and of its last model plain `bytes`, `bleu`, …"""
    figures: dict[str, float] = {}
    for step in run.steps:
        if step.report is None:
            continue
        figures[f"{step.name}.seconds"] = step.report.facts.get("seconds") or step.seconds
        if step.model_bytes:
            figures[f"{step.name}.bytes"] = step.model_bytes
        numbers = {name: step.report.number(name) for name in step.report.measures}
        figures |= {f"{step.name}.{n}": v for n, v in numbers.items() if v is not None}
    rows = results.rows(run)
    return {**figures, **(_of_last(rows[-1]) if rows else {})}


def _of_last(row: results.CheckpointRow) -> dict[str, float]:
    """What readers ask of the model that a run ends with."""
    known = {
        "bytes": row.bytes,
        "parameters": row.parameters,
        "tokens_per_second": row.speed.decode,
        "texts_per_second": row.speed.texts,
    }
    scores = {name: score.value for name, score in row.scores.items()}
    return {**{name: value for name, value in known.items() if value is not None}, **scores}


def values_of(run: RunFacts, objectives: Iterable[str]) -> dict[str, float]:
    """The figure of every objective; raises RecipeError for one that the run did not measure."""
    figures = measured(run)
    missing = next((name for name in objectives if name not in figures), None)
    if missing is not None:
        hint = did_you_mean(missing, figures)
        raise RecipeError(f"objectives: run {run.name} measured no {missing!r}{hint}")
    return {name: figures[name] for name in objectives}


def check_steps(pipeline: Pipeline, objectives: Iterable[str]) -> None:
    """Raise RecipeError, before anything runs, for an objective of a step that nobody planned."""
    steps = [step.name for step in pipeline.steps]
    for name in objectives:
        place = name.rpartition(".")[0]
        if place and place not in steps:
            raise RecipeError(
                f"objectives: {name!r} is measured by a step {place!r}, which this "
                f"recipe does not have{did_you_mean(place, steps)}"
            )
