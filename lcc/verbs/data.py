"""Look at data before training on it: `check` counts and proves, `preview` shows examples."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lcc.core.arguments import Arguments, emit
from lcc.core.catalog import name_of
from lcc.core.errors import RecipeError, ResourceError
from lcc.core.nearest import did_you_mean
from lcc.core.progress import Progress
from lcc.core.store import ROOT, Store
from lcc.parts import data, inspection, sources
from lcc.parts.data import Counts, DatasetSpec, PreparedData
from lcc.parts.rows import Row
from lcc.planning import plan_steps
from lcc.recipe import Recipe, load_recipe, require

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lcc.parts.task import Task

USAGE = """usage: lcc data check   dataset=NAME [task=NAME] | +recipe=NAME [--json]
       lcc data preview dataset=NAME task=NAME [model=NAME] | +recipe=NAME [--json]

  lcc data check dataset=tiny_en_zh
  lcc data preview dataset=tiny_en_zh task=translation model=tiny_llama

`preview` marks what the loss is computed on; with a model it shows the tokens."""

NUM_SHOWN = 3
MAX_LENGTH = 512
MAX_PIECES = 4  # bytes of the longest UTF-8 character


def main(arguments: Arguments) -> int:
    actions = {"check": _check, "preview": _preview}
    action = (arguments.words or ["check"])[0]
    if action not in actions:
        raise RecipeError(f"data: no action is named {action!r}{did_you_mean(action, actions)}")
    recipe = load_recipe(arguments.overrides)
    spec = require(recipe.dataset, "dataset")
    with _prepared(recipe, spec) as prepared:
        return actions[action](recipe, prepared, arguments)


def _check(recipe: Recipe, prepared: PreparedData, arguments: Arguments) -> int:
    counts, rows = prepared.counts, prepared.rows("train")
    if recipe.task is not None:
        inspection.require_fields(rows, recipe.task.fields, task=recipe.task.name)
    num_compared = data.check_fence(prepared.folder)
    facts = {
        "dataset": require(recipe.dataset, "dataset").name,
        "reader": name_of(require(recipe.dataset, "dataset").source),
        "format": inspection.detected_format(rows),
        **asdict(counts),
        "lengths": inspection.lengths(rows),
        "fence": f"{num_compared} texts compared, none stands in two splits",
        "warnings": inspection.warnings(counts),
    }
    emit(facts, arguments.json, _checked(facts, counts))
    return 0


def _checked(facts: dict[str, Any], counts: Counts) -> str:
    lines = [f"{facts['dataset']}: {facts['format']}, reader {facts['reader']}",
             f"rows read        {counts.read:>8,}"]  # fmt: skip
    lines += [f"  removed        {n:>8,}  {why}" for why, n in counts.removed.items()]
    lines += [f"  left out       {n:>8,}  {why}" for why, n in counts.left_out.items()]
    for name, num in counts.rows.items():
        labels = ", ".join(f"{label} {n:,}" for label, n in counts.labels.get(name, {}).items())
        about = f"from {counts.documents[name]:,} documents{'; ' + labels if labels else ''}"
        lines.append(f"{name:15} {num:>9,}  {about}")
    for row in facts["lengths"]:
        shown = ", ".join(f"{k} {v:,}" for k, v in row.items() if k != "field")
        lines.append(f"words in {row['field']}: {shown}")
    lines.append(f"fence: {facts['fence']}")
    return "\n".join([*lines, *(f"warning: {sentence}" for sentence in facts["warnings"])])


def _preview(recipe: Recipe, prepared: PreparedData, arguments: Arguments) -> int:
    task = require(recipe.task, "task").for_data(prepared)
    rows = prepared.rows("train")
    inspection.require_fields(rows, task.fields, task=task.name)
    shown = rows[:: max(len(rows) // NUM_SHOWN, 1)][:NUM_SHOWN]
    tokenizer = _tokenizer(recipe) if recipe.model is not None else None
    examples = [_example(row, task, tokenizer) for row in shown]
    about = "the loss is computed on what stands after ▶ only"
    text = "\n\n".join([*map(_rendered, examples), about])
    emit(examples, arguments.json, text)
    return 0


def _example(row: Row, task: Task, tokenizer: PreTrainedTokenizerBase | None) -> dict[str, Any]:
    example: dict[str, Any] = {
        "id": row["id"], "doc": row["doc"],
        "prompt": task.prompt(row), "completion": task.completion(row),
    }  # fmt: skip
    if tokenizer is not None:
        example["tokens"] = _tokens(row, task, tokenizer)
    return example


def _tokens(row: Row, task: Task, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
    """Every token with whether the loss sees it, exactly as training will encode the row."""
    encoded = task.encode(row, tokenizer, max_length=MAX_LENGTH)
    ids, seen = list(encoded.input_ids), [False] * len(encoded.input_ids)
    if task.head == "causal":
        assert isinstance(encoded.labels, list)
        seen = [label >= 0 for label in encoded.labels]
    elif task.head == "seq2seq":
        assert isinstance(encoded.labels, list)
        ids, seen = [*ids, *encoded.labels], [*seen, *[True] * len(encoded.labels)]
    return [
        {"id": number, "text": text, "loss": trained}
        for number, text, trained in zip(ids, _texts(ids, tokenizer), seen, strict=True)
    ]


def _texts(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The text of each token; of a character in several pieces, the last piece has it."""
    texts = []
    pending: list[int] = []
    for number in ids:
        pending.append(number)
        text = str(tokenizer.decode(pending))
        is_whole = "\ufffd" not in text or len(pending) > MAX_PIECES
        texts.append(text if is_whole else "")
        pending = [] if is_whole else pending
    return texts


