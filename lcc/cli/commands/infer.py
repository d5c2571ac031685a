"""Run rows through a model, or chat with it: the options of `lcc infer`, its output and its conversation."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from lcc.cli.arguments import Arguments
from lcc.config.cards import card, decode
from lcc.core.errors import DataError, RecipeError
from lcc.tasks.task import Decode, Sampling

if TYPE_CHECKING:
    from lcc.cli.commands._monitor import Report
    from lcc.export.select_engine import Selected
    from lcc.inference.batch import Numbered, OrderedFile, RowAnswer
    from lcc.inference.conversation import Conversation
    from lcc.inference.session import Opening
    from lcc.pipeline.recipe import Recipe
    from lcc.tasks.task import Task
    from lcc.tasks.template import Row

Count = Annotated[int, Field(ge=1)]


@card
class InferOptions:
    """Words of `lcc infer` that are not the recipe's; None leaves it to the task."""

    input: str = "-"
    output: str | None = None
    engine: str | dict[str, Any] = "transformers"
    workers: Count = 1
    slots: Count = 32
    batch_tokens: Count = 16384
    context: Count | None = None
    prefix_mb: Annotated[int, Field(ge=0)] = 256
    follow: bool = False
    report: str | None = None
    report_watch: str = "negative"
    report_window: Annotated[int, Field(ge=2)] = 50
    system: str = ""
    of_task: dict[str, Any] = field(default_factory=dict)  # fields of its `decode` and `sampling`

    def __post_init__(self) -> None:
        if self.output is not None and not self.output.endswith(".jsonl"):
            raise ValueError("output is a file that ends in .jsonl; without it answers are shown")
        if self.report is not None and self.output is None:
            raise ValueError("report follows output=FILE.jsonl; name one")
        if self.follow and self.input == "-":
            raise ValueError("follow needs input=FILE; a pipe is followed anyway")

    @staticmethod
    def decoded(own: dict[str, Any]) -> InferOptions:
        """Strictly; raises Mistakes with the nearest names."""
        from lcc.inference.session import named

        of_task: dict[str, Any] = {}
        for kind in (Decode, Sampling):
            mine = {name: own[name] for name in names_of(kind) if name in own}
            decoded = decode(kind, mine, "")
            of_task |= {name: getattr(decoded, name) for name in mine}
        rest = {name: value for name, value in own.items() if name not in of_task}
        asked = dataclasses.replace(decode(InferOptions, rest, ""), of_task=of_task)
        if asked.engine != "auto":
            named(asked.engine)
        return asked

    def replaced(self, card: Any) -> Any:
        """The task's `decode` or `sampling` with the given words in its place."""
        names = names_of(type(card))
        return dataclasses.replace(card, **{n: v for n, v in self.of_task.items() if n in names})


def names_of(*cards: type[Any]) -> set[str]:
    """The fields of these cards."""
    return {f.name for card in cards for f in dataclasses.fields(card)}


def split(words: list[str]) -> tuple[dict[str, Any], list[str]]:
    """The verb's own words by name, and those that are the recipe's."""
    from lcc.config.compose import check_word, parsed

    own: dict[str, Any] = {}
    rest = []
    names = names_of(InferOptions, Decode, Sampling) - {"of_task"}
    for word in words:
        name, _, value = word.partition("=")
        if name not in names:
            rest.append(word)
        elif name in ("input", "output", "system", "report", "report_watch"):
            own[name] = value  # text as it is, whatever characters stand in it
        else:
            check_word(word)
            own[name] = parsed(word).value()
    return own, rest


