"""What the words of a command, or of one point of a sweep, mean as steps."""

from __future__ import annotations

from dataclasses import replace

from lcc.core.decode import Mistakes
from lcc.core.errors import RecipeError
from lcc.pipeline import Pipeline
from lcc.planning import plan_steps
from lcc.recipe import Recipe, load_composed, scaled


def pipeline_of(words: list[str], verb: str) -> Pipeline:
    """The steps that `lcc VERB WORDS` means; raises RecipeError with every mistake's place."""
    pipeline = _planned(words, verb)
    return pipeline if verb in ("run", "preview") else pipeline.up_to(verb)


def point_pipeline(words: list[str], verb: str) -> Pipeline:
    """The steps of one point: points of `compress` are judged by themselves and raced together."""
    if verb != "compress":
        pipeline = pipeline_of(words, verb)
    else:
        pipeline = _untimed(_planned(words, verb, judged=True))
    if (nodes := pipeline.recipe.distributed.nodes) > 1:
        raise RecipeError(f"distributed.nodes: a point of a sweep runs on one node, got {nodes}; "
                          "set it to 1 and let the launcher spread the points.")  # fmt: skip
    return pipeline


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
