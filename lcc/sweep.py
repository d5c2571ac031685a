"""`-m a=1,2,3`: many recipes, one after another, shared steps once, one table at the end."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lcc.core.catalog import STAGES, card
from lcc.core.decode import Mistakes, decode
from lcc.core.errors import LccError, PreemptedError, RecipeError
from lcc.core.progress import Progress
from lcc.core.words import expanded
from lcc.pipeline import Pipeline, Step
from lcc.planning import one_more_step, plan_steps
from lcc.recipe import Recipe, load_composed, scaled
from lcc.runner import Run, run_pipeline

# Enough to tell plans apart; a recipe's own bench stage says otherwise.
RACE = {"rounds": 2, "requests": 2, "batch_sizes": [1]}


@dataclass
class Point:
    """One point of a sweep: the words that differ, and its run or its error."""

    words: list[str]
    varied: list[str] = field(default_factory=list)
    run: Run | None = None
    error: LccError | None = None
    pipeline: Pipeline | None = None

    @property
    def label(self) -> str:
        """What tells it from the others, short: the choice itself where one group varies."""
        if len(self.varied) == 1:
            key, _, value = self.varied[0].partition("=")
            return value if "." not in key else self.varied[0]
        return ",".join(self.varied)


def pipeline_of(words: list[str], verb: str) -> Pipeline:
    """The steps that `lcc VERB WORDS` means; raises RecipeError with every mistake's place."""
    pipeline = _planned(words, verb)
    return pipeline if verb in ("run", "preview") else pipeline.up_to(verb)


def _planned(words: list[str], verb: str, *, judged: bool = False) -> Pipeline:
    composed = scaled(words)
    recipe = load_composed(composed, verb)
    if judged:
        recipe = _judged(recipe)
    if verb == "sensitivity":
        recipe = _probed(recipe)
    try:
        return plan_steps(recipe)
    except Mistakes as mistakes:
        raise composed.explain(mistakes) from None


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
            if verb == "compress":
                point.pipeline = _untimed(_planned(point.words, verb, judged=True))
            else:
                point.pipeline = pipeline_of(point.words, verb)
            point.run = run_pipeline(point.pipeline, words=point.words, verb=verb, quiet=quiet)
        except PreemptedError:
            raise  # whoever interrupts a sweep means all of it
        except LccError as error:
            point.error = error
    return todo


def _judged(recipe: Recipe) -> Recipe:
    """The recipe with an evaluation of what its plan is given and makes, where it has none."""
    has_eval = any((node or {}).get("kind", n) == "eval" for n, node in recipe.stages.items())
    if has_eval or list(recipe.stages) != ["compress"] or not recipe.plan:
        return recipe
    if recipe.task is None or recipe.dataset is None:
        return recipe
    wanted = {"checkpoints": ["base", list(recipe.plan)[-1]]}
    return replace(recipe, stages={**recipe.stages, "eval": wanted})


def _probed(recipe: Recipe) -> Recipe:
    """The recipe up to what its plan is given, and the sensitivity of that."""
    if any((node or {}).get("kind", n) == "sensitivity" for n, node in recipe.stages.items()):
        return recipe
    names = list(recipe.stages)
    before = names[: names.index("compress")] if "compress" in names else names
    kinds = {n: (recipe.stages[n] or {}).get("kind", n) for n in before}
    kept = {n: recipe.stages[n] for n in before if kinds[n] not in ("eval", "bench")}
    return replace(recipe, stages={**kept, "sensitivity": {}})


def _untimed(pipeline: Pipeline) -> Pipeline:
    """Without its bench: the points race together at the end, under the same conditions."""
    return Pipeline(pipeline.recipe, [s for s in pipeline.steps if s.kind != "bench"])


def race(done: Sequence[Point], words: list[str], *, quiet: bool = False) -> Run | None:
    """One more run over all points that finished: their steps, and one bench of their results."""
    whole = [p for p in done if p.run is not None and p.pipeline is not None]
    if not whole:
        return None
    steps = _together(whole)
    recipe = _first(whole).recipe
    recipe = replace(recipe, name=f"{recipe.name}-sweep")
    bench = _bench(recipe, steps)
    try:
        return run_pipeline(Pipeline(recipe, [*steps, *bench]), words=words, verb="sweep",
                            quiet=quiet)  # fmt: skip
    except PreemptedError:
        raise
    except LccError as error:
        if not bench:
            raise
        # Memory for all models at once, say: quality and bytes are left to compare.
        Progress(quiet=quiet).warn(f"speed is not compared: {error}")
    return run_pipeline(Pipeline(recipe, steps), words=words, verb="sweep", quiet=quiet)


def _first(whole: Sequence[Point]) -> Pipeline:
    assert whole[0].pipeline is not None
    return whole[0].pipeline


def _together(whole: Sequence[Point]) -> list[Step]:
    """Every step once, renamed after its point; only what plans are given and make is a model."""
    made: dict[str, Step] = {}
    for point in whole:
        assert point.pipeline is not None
        given, result = _ends(point.pipeline)
        for step in point.pipeline.steps:
            known = made.get(step.key)
            if known is None:
                taken = {s.name for s in made.values()}
                name = step.name if step.name not in taken else f"{step.name}@{_word(point)}"
                inputs = {n: made[s.key] for n, s in step.inputs.items()}
                known = Step(name, step.kind, step.stage, inputs, step.nouns)
            shown = known.checkpoint
            if step.key == result.key:
                shown = _word(point)
            elif step.key == given.key:
                shown = shown or step.checkpoint
            made[step.key] = replace(known, checkpoint=shown)
    return _relinked(made)


def _relinked(made: dict[str, Step]) -> list[Step]:
    """The same steps, each with the final version of its inputs."""
    final: dict[str, Step] = {}
    for key, step in made.items():
        inputs = {n: final[s.key] for n, s in step.inputs.items()}
        final[key] = replace(step, inputs=inputs)
    return list(final.values())


def _ends(pipeline: Pipeline) -> tuple[Step, Step]:
    """The model that the plan was given, and the last one it made."""
    made = list(pipeline.checkpoints.values())
    planned = [s for s in made if s.name.removesuffix(".merged") in pipeline.recipe.plan]
    if not planned:
        return made[0], made[-1]
    before = made[: made.index(planned[0])]
    return before[-1], planned[-1]


def _word(point: Point) -> str:
    """The label as part of a step's and a folder's name."""
    return re.sub(r"[^\w=.,+-]+", "_", point.label).strip("_.") or "point"


def _bench(recipe: Recipe, steps: list[Step]) -> list[Step]:
    """The step that measures every result in turns, where there is a task to measure."""
    found: dict[str, Any] | None = RACE if len(recipe.stages) <= 2 else None
    for name, node in recipe.stages.items():
        if (node or {}).get("kind", name) == "bench":
            found = {k: v for k, v in (node or {}).items() if k not in ("kind", "checkpoints")}
    if found is None or recipe.task is None:
        return []
    stage = decode(card(STAGES, "bench"), found, "stages.bench")
    inputs = {f"checkpoint.{s.checkpoint}": s for s in steps if s.checkpoint}
    return [one_more_step(recipe, steps, "bench", stage, inputs)]
