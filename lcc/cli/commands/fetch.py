"""Fetch a model's and a dataset's packages, after naming them, their size and their licence."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from lcc.cli.arguments import Arguments, emit
from lcc.core.errors import RecipeError
from lcc.core.format import size
from lcc.core.progress import Progress
from lcc.data import dataset
from lcc.data.local_files import Requirement
from lcc.methods.readers.packages.cache import cache_root
from lcc.models import sources
from lcc.pipeline.recipe import Recipe, load_recipe

USAGE = """usage: lcc fetch [model=NAME] [dataset=NAME] | +recipe=NAME [--dry-run] [--json]

  lcc fetch model=smollm2_135m dataset=packages_en_zh
  lcc fetch +recipe=mt_en_zh_small --dry-run     say what would be brought, bring nothing

Files go to $LCC_HOME, or ~/.cache/lcc, and are never installed or run. What is there already is
checked and kept."""


def main(arguments: Arguments) -> int:
    recipe = load_recipe(arguments.overrides)
    if recipe.model is None and recipe.dataset is None:
        raise RecipeError("nothing to fetch: give model=NAME, dataset=NAME or +recipe=NAME.")
    needed = _needed(recipe)
    listing = _listing(recipe, needed)
    # The announcement stands before the download; with --json it must not spoil the output.
    print(listing, file=sys.stderr if arguments.json else sys.stdout, flush=True)
    if not arguments.dry_run:
        _fetch(recipe, needed, Progress())
    if arguments.json:
        emit(_facts(needed), True, "")
    return 0


def _needed(recipe: Recipe) -> list[Requirement]:
    model = sources.requirements(recipe.model) if recipe.model is not None else []
    data = dataset.requirements(recipe.dataset) if recipe.dataset is not None else []
    return list(dict.fromkeys([*model, *data, *_grounding(recipe)]))


def _grounding(recipe: Recipe) -> list[Requirement]:
    """What the task's FAQ is read from."""
    if recipe.task is None or recipe.task.grounding is None:
        return []
    return list(recipe.task.grounding.reader.requirements())


def _fetch(recipe: Recipe, needed: Sequence[Requirement], progress: Progress) -> None:
    if recipe.model is not None:
        sources.fetch(recipe.model, progress=progress)
    for requirement in needed:
        requirement.fetch(progress)
    progress.info(f"everything is in {cache_root()}")


def _listing(recipe: Recipe, needed: Sequence[Requirement]) -> str:
    lines = [_line(one) for one in needed]
    absent = [one for one in needed if one.path is None]
    if absent:
        lines.append(f"to download: {size(sum(one.bytes for one in absent))} into {cache_root()}")
    elif needed:
        lines.append("nothing to download: all of it is here.")
    on_hub = sources.missing(recipe.model) if recipe.model is not None else None
    if on_hub and not any(one.path is None for one in sources.requirements(recipe.model)):  # type: ignore[arg-type]
        lines.append(on_hub.partition(";")[0])
    return "\n".join(lines) or "nothing to fetch: all of it is local or made on the spot."


def _line(one: Requirement) -> str:
    state = "here" if one.path is not None else "to fetch"
    parts = [size(one.bytes) if one.bytes else "", one.licence or "licence not stated", state]
    return f"{one.kind} {one.requirement}: {', '.join(part for part in parts if part)}"


def _facts(needed: Sequence[Requirement]) -> list[dict[str, Any]]:
    return [
        {
            "requirement": one.requirement,
            "bytes": one.bytes,
            "licence": one.licence,
            "path": str(one.path) if one.path else None,
        }
        for one in needed
    ]
