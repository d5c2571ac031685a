"""From a model folder and a recipe to what is served: engine, session, task with its labels."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from lcc.core.errors import RecipeError
from lcc.core.machine import free_cores
from lcc.core.store import Store
from lcc.exporting.selecting import select
from lcc.inference.sessions import Opening
from lcc.parts.checkpoint import read_card
from lcc.parts.folder import examine, read_json
from lcc.runner import ROOT
from lcc.serve.options import ServeOptions
from lcc.serve.served import Served

if TYPE_CHECKING:
    from lcc.parts.task import Task
    from lcc.recipe import Recipe


def opened(folder: Path, recipe: Recipe, options: ServeOptions, engine: str) -> Served:
    """The model in memory; raises RecipeError where engine, head and task do not go together."""
    examine(folder)
    task = _fitting(recipe.task, folder)
    opening = Opening(threads=recipe.threads or free_cores(), slots=options.slots,
                      context=options.context, device=recipe.device_type,
                      dtype=recipe.dtype, prefix_mb=options.prefix_mb)  # fmt: skip
    chosen = select(engine, folder, opening, store=Store(ROOT), say=_say, rows=options.slots)
    session = chosen.open(opening)
    served = Served(folder, session, options, task, chosen.engine)
    if not served.offers:
        raise RecipeError(f"model {session.card.name!r} ({session.card.head}) has nothing to "
                          "serve; choose another, or add a task it was trained for.")  # fmt: skip
    return served


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


def _fitting(task: Task | None, folder: Path) -> Task | None:
    """The task with its labels known, if the model has the head for it."""
    if task is None:
        return None
    head = read_card(folder).head
    if task.head != head:
        raise RecipeError(f"task {task.name!r} needs a {task.head} head, which this model ({head}) "
                          f"does not have; leave the task out.")  # fmt: skip
    if task.labels != "from_data":
        return task
    named = read_json(folder / "config.json").get("id2label") or {}
    if head != "classify":
        raise RecipeError(f"task {task.name!r} takes its labels from data; name them: "
                          "'task.labels=[negative,positive]'.")  # fmt: skip
    names = tuple(str(named[i]) for i in sorted(named, key=int))
    return dataclasses.replace(task, labels=names)
