"""Race: one more run over all finished points of a sweep, their results measured in turns."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from lcc.config.cards import STAGES, decode, find_card
from lcc.core.errors import LccError, PreemptedError
from lcc.core.progress import Progress
from lcc.pipeline.planner import one_more_step
from lcc.pipeline.recipe import Recipe
from lcc.pipeline.runner import RunRecord, run_pipeline
from lcc.pipeline.steps import Pipeline, Step, trained_step

# Enough to tell plans apart; a recipe's own bench stage says otherwise.
RACE = {"rounds": 2, "requests": 2, "batch_sizes": [1]}


@dataclass(frozen=True)
class Entrant:
    """One finished point: what it is called, and the steps that made it."""

    label: str
    pipeline: Pipeline

    @property
    def word(self) -> str:
        """The label as part of a step's and a folder's name."""
        return re.sub(r"[^\w=.,+-]+", "_", self.label).strip("_.") or "point"


def race(entrants: Sequence[Entrant], words: list[str], *, quiet: bool = False) -> RunRecord | None:
    """One more run over all points that finished: their steps, and one bench of their results."""
    if not entrants:
        return None
    steps = _together(entrants)
    recipe = entrants[0].pipeline.recipe
    recipe = replace(recipe, name=f"{recipe.name}-sweep")
    bench = _bench(recipe, steps)
    try:
        return run_pipeline(Pipeline(recipe, [*steps, *bench]), words=words, verb="sweep", quiet=quiet)
    except PreemptedError:
        raise
    except LccError as error:
        if not bench:
            raise
        # Memory for all models at once, say: quality and bytes are left to compare.
        Progress(quiet=quiet).warn(f"speed is not compared: {error}")
    return run_pipeline(Pipeline(recipe, steps), words=words, verb="sweep", quiet=quiet)


def _together(entrants: Sequence[Entrant]) -> list[Step]:
    """Every step once, renamed after its point; only what plans are given and make is a model."""
    made: dict[str, Step] = {}
    for entrant in entrants:
        given, result = _ends(entrant.pipeline)
        for step in entrant.pipeline.steps:
            known = made.get(step.key)
            if known is None:
                taken = {s.name for s in made.values()}
                name = step.name if step.name not in taken else f"{step.name}@{entrant.word}"
                inputs = {n: made[s.key] for n, s in step.inputs.items()}
                known = Step(name, step.kind, step.stage, inputs, step.nouns)
            shown = known.checkpoint
            if step.key == result.key:
                shown = entrant.word
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
    planned = [s for s in made if trained_step(s.name) in pipeline.recipe.plan]
    if not planned:
        return made[0], made[-1]
    before = made[: made.index(planned[0])]
    return before[-1], planned[-1]


def _bench(recipe: Recipe, steps: list[Step]) -> list[Step]:
    """The step that measures every result in turns, where there is a task to measure."""
    node_of_bench: dict[str, Any] | None = RACE if len(recipe.stages) <= 2 else None
    for name, node in recipe.stages.items():
        if (node or {}).get("kind", name) == "bench":
            node_of_bench = {k: v for k, v in (node or {}).items() if k not in ("kind", "checkpoints")}
    if node_of_bench is None or recipe.task is None:
        return []
    stage = decode(find_card(STAGES, "bench"), node_of_bench, "stages.bench")
    inputs = {f"checkpoint.{s.checkpoint}": s for s in steps if s.checkpoint}
    return [one_more_step(recipe, steps, "bench", stage, inputs)]
