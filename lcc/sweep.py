"""`-m a=1,2,3`: many recipes, one after another, shared steps once, one table at the end."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

from lcc.core.decode import Mistakes
from lcc.core.errors import LccError, PreemptedError, RecipeError
from lcc.core.words import expanded
from lcc.pipeline import Pipeline
from lcc.planning import plan_steps
from lcc.recipe import load_composed, scaled
from lcc.runner import Run, run_pipeline


@dataclass
class Point:
    """One point of a sweep: the words that differ, and its run or its error."""

    words: list[str]
    varied: list[str] = field(default_factory=list)
    run: Run | None = None
    error: LccError | None = None


def pipeline_of(words: list[str], verb: str) -> Pipeline:
    """The steps that `lcc VERB WORDS` means; raises RecipeError with every mistake's place."""
    composed = scaled(words)
    recipe = load_composed(composed, verb)
    try:
        pipeline = plan_steps(recipe)
    except Mistakes as mistakes:
        raise composed.explain(mistakes) from None
    return pipeline if verb in ("run", "preview") else pipeline.up_to(verb)


def run_words(words: list[str], *, verb: str, quiet: bool = False) -> Run:
    """Compose, plan and run one recipe."""
    refuse_sweep(words)
    return run_pipeline(pipeline_of(words, verb), words=words, verb=verb, quiet=quiet)


def refuse_sweep(words: list[str]) -> None:
    """A sweep without -m would silently take one point: refuse it."""
    varied = [word for word, values in expanded(words) if len(values) > 1]
    if varied:
        raise RecipeError(f"'{varied[0]}' has several values; add -m to run one after another.")


def points(words: list[str]) -> list[Point]:
    """The cartesian product of every swept word."""
    choices = expanded(words)
    varies = [len(values) > 1 for _, values in choices]
    combinations = itertools.product(*(values for _, values in choices))
    return [Point(list(c), list(itertools.compress(c, varies))) for c in combinations]


def run_sweep(words: list[str], *, verb: str, quiet: bool = False) -> list[Point]:
    """Run every point; a failed one keeps its error and the next goes on."""
    todo = points(words)
    for point in todo:
        try:
            point.run = run_pipeline(
                pipeline_of(point.words, verb), words=point.words, verb=verb, quiet=quiet
            )
        except PreemptedError:
            raise  # whoever interrupts a sweep means all of it
        except LccError as error:
            point.error = error
    return todo
