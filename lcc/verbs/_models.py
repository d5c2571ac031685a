"""Which model the words of a command line mean: the last run's, a recipe's, or any folder."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from lcc.core.arguments import Arguments
from lcc.core.errors import RecipeError

if TYPE_CHECKING:
    from lcc.recipe import Recipe


def found_model(arguments: Arguments, verb: str) -> tuple[Recipe, Path]:
    """The recipe that these words mean, and the model folder that `verb` is to use."""
    from lcc.recipe import load_recipe
    from lcc.runner import find_model, last_run

    name = arguments.words[0] if arguments.words else None
    if not arguments.overrides:
        facts = last_run()
        print(f"going on with {facts['run']}", file=sys.stderr)
        return load_recipe(facts["words"]), find_model(name, facts)
    recipe = load_recipe(arguments.overrides)
    if recipe.stages:
        return recipe, _made_by(arguments.overrides, name)
    if recipe.model is None:
        raise RecipeError(f"{verb} needs a model; add +recipe=NAME, or model=PATH with task=NAME.")
    if name is not None:
        raise RecipeError(f"checkpoint {name!r} of what? Name its recipe with +recipe=NAME.")
    return recipe, _folder(recipe, arguments.overrides, verb)


def _made_by(words: list[str], name: str | None) -> Path:
    """The named model of a recipe, or its last finished one."""
    from lcc.core.nearest import did_you_mean
    from lcc.core.store import Store
    from lcc.runner import ROOT
    from lcc.sweep import pipeline_of

    made = pipeline_of(words, "run").checkpoints
    if name is not None and name not in made:
        raise RecipeError(f"this recipe has no model {name!r}{did_you_mean(name, list(made))}")
    store = Store(ROOT)
    for checkpoint in [name] if name else reversed(made):
        artifact = store.find(made[checkpoint].key)
        if artifact is not None:
            return artifact.path / "model"
    raise RecipeError(f"no model is finished yet; make it with lcc run {' '.join(words)}.")


def _folder(recipe: Recipe, words: list[str], verb: str) -> Path:
    """A model folder as it lies, or what another source makes, built into the store once."""
    from lcc.core.store import Store
    from lcc.planning import plan_steps
    from lcc.runner import ROOT, run_pipeline

    assert recipe.model is not None
    if recipe.model.source.path is not None:
        return Path(recipe.model.source.path)
    pipeline = plan_steps(dataclasses.replace(recipe, dataset=None))
    artifact = Store(ROOT).find(pipeline.step("base").key)
    if artifact is None:
        artifact = run_pipeline(pipeline, words=words, verb=verb).artifacts["base"]
    return artifact.path / "model"
