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
    recipe, path = _found(arguments)
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


def _found(arguments: Arguments) -> tuple[Recipe, Path]:
    """The recipe that these words mean, and the model folder to answer with."""
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
        raise RecipeError("infer needs a model; add +recipe=NAME, or model=PATH with task=NAME.")
    if name is not None:
        raise RecipeError(f"checkpoint {name!r} of what? Name its recipe with +recipe=NAME.")
    return recipe, _folder(recipe, arguments.overrides)


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


def _folder(recipe: Recipe, words: list[str]) -> Path:
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
        artifact = run_pipeline(pipeline, words=words, verb="infer").artifacts["base"]
    return artifact.path / "model"


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