def opening_of(recipe: Recipe, options: InferOptions, info: Callable[[str], None]) -> Opening:
    """Threads that follow the free cores, shared by the workers; the recipe's where it says."""
    from lcc.core.machine import cores, free_cores
    from lcc.inference.session import Opening

    device = recipe.device_type
    threads = recipe.threads
    if threads is None:
        free = free_cores()
        threads = max(1, free // options.workers)
        if free < cores():
            info(f"{free} of {cores()} cores are free: {threads} threads each")
    return Opening(
        threads=threads,
        slots=options.slots,
        context=options.context,
        device=device,
        dtype=recipe.dtype,
        prefix_mb=options.prefix_mb,
    )


def info(sentence: str) -> None:
    """To the reader, and not into the answers."""
    print(sentence, file=sys.stderr, flush=True)


class RowInference:
    """A model at a task; `in_order` for the terminal, `to_file` for many rows."""

    def __init__(self, recipe: Recipe, folder: Path, options: InferOptions) -> None:
        assert recipe.task is not None
        self.options, self.folder, self.seed = options, folder, recipe.seed
        self.task = _fitting(recipe.task, folder, options)
        self.opening = opening_of(recipe, options, info)
        self.shown = False

    def in_order(self, text: str | None, *, streams: bool) -> Iterator[tuple[Row, RowAnswer]]:
        """Each row with its answer; a typed line is answered before the next is read.

        With `streams` an answer is printed as it is made, and `shown` says that it was.
        """
        from lcc.inference.batch import RowPrefetcher, numbered

        typed = text is None and self.options.input == "-" and sys.stdin.isatty()
        if typed:
            info("one text per line; end with Ctrl-D")
        alone = typed or text is not None
        if alone:
            self.opening = dataclasses.replace(self.opening, slots=1)
        lines = [text] if text is not None else self._lines()
        feed = RowPrefetcher(numbered(lines, self.task), most=1 if alone else 1024)
        waiting: dict[int, tuple[Row, RowAnswer]] = {}
        next_row = 0
        with self._answering(self._selected(), self._show if streams else None) as answers:
            for number, row, said in answers(feed):
                waiting[number] = row, said
                while next_row in waiting:
                    yield waiting.pop(next_row)
                    next_row += 1

    def to_file(self) -> int:
        """A line for every row, going on after those that are there."""
        from lcc.cli.commands._monitor import monitored
        from lcc.core.machine import version_of
        from lcc.core.progress import Progress
        from lcc.export.select_engine import source_digest
        from lcc.inference.batch import OrderedFile, RowPrefetcher, begun_with

        assert self.options.output is not None
        path = Path(self.options.output)
        chosen = self._selected(begun_with(path, "engine"))
        output = OrderedFile(
            path,
            {
                "engine": chosen.engine,
                "options": chosen.options,
                "seed": self.seed,
                "model": source_digest(self.folder),
                "task": _described(self.task),
                "lcc": version_of("lcc"),
            },
        )
        try:
            done, total = output.num_done, self._total()
            if done:
                info(f"{path}: goes on after {done:,} rows")
            feed = RowPrefetcher(self._remaining(output))
            with (
                Progress(stream=sys.stderr).track("infer", total, "row", done=done) as bar,
                monitored(self._report(), path),
                self._answering(chosen, None) as answers,
            ):
                for number, row, said in answers(feed):
                    bar.advance(output.put(number, self.line(row, said)))
        finally:
            output.close()
        return 0

    def _report(self) -> Report | None:
        from lcc.cli.commands._monitor import Report

        asked = self.options
        if asked.report is None:
            return None
        return Report(
            path=asked.report, field=self.task.asked[0], watch=asked.report_watch, window=asked.report_window
        )

    def _show(self, piece: str) -> None:
        piece = piece if self.shown else piece.lstrip()
        self.shown = self.shown or bool(piece)
        print(piece, end="", flush=True)

    def line(self, row: Row, said: RowAnswer) -> dict[str, Any]:
        """What is written about a row."""
        when = {"time": row["time"]} if "time" in row else {}
        return {"id": str(row["id"]), **when, **self.task.source(row), **said.facts}

    def _selected(self, begun: str | None = None) -> Selected:
        from lcc.export.select_engine import select
        from lcc.store.store import ROOT, Store

        word = self.options.engine
        if word == "auto" and begun is not None:
            word = begun
            info(f"engine=auto: goes on with {begun}, which began this output")
        return select(
            word, self.folder, self.opening, store=Store(ROOT), info=info, rows=min(8, self.opening.slots)
        )

    def _answering(self, chosen: Selected, show: Callable[[str], None] | None) -> Any:
        from lcc.inference.workers import WorkerJob, answering

        job = WorkerJob(
            chosen.engine,
            chosen.options,
            chosen.folder,
            self.opening,
            self.task,
            self.seed,
            self.options.batch_tokens,
        )
        return answering(job, self.options.workers, show, info)

    def _lines(self) -> Iterator[str]:
        from lcc.inference.batch import lines_of

        if self.options.input == "-":
            return iter(sys.stdin)
        return lines_of(Path(self.options.input), follow=self.options.follow)

    def _remaining(self, output: OrderedFile) -> Iterator[Numbered]:
        """The rows that have no line yet."""
        from lcc.inference.batch import numbered

        done, seen = output.num_done, 0
        for number, row in numbered(self._lines(), self.task):
            seen = number + 1
            if number == done - 1:
                output.require_same(number, {"id": str(row["id"]), **self.task.source(row)})
            if number >= done:
                yield number, row
        if seen < done:
            raise DataError(
                f"output {output.path} has {done:,} lines and the input {seen:,} rows; choose another output."
            )

    def _total(self) -> int | None:
        if self.options.input == "-" or self.options.follow:
            return None
        try:
            with Path(self.options.input).open("rb") as file:
                return sum(1 for line in file if line.strip())
        except OSError as error:
            raise DataError(f"input {self.options.input}: {error.strerror}.") from None


def _described(task: Task) -> Any:
    from lcc.config.cards import describe

    return {k: v for k, v in describe(task).items() if k not in ("metrics", "shots")}


def _fitting(task: Task, folder: Path, options: InferOptions) -> Task:
    """The task with its labels known and the given words applied; raises RecipeError for another head."""
    from lcc.models.card import class_names, examine, read_card, read_json

    examine(folder)
    card = read_card(folder)
    if card.headless or card.head != task.head:
        raise RecipeError(
            f"model {card.name!r} has no trained {task.head} head; choose "
            "another model, or fine-tune it on this task."
        )
    names = class_names(read_json(folder / "config.json"))
    labels = task.labels
    if task.head == "classify":
        labels = task.classes(names)
    elif labels == "from_data":
        labels = names
    return dataclasses.replace(
        task, labels=labels, decode=options.replaced(task.decode), sampling=options.replaced(task.sampling)
    )


# Answer texts with a model: a line, a file of any size, or a conversation.

USAGE = """usage: lcc infer [CHECKPOINT] [+recipe=NAME | model=PATH task=NAME]
                 [--text TEXT | --chat] [input=FILE output=FILE.jsonl]
                 [engine=NAME] [workers=N] [option=value …]

  lcc infer model=./folder task=translation --text "Open the file."
  lcc infer +recipe=mt_en_zh < lines.txt     its last finished model; one answer per line
  lcc infer base --text "Open the file."     the model named base of the last run
  lcc infer model=./folder task=translation input=en.jsonl output=zh.jsonl workers=4
  lcc infer model=./folder --chat temperature=0.7 system="You are brief."

Rows are lines: JSON objects, or the one field of the prompt as it is. Without output the answers
go to the terminal in the order of the rows. OUTPUT.jsonl has a line for each row, with its answer
and seconds; the same command goes on where a killed one stopped. follow=true waits for new lines.
report=FILE.html (or .md) shows classes, trend and alerts beside the output, written anew each
second: report_watch=negative is the class that alerts are about, of report_window=50 texts each.
engine=auto tries every engine that can run the model, and says which is fastest here.
slots=N and batch_tokens=N bound what is answered at once; prefix_mb=N what is kept of what was
read, for prompts that begin so. max_new_tokens, max_length_ratio, num_beams, stop, temperature,
top_k, top_p, min_p and repetition_penalty replace those of the task; seed makes draws repeat.

Nothing is shown beside the prompt, so a base model that needs examples answers worse here than in
its evaluation."""


def main(arguments: Arguments) -> int:
    if len(arguments.words) > 1:
        raise RecipeError(f"one checkpoint at a time, not {' and '.join(arguments.words)}.")
    own, rest = split(arguments.overrides)
    options = InferOptions.decoded(own)
    from lcc.cli.commands._models import recipe_and_model
    from lcc.core import signals

    chats = "chat" in arguments.options
    recipe, folder = recipe_and_model(dataclasses.replace(arguments, overrides=rest), "infer")
    if recipe.task is None and not chats:
        raise RecipeError("infer needs a task; add task=NAME, e.g. task=translation.")
    with signals.watched(tells=True):
        if chats:
            return chat(recipe, folder, options)
        answers = RowInference(recipe, folder, options)
        text = arguments.options.get("text")
        if options.output is not None:
            if text is not None or arguments.json:
                raise RecipeError("output=FILE takes rows from input=FILE, and is JSON anyway.")
            return answers.to_file()
        return _shown(answers, text, as_json=arguments.json)


def _shown(answers: RowInference, text: str | None, *, as_json: bool) -> int:
    """Every answer on the terminal, in order."""
    said = []
    streams = text is not None and not as_json and sys.stdout.isatty()
    for row, one in answers.in_order(text, streams=streams):
        if as_json:
            said.append(answers.line(row, one))
        else:
            print("" if streams and answers.shown else one.output, flush=True)
    if as_json:
        print(json.dumps(said, ensure_ascii=False, indent=2))
    return 0


# A conversation on the terminal: a line, an answer as it is made, and the next line.

TOLD = "write to the model; /new forgets the conversation, Ctrl-D ends it"


def chat(recipe: Recipe, folder: Path, options: InferOptions) -> int:
    """Lines of stdin are turns; what the model says goes to stdout."""
    conversation = _opened(recipe, folder, options)
    is_typed = sys.stdin.isatty()
    if is_typed:
        info(TOLD)
    try:
        while True:
            if is_typed:
                print("> ", end="", file=sys.stderr, flush=True)
            line = sys.stdin.readline()
            if not line:
                return 0
            if line.strip() == "/new":
                conversation.forget()
            elif line.strip():
                for piece in conversation.reply(line.strip()):
                    print(piece, end="", flush=True)
                print(flush=True)
    finally:
        conversation.session.close()


def _opened(recipe: Recipe, folder: Path, options: InferOptions) -> Conversation:
    from lcc.export.select_engine import select
    from lcc.inference.conversation import Conversation
    from lcc.models.card import examine, read_card
    from lcc.store.store import ROOT, Store

    if options.output is not None:
        raise RecipeError("--chat writes to the terminal; leave output out.")
    examine(folder)
    card = read_card(folder)
    if card.head != "causal":
        raise DataError(f"model {card.name!r} is {card.head}; only causal models chat.")
    opening = dataclasses.replace(opening_of(recipe, options, info), slots=1)
    chosen = select(options.engine, folder, opening, store=Store(ROOT), info=info)
    task, session = recipe.task, chosen.open(opening)
    if getattr(session, "note", ""):
        info(str(session.note))  # type: ignore[attr-defined]
    return Conversation(
        session,
        options.replaced(task.decode if task else Decode()),
        options.replaced(task.sampling if task else Sampling()),
        recipe.seed,
        options.system,
        task.grounding if task else None,
    )
