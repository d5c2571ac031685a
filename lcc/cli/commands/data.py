"""Look at data before training on it: `check` counts and proves, `preview` shows examples."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lcc.cli.arguments import Arguments, emit
from lcc.config.cards import name_of
from lcc.core.errors import DataError, RecipeError, ResourceError, did_you_mean
from lcc.core.progress import Progress
from lcc.data import dataset
from lcc.data.cleaning import num_words
from lcc.data.dataset import SPLITS, Counts, DatasetSpec, PreparedData
from lcc.data.local_files import Row, text_fields
from lcc.models import sources
from lcc.pipeline.planner import plan_steps
from lcc.pipeline.recipe import Recipe, load_recipe, require
from lcc.store.store import ROOT, Store

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lcc.tasks.task import Task

# What a look at prepared data tells: its format, its lengths, and what is odd about it.

PERCENTILES = (5, 50, 95, 100)


def detected_format(rows: Sequence[Row]) -> str:
    """What kind of rows these are, by their fields."""
    if not rows:
        return "no rows"
    texts = text_fields(rows[0])
    named = ", ".join(texts)
    if "label" in rows[0]:
        labels = sorted({str(row["label"]) for row in rows})
        shown = ", ".join(labels[:8]) + (" …" if len(labels) > 8 else "")
        return f"labelled text ({named} → {len(labels)} labels: {shown})"
    if {"source", "target"} <= set(texts):
        return f"pairs ({named})"
    return f"plain text ({named})" if len(texts) == 1 else f"texts ({named})"


def lengths(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Words of each text field at some percentiles; a Chinese character counts as a word."""
    lines = []
    for name in text_fields(rows[0]) if rows else []:
        sizes = sorted(num_words(str(row[name])) for row in rows)
        at = {f"p{p}" if p < 100 else "longest": sizes[(len(sizes) - 1) * p // 100] for p in PERCENTILES}
        lines.append({"field": name, **at})
    return lines


def warnings(counts: Counts) -> list[str]:
    """Sentences about what will make training or its measurement worse than it looks."""
    sentences = []
    kept = sum(counts.rows.values())
    if counts.read and kept < counts.read / 4:
        sentences.append(f"only {kept} of {counts.read} rows were kept; see what removed the others.")
    test = counts.rows["test"]
    if 0 < test < 100:
        sentences.append(f"{test} test rows decide little: intervals will be wide; 300 are better.")
    for name in SPLITS[1:]:
        lacking = set(counts.labels.get("train", {})) - set(counts.labels.get(name, {}))
        if counts.rows[name] and lacking:
            sentences.append(f"{name} has no row labelled {', '.join(sorted(lacking))}.")
    return sentences


def require_fields(rows: Sequence[Row], fields: Sequence[str], *, task: str) -> None:
    """Raise DataError when the rows lack a field that the task's template shows."""
    for name in fields:
        if rows and name not in rows[0]:
            raise DataError(
                f"task '{task}' needs the field {name!r}; the rows have "
                f"{', '.join(map(repr, rows[0]))}{did_you_mean(name, rows[0])} "
                f"Map it with dataset.fields, e.g. dataset.fields.{name}=COLUMN."
            )


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
        require_fields(rows, recipe.task.fields, task=recipe.task.name)
    num_compared = dataset.check_fence(prepared.folder)
    facts = {
        "dataset": require(recipe.dataset, "dataset").name,
        "reader": name_of(require(recipe.dataset, "dataset").source),
        "format": detected_format(rows),
        **asdict(counts),
        "lengths": lengths(rows),
        "fence": f"{num_compared} texts compared, none stands in two splits",
        "warnings": warnings(counts),
    }
    emit(facts, arguments.json, _checked(facts, counts))
    return 0


def _checked(facts: dict[str, Any], counts: Counts) -> str:
    lines = [
        f"{facts['dataset']}: {facts['format']}, reader {facts['reader']}",
        f"rows read        {counts.read:>8,}",
    ]
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
    require_fields(rows, task.fields, task=task.name)
    shown = rows[:: max(len(rows) // NUM_SHOWN, 1)][:NUM_SHOWN]
    tokenizer = _tokenizer(recipe) if recipe.model is not None else None
    examples = [_example(row, task, tokenizer) for row in shown]
    about = "the loss is computed on what stands after ▶ only"
    text = "\n\n".join([*map(_rendered, examples), about])
    emit(examples, arguments.json, text)
    return 0


def _example(row: Row, task: Task, tokenizer: PreTrainedTokenizerBase | None) -> dict[str, Any]:
    example: dict[str, Any] = {
        "id": row["id"],
        "doc": row["doc"],
        "prompt": task.prompt(row),
        "completion": task.completion(row),
    }
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
    lines = [
        f"── {example['doc']} · {example['id']}",
        f"  {_visible(example['prompt'])}",
        f"▶ {_visible(example['completion'])}",
    ]
    if "tokens" in example:
        masked = [t["text"] or "·" for t in example["tokens"] if not t["loss"]]
        trained = [t["text"] or "·" for t in example["tokens"] if t["loss"]]
        lines += [
            f"  {len(masked)} tokens: {_visible('|'.join(masked))}",
            f"▶ {len(trained)} tokens: {_visible('|'.join(trained))}",
        ]
    return "\n".join(lines)


def _visible(text: str) -> str:
    return text.replace("\n", "⏎\n  ").replace("\t", "⇥")


@contextmanager
def _prepared(recipe: Recipe, spec: DatasetSpec) -> Iterator[PreparedData]:
    """The prepared data of a finished run, or prepared now in a folder that goes away again."""
    folder = _finished(recipe, "prepare")
    if folder is not None:
        yield PreparedData.open(folder / "data")
        return
    with tempfile.TemporaryDirectory() as scratch:
        dataset.prepare(spec, Path(scratch), Progress())
        yield PreparedData.open(Path(scratch))


def _tokenizer(recipe: Recipe) -> PreTrainedTokenizerBase:
    """The base model's tokenizer, from the store or from its source."""
    from lcc.models.bundle import open_bundle

    folder = _finished(recipe, "base")
    if folder is not None:
        return open_bundle(folder / "model").tokenizer
    model = require(recipe.model, "model")
    sentence = sources.missing(model)
    if sentence is not None:
        raise ResourceError(sentence)
    with tempfile.TemporaryDirectory() as scratch:
        return sources.build(model, Path(scratch), progress=Progress()).tokenizer


def _finished(recipe: Recipe, kind: str) -> Path | None:
    step = next((s for s in plan_steps(recipe).steps if s.kind == kind), None)
    artifact = Store(ROOT).find(step.key) if step is not None else None
    return artifact.path if artifact is not None else None