def _rendered(example: dict[str, Any]) -> str:
    lines = [f"── {example['doc']} · {example['id']}", f"  {_visible(example['prompt'])}",
             f"▶ {_visible(example['completion'])}"]  # fmt: skip
    if "tokens" in example:
        masked = [t["text"] or "·" for t in example["tokens"] if not t["loss"]]
        trained = [t["text"] or "·" for t in example["tokens"] if t["loss"]]
        lines += [f"  {len(masked)} tokens: {_visible('|'.join(masked))}",
                  f"▶ {len(trained)} tokens: {_visible('|'.join(trained))}"]  # fmt: skip
    return "\n".join(lines)


def _visible(text: str) -> str:
    return text.replace("\n", "⏎\n  ").replace("\t", "⇥")


@contextmanager
def _prepared(recipe: Recipe, spec: DatasetSpec) -> Iterator[PreparedData]:
    """The prepared data of a finished run, or prepared now in a folder that goes away again."""
    found = _finished(recipe, "prepare")
    if found is not None:
        yield PreparedData.open(found / "data")
        return
    with tempfile.TemporaryDirectory() as folder:
        data.prepare(spec, Path(folder), Progress())
        yield PreparedData.open(Path(folder))


def _tokenizer(recipe: Recipe) -> PreTrainedTokenizerBase:
    """The base model's tokenizer, from the store or from its source."""
    from lcc.parts.model import open_bundle

    found = _finished(recipe, "base")
    if found is not None:
        return open_bundle(found / "model").tokenizer
    model = require(recipe.model, "model")
    sentence = sources.missing(model)
    if sentence is not None:
        raise ResourceError(sentence)
    with tempfile.TemporaryDirectory() as folder:
        return sources.build(model, Path(folder), progress=Progress()).tokenizer


def _finished(recipe: Recipe, kind: str) -> Path | None:
    step = next((s for s in plan_steps(recipe).steps if s.kind == kind), None)
    artifact = Store(ROOT).find(step.key) if step is not None else None
    return artifact.path if artifact is not None else None
