"""Answer texts with a model: the last run's, a recipe's, or any folder."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lcc.core.arguments import Arguments
from lcc.core.errors import DataError, RecipeError
from lcc.verbs._models import found_model

if TYPE_CHECKING:
    from lcc.parts.task import Row, Task
    from lcc.recipe import Recipe

USAGE = """usage: lcc infer [CHECKPOINT] [+recipe=NAME | model=PATH task=NAME] [--text TEXT]

  lcc infer model=./folder task=translation --text "Open the file."
  lcc infer +recipe=mt_en_zh < lines.txt     its last finished model; one answer per line
  lcc infer base --text "Open the file."     the model named base of the last run

A task with several prompt fields reads one JSON object per line. Nothing is shown beside the
prompt, so a base model that needs examples answers worse here than in its evaluation."""

LINES = 32  # answered together when they come from a file or a pipe


def main(arguments: Arguments) -> int:
    if len(arguments.words) > 1:
        raise RecipeError(f"one checkpoint at a time, not {' and '.join(arguments.words)}.")
    recipe, path = found_model(arguments, "infer")
    if recipe.task is None:
        raise RecipeError("infer needs a task; add task=NAME, e.g. task=translation.")
    rows = _rows(arguments, recipe.task)
    said = []
    for row, output in _answered(recipe, path, rows):
        if arguments.json:
            said.append({**row, "output": output})
        else:
            print(output, flush=True)
    if arguments.json:
        print(json.dumps(said, ensure_ascii=False, indent=2))
    return 0


def _rows(arguments: Arguments, task: Task) -> Iterator[Row]:
    """Rows from --text, or from every line of stdin that is not blank."""
    text = arguments.options.get("text")
    if text is None and sys.stdin.isatty():
        print("one text per line; end with Ctrl-D", file=sys.stderr)
    lines: Iterable[str] = sys.stdin if text is None else [text]
    for number, line in enumerate(lines):
        if line.strip():
            yield _row(line.rstrip("\n"), task, number + 1)


def _row(line: str, task: Task, number: int) -> Row:
    """A row with the fields of the prompt; the answer's own are empty, for nobody knows them."""
    wanted = [name for name in task.fields if f"{{{name}}}" in task.template]
    blank: dict[str, Any] = {"id": str(number), **dict.fromkeys(task.fields, "")}
    if not wanted:
        raise DataError(f"task {task.name!r} has no prompt to fill; infer needs one with a prompt.")
    try:
        given = json.loads(line)
    except ValueError:
        given = None
    if isinstance(given, dict) and set(wanted) <= set(given):
        return {**blank, **given}
    if len(wanted) == 1:
        return {**blank, wanted[0]: line}
    raise DataError(f"line {number}: expected a JSON object with {', '.join(wanted)}.")


def _answered(
    recipe: Recipe, path: Path, rows: Iterator[Row]
) -> Iterator[tuple[dict[str, Any], str]]:
    """Each row's prompt fields with the model's answer, some lines together unless typed."""
    from lcc.engine.answering import Answering
    from lcc.parts.model import open_bundle

    assert recipe.task is not None
    bundle, task = open_bundle(path), recipe.task
    if bundle.lacks_head(task.head):
        raise RecipeError(f"model {bundle.card.name!r} has no trained {task.head} head; choose "
                          "another model, or fine-tune it on this task.")  # fmt: skip
    module = bundle.load(device=recipe.device_type, dtype=recipe.dtype)
    if task.labels == "from_data":
        names = module.config.id2label
        task = dataclasses.replace(task, labels=tuple(str(names[i]) for i in sorted(names)))
    model = Answering(module, bundle.tokenizer, task)
    together = 1 if sys.stdin.isatty() else LINES
    while batch := list(islice(rows, together)):
        for row, output in zip(batch, model.outputs(batch), strict=True):
            yield task.source(row), output[0]
