"""Run a recipe, whole or as far as one verb: run, pretrain, finetune, compress, eval, bench."""

from __future__ import annotations

import sys
from typing import Any

from lcc.cli.arguments import Arguments, emit
from lcc.core.errors import RecipeError, ResourceError
from lcc.pipeline.recipe import Recipe, load, scaled
from lcc.store.runs import read_run
from lcc.store.store import ROOT
from lcc.store.sweeps import Point, Sweep

# Verb → its line of `lcc --help`, and its usage; read by the command line without importing this file.
VERBS = {
    "bench": (
        "Measure the speed, memory and size of a recipe's checkpoints.",
        """usage: lcc bench [+recipe=NAME] [key=value …] [-m] [--cfg] [--json]

  lcc bench +recipe=tiny
  lcc bench                                  go on with the last run of this folder""",
    ),
    "compress": (
        "Run a recipe up to its compression plan, or a plan on any checkpoint.",
        """usage: lcc compress [+recipe=NAME] [key=value …] [-m] [--cfg] [--json]

  lcc compress +recipe=mt_en_zh
  lcc compress model=./folder plan=w8
  lcc compress                               go on with the last run of this folder""",
    ),
    "eval": (
        "Run a recipe up to its evaluation, or evaluate any checkpoint.",
        """usage: lcc eval [+recipe=NAME] [key=value …] [-m] [--cfg] [--json]

  lcc eval +recipe=mt_en_zh
  lcc eval model=./folder task=translation dataset=tiny_en_zh
  lcc eval                                   go on with the last run of this folder""",
    ),
    "finetune": (
        "Run a recipe up to and including fine-tuning.",
        """usage: lcc finetune [+recipe=NAME] [key=value …] [-m] [--cfg] [--json]

  lcc finetune +recipe=mt_en_zh clip.max_norm=0.5 distributed.world_size=2
  lcc finetune model=./folder dataset=tiny_en_zh task=translation""",
    ),
    "pretrain": (
        "Run a recipe up to and including pretraining.",
        """usage: lcc pretrain [+recipe=NAME] [key=value …] [-m] [--cfg] [--json]

  lcc pretrain +recipe=pretrain_tiny
  lcc pretrain model=smollm2_135m dataset=nyt_text task=generation   from a checkpoint""",
    ),
    "run": (
        "Run a recipe from the first step to the last, reusing what is finished.",
        """usage: lcc run +recipe=NAME [key=value …] [-m] [--cfg] [--json]

  lcc run +recipe=tiny                       seconds, offline
  lcc run +recipe=mt_en_zh_small seed=1      another seed
  lcc run +recipe=tiny scale=smoke           any recipe made tiny
  lcc run -m +recipe=tiny plan.quantize.bits=8,4
  lcc run +recipe=tiny --cfg                 print the composed recipe and stop""",
    ),
}


def main(arguments: Arguments) -> int:
    """Compose the recipe, run it as far as the verb goes and print its report; returns the exit code."""
    verb = arguments.verb
    if arguments.words:
        raise RecipeError(f"'{arguments.words[0]}' is no override; write key=value or +recipe=NAME.")
    words = arguments.overrides or _words_of_last_run(verb)
    if arguments.cfg:
        return _print_composed(words, as_json=arguments.json)
    if arguments.multirun:
        return _run_many(verb, words, as_json=arguments.json)
    return _run_one(verb, words, as_json=arguments.json)


def _words_of_last_run(verb: str) -> list[str]:
    """Bare verbs go on with the last run of this folder, and say which."""
    from lcc.pipeline.runner import last_run

    if verb == "run":
        raise RecipeError("nothing to run: name a recipe (lcc run +recipe=NAME; lcc recipes ls).")
    facts = last_run()
    print(f"going on with {facts['run']}: {' '.join(facts['words'])}", file=sys.stderr)
    return list(facts["words"])


def _print_composed(words: list[str], *, as_json: bool) -> int:
    from omegaconf import OmegaConf

    values = scaled(words).values
    emit(values, as_json, OmegaConf.to_yaml(OmegaConf.create(values)).rstrip())
    return 0


def _run_one(verb: str, words: list[str], *, as_json: bool) -> int:
    from lcc import reports
    from lcc.pipeline.follower import follow_pipeline, is_follower
    from lcc.pipeline.planner import plan
    from lcc.pipeline.runner import refuse_sweep, run_pipeline

    refuse_sweep(words)
    loaded = load(words, verb)
    require_installed(loaded.recipe)
    pipeline = plan(loaded)
    if is_follower(loaded.recipe):
        follow_pipeline(pipeline)
        return 0
    run = run_pipeline(pipeline, words=words, verb=verb)
    reports.write_reports(run.folder)
    if as_json:
        emit(run.facts, True, "")
    else:
        reports.print_run(run.folder)
    return 0


def _run_many(verb: str, words: list[str], *, as_json: bool) -> int:
    from lcc import reports
    from lcc.sweeps.driver import run_sweep
    from lcc.sweeps.race import Entrant, race

    driver = run_sweep(words, verb=verb)
    finished = driver.finished
    together = None
    if verb == "compress":
        entrants = [Entrant(point.label, driver.pipelines[point.index]) for point in finished]
        together = race(entrants, words)
    reports.write_sweep(driver.sweep.folder)
    if together is not None:
        reports.write_reports(together.folder)
    if as_json:
        emit([_point_facts(driver.sweep, point) for point in driver.sweep.points], True, "")
    else:
        if together is not None:
            reports.print_sweep(together.folder)
        reports.print_points(driver.sweep.folder)
    for point, result in driver.failed:
        print(f"lcc: {' '.join(point.varied)}: {result.error}", file=sys.stderr)
    return driver.failed[0][1].exit_code if driver.failed else 0


def _point_facts(sweep: Sweep, point: Point) -> dict[str, Any]:
    """run.json of a finished point; of another what became of it."""
    status, result = sweep.status(point), sweep.result(point.index)
    if status == "finished" and result is not None:
        return {"point": point.varied, **read_run(ROOT / result.run).facts}
    error = result.error if result else ""
    return {"point": point.varied, "status": status, "error": error}


def require_installed(recipe: Recipe) -> None:
    """Raise ResourceError with the fetch that is missing, before anything starts."""
    from lcc.data import dataset
    from lcc.models import sources

    sentences = [
        sources.missing(recipe.model) if recipe.model else None,
        dataset.missing(recipe.dataset) if recipe.dataset else None,
    ]
    missing = [sentence for sentence in sentences if sentence]
    if missing:
        raise ResourceError("\n".join(missing))
