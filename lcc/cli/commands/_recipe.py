"""What `run`, `finetune`, `compress`, `eval` and `bench` have in common."""

from __future__ import annotations

import sys
from typing import Any

from lcc.cli.arguments import Arguments, emit
from lcc.core.errors import RecipeError
from lcc.pipeline.recipe import load_recipe, scaled
from lcc.store.runs import read_run
from lcc.store.store import ROOT
from lcc.store.sweeps import Point, Sweep


def run_verb(verb: str, arguments: Arguments) -> int:
    """Compose, run and show; returns the exit code."""
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
    from lcc.pipeline.follower import follow_pipeline, is_follower
    from lcc.pipeline.planner import pipeline_of
    from lcc.pipeline.runner import refuse_sweep, run_words

    refuse_sweep(words)
    check_installed(words)
    if is_follower(load_recipe(words, verb)):
        follow_pipeline(pipeline_of(words, verb))
        return 0
    run = run_words(words, verb=verb)
    from lcc import reports

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


def check_installed(words: list[str]) -> None:
    """Say in one line which fetch is missing, before anything starts."""
    from lcc.data import dataset
    from lcc.models import sources

    recipe = load_recipe(words)
    sentences = [
        sources.missing(recipe.model) if recipe.model else None,
        dataset.missing(recipe.dataset) if recipe.dataset else None,
    ]
    found = [sentence for sentence in sentences if sentence]
    if found:
        from lcc.core.errors import ResourceError

        raise ResourceError("\n".join(found))
