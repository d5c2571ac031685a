"""Measure the sensitivity of a model's blocks: block × action → lost quality and bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lcc.cli.arguments import Arguments, emit
from lcc.core.errors import RecipeError

if TYPE_CHECKING:
    from lcc.pipeline.recipe import LoadedRecipe

USAGE = """usage: lcc sensitivity model=NAME task=NAME [dataset=NAME] [key=value …] [--json]

  lcc sensitivity model=smollm2_135m task=generation dataset=nyt_text
  lcc sensitivity +recipe=lm_smollm2           the model that the recipe's plan is given
  lcc sensitivity model=./folder task=generation stages.sensitivity.actions=[w4,sparse24]

Every block is changed alone (stages.sensitivity.per=layer: every layer) by w8, w4, sparse50 and
width25, and judged by the KL of the model's answers to what it said before. Without a dataset a few
packaged sentences stand in, which is enough for an order and no more."""


def main(arguments: Arguments) -> int:
    if arguments.words:
        raise RecipeError(f"'{arguments.words[0]}' is no override; write key=value.")
    if not arguments.overrides:
        raise RecipeError("name a model and a task: lcc sensitivity model=NAME task=NAME.")
    from lcc import reports
    from lcc.cli.commands.run import require_installed
    from lcc.pipeline.planner import plan
    from lcc.pipeline.runner import refuse_sweep, run_pipeline

    refuse_sweep(arguments.overrides)
    loaded = with_texts(arguments.overrides)
    require_installed(loaded.recipe)
    run = run_pipeline(plan(loaded), words=loaded.words, verb="sensitivity")
    reports.write_reports(run.folder)
    step = next(s for s in reversed(run.facts["steps"]) if s["kind"] == "sensitivity")
    report = run.artifacts[step["name"]].report
    rows: list[dict[str, Any]] = report["tables"]["sensitivity"]
    if arguments.json:
        emit(
            {"run": run.name, "key": step["key"], "measures": report["measures"], "sensitivity": rows},
            True,
            "",
        )
        return 0
    reports.print_sensitivity(rows, report["notes"], run.folder)
    return 0


def with_texts(words: list[str]) -> LoadedRecipe:
    """The recipe of these words, with a packaged dataset for the task where they choose none."""
    from lcc.config.compose import smoke_datasets
    from lcc.pipeline.recipe import load

    loaded = load(words, "sensitivity")
    if loaded.recipe.dataset is not None or loaded.recipe.task is None:
        return loaded
    name = smoke_datasets().get(loaded.recipe.task.name)
    return load([*words, f"dataset={name}"], "sensitivity") if name else loaded
