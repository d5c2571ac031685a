"""The model folder that a word on the command line means, and the run it comes from."""

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lcc.cli.arguments import Arguments
from lcc.core.errors import RecipeError, did_you_mean
from lcc.store.store import ROOT

if TYPE_CHECKING:
    from lcc.pipeline.recipe import LoadedRecipe, Recipe


@dataclass(frozen=True)
class ModelFolder:
    """A model folder; `run` holds run.json's facts and `step` the checkpoint's name, if any."""

    folder: Path
    name: str
    run: dict[str, Any] | None = None
    step: str = ""


def named_model(word: str) -> ModelFolder:
    """The model of a step of the last run, of RUN/STEP, of a key's start, or in a folder.

    Raises RecipeError, which names what is near, where there is none.
    """
    place = Path(word)
    if place.is_dir():
        folder = place / "model" if (place / "model").is_dir() else place
        return ModelFolder(folder, place.resolve().name)
    run, slash, step = word.rpartition("/")
    if slash or _is_of_last_run(step):
        return model_of_run(run, step)
    return ModelFolder(_by_key(word), word)


def model_of_run(run: str, step: str) -> ModelFolder:
    """The model of a step; of the last run where none is named."""
    from lcc.pipeline.runner import find_model, last_run

    facts = _facts(run) if run else last_run()
    return ModelFolder(find_model(step, facts), f"{facts['run']}/{step}", facts, step)


def _is_of_last_run(step: str) -> bool:
    from lcc.pipeline.runner import last_run

    if not (ROOT / "last").is_file():
        return False
    return any(s.get("checkpoint") == step for s in last_run()["steps"])


def _by_key(word: str) -> Path:
    from lcc.store.store import Store, resolve

    store = Store(ROOT)
    artifact = store.find(resolve(store, word))
    if artifact is None or not (artifact.path / "model").is_dir():
        raise RecipeError(f"{word!r} holds no model; name a step that makes one, or a folder.")
    return artifact.path / "model"


def _facts(run: str) -> dict[str, Any]:
    path = ROOT / run / "run.json"
    if not path.is_file():
        known = [p.parent.name for p in ROOT.glob("*/run.json")]
        raise RecipeError(f"no run is named {run!r}{did_you_mean(run, known)}")
    facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return facts


# Which model the words of a command line mean: the last run's, a recipe's, or any folder.


def recipe_and_model(arguments: Arguments, verb: str) -> tuple[Recipe, Path]:
    """The recipe that these words mean, and the model folder that `verb` is to use."""
    from lcc.pipeline.recipe import load, load_recipe
    from lcc.pipeline.runner import find_model, last_run

    name = arguments.words[0] if arguments.words else None
    if not arguments.overrides:
        facts = last_run()
        print(f"going on with {facts['run']}", file=sys.stderr)
        return load_recipe(facts["words"]), find_model(name, facts)
    loaded = load(arguments.overrides)
    recipe = loaded.recipe
    if recipe.stages:
        return recipe, _made_by(loaded, name)
    if recipe.model is None:
        raise RecipeError(f"{verb} needs a model; add +recipe=NAME, or model=PATH with task=NAME.")
    if name is not None:
        raise RecipeError(f"checkpoint {name!r} of what? Name its recipe with +recipe=NAME.")
    return recipe, _folder(recipe, arguments.overrides, verb)


def _made_by(loaded: LoadedRecipe, name: str | None) -> Path:
    """The named model of a recipe, or its last finished one."""
    from lcc.core.errors import did_you_mean
    from lcc.pipeline.planner import plan
    from lcc.store.store import ROOT, Store

    made = plan(loaded).checkpoints
    if name is not None and name not in made:
        raise RecipeError(f"this recipe has no model {name!r}{did_you_mean(name, list(made))}")
    store = Store(ROOT)
    for checkpoint in [name] if name else reversed(made):
        artifact = store.find(made[checkpoint].key)
        if artifact is not None:
            return artifact.path / "model"
    raise RecipeError(f"no model is finished yet; make it with lcc run {' '.join(loaded.words)}.")


def _folder(recipe: Recipe, words: list[str], verb: str) -> Path:
    """A model folder as it lies, or what another source makes, built into the store once."""
    from lcc.pipeline.planner import plan_steps
    from lcc.pipeline.runner import run_pipeline
    from lcc.store.store import ROOT, Store

    assert recipe.model is not None
    if recipe.model.source.path is not None:
        return Path(recipe.model.source.path)
    pipeline = plan_steps(dataclasses.replace(recipe, dataset=None))
    artifact = Store(ROOT).find(pipeline.step("base").key)
    if artifact is None:
        artifact = run_pipeline(pipeline, words=words, verb=verb).artifacts["base"]
    return artifact.path / "model"
