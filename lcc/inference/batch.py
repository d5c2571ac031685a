"""Batch inference: rows of a task through a session, prompts as in evaluation, answers as they finish."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from lcc.core import signals
from lcc.core.disk import write_json
from lcc.core.errors import BusyError, DataError, RecipeError
from lcc.inference.session import Finish, Request
from lcc.tasks.chat import handed_over

if TYPE_CHECKING:
    from lcc.inference.session import Session
    from lcc.tasks.task import Task
    from lcc.tasks.template import Row

AHEAD = 8  # rows looked at for each that is answered, so that those alike in length go together
READ_TOGETHER = 256
Numbered = tuple[int, "Row"]


class RowSource(Protocol):
    """Where rows come from; `ended` once none will come."""

    ended: bool

    def take(self, most: int, *, wait: bool) -> list[Numbered]:
        """At most so many rows; with `wait` at least one, unless it has ended."""
        ...


@dataclass(frozen=True)
class RowAnswer:
    """The answer to a row; `seconds` from when its prompt went in until its last token."""

    output: str
    finish: Finish = "stop"
    num_prompt: int = 0
    num_tokens: int = 0
    seconds: float = 0.0
    handed_over: bool = False  # to a person; the model was not asked

    @property
    def facts(self) -> dict[str, Any]:
        """What an output line says beside the row's own fields."""
        facts = {"handed_over": True} if self.handed_over else {}
        return {
            "output": self.output,
            "finish": self.finish,
            "prompt_tokens": self.num_prompt,
            "tokens": self.num_tokens,
            "seconds": round(self.seconds, 4),
            **facts,
        }


@dataclass
class _Running:
    number: int
    row: Row
    num_prompt: int
    cost: int
    started: float
    text: list[str] = field(default_factory=list)
    num_tokens: int = 0


@dataclass(frozen=True)
class BatchInference:
    """A session at a task; `batch_tokens` bound what runs at once, prompts and answers."""

    session: Session
    task: Task
    seed: int = 0
    batch_tokens: int = 16384
    show: Callable[[str], None] | None = None

    def answers(self, source: RowSource) -> Iterator[tuple[int, Row, RowAnswer]]:
        """Every row's answer as it finishes, which need not be the order of the rows."""
        self.require()
        return self._written(source) if self._writes else self._read(source)

    def require(self) -> None:
        """Raise DataError where this engine cannot do what the task asks."""
        task = self.task
        lacking = self._request((), 1, 0).lacking(self.session.abilities)
        if self._writes and lacking:
            raise DataError(f"this engine has no {' nor '.join(lacking)}; use engine=transformers.")
        if not self._writes and task.head != "classify" and not hasattr(self.session, "module"):
            raise DataError(f"task {task.name!r} chooses among words; only engine=transformers does so.")

    @property
    def _writes(self) -> bool:
        is_batch = self.task.decode.num_beams > 1 and hasattr(self.session, "module")
        return self.task.head in ("causal", "seq2seq") and not self.task.is_ranked and not is_batch

    def _written(self, source: RowSource) -> Iterator[tuple[int, Row, RowAnswer]]:
        pool: list[tuple[int, int, Numbered, list[int], int]] = []
        running: dict[int, _Running] = {}
        window = AHEAD * max(1, self.session.free_slots)
        while running or pool or not source.ended:
            signals.check("infer")
            if len(pool) < window // 2 and not source.ended:
                new = source.take(window - len(pool), wait=not pool and not running)
                for number, row in new:
                    handover = handed_over(self.task, row)
                    if handover is not None:
                        yield number, row, RowAnswer(handover, handed_over=True)
                    else:
                        pool.append(self._prepared((number, row), window))
                pool.sort(key=lambda entry: entry[:2])  # The next one stands last.
            self._start(pool, running)
            for step in self.session.step() if running else ():
                one = running[step.handle]
                one.text.append(step.text)
                one.num_tokens += len(step.tokens)
                if self.show is not None:
                    self.show(step.text)
                if step.finish is not None:
                    del running[step.handle]
                    yield one.number, one.row, _row_answer(one, step.finish)

    def _start(self, pool: list[Any], running: dict[int, _Running]) -> None:
        used = sum(one.cost for one in running.values())
        while pool and self.session.free_slots > 0:
            _, _, (number, row), ids, limit = pool[-1]
            cost = len(ids) + limit
            if running and used + cost > self.batch_tokens:
                return
            pool.pop()
            used += cost
            handle = self.session.start(self._request(ids, limit, number))
            running[handle] = _Running(number, row, len(ids), cost, time.perf_counter())

    def _prepared(self, one: Numbered, window: int) -> tuple[int, int, Numbered, list[int], int]:
        """Itself, after what it is sorted by: windows in order, lest a long row wait for ever."""
        ids, limit = prompt_of(self.task, one[1], self.session)
        return -(one[0] // window), -len(ids), one, ids, limit

    def _request(self, ids: Sequence[int], limit: int, number: int) -> Request:
        seed = row_seed(self.seed, number)
        return Request.of(self.task.decode, self.task.sampling, ids, limit=limit, seed=seed)

    def _read(self, source: RowSource) -> Iterator[tuple[int, Row, RowAnswer]]:
        while not source.ended:
            signals.check("infer")
            batch = source.take(READ_TOGETHER, wait=True)
            started = time.perf_counter()
            outputs = self._outputs([row for _, row in batch]) if batch else []
            each = (time.perf_counter() - started) / max(1, len(batch))
            for (number, row), (text, finished) in zip(batch, outputs, strict=True):
                finish: Finish = "stop" if finished else "length"
                yield number, row, RowAnswer(text, finish, seconds=each)

    def _outputs(self, rows: Sequence[Row]) -> list[tuple[str, bool]]:
        from lcc.evaluation.predict import Predictor

        task, session = self.task, self.session
        if task.head == "classify":
            ids = [task.prompt_ids(row, session.tokenizer, max_length=session.context) for row in rows]
            chosen = [int(values.argmax()) for values in session.logits(ids)]
            return [(task.label_names[i], True) for i in chosen]
        module: Any = getattr(session, "module")  # noqa: B009
        return Predictor(module, session.tokenizer, task).outputs(rows)


def prompt_of(task: Task, row: Row, session: Session) -> tuple[list[int], int]:
    """A row's prompt, cut so that its answer has room, and how many new tokens it may have."""
    room = session.context
    ids = task.prompt_ids(row, session.tokenizer)
    limit = min(task.decode.limit(len(ids)), max(1, room // 2))
    longest = room - limit if task.head == "causal" else room
    if len(ids) > longest:
        ids = task.prompt_ids(row, session.tokenizer, max_length=longest)
    return ids, limit


def row_seed(seed: int, number: int) -> int:
    """A row's own seed, whoever answers it and with whom."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{number}".encode()).digest()[:7])


def _row_answer(one: _Running, finish: Finish) -> RowAnswer:
    seconds = time.perf_counter() - one.started
    return RowAnswer("".join(one.text).strip(), finish, one.num_prompt, one.num_tokens, seconds)


# Answers in a file, line for line with what was asked: whoever goes on knows where.
#
# Line n answers row n, so that a killed process leaves neither gap nor duplicate: at most half a
# line, which is cut off. What made the answers stands beside, and another maker is refused.

SYNC_SECONDS = 5.0
BLOCK = 1 << 20


class OrderedFile:
    """A jsonl file that is appended to in order; `num_done` lines are there already.

    Raises BusyError where another process writes it, RecipeError where another maker began it.
    """

    def __init__(self, path: Path, maker: Mapping[str, Any]) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise BusyError(f"output {path}: another process is writing it.") from None
        self._waiting: dict[int, Mapping[str, Any]] = {}
        self._synced = time.monotonic()
        try:
            self.num_done, end = _whole_lines(self._file)
            self._require_maker(maker)
            self._file.truncate(end)
        except BaseException:
            self._file.close()
            raise

    def require_same(self, number: int, source: Mapping[str, Any]) -> None:
        """Raise DataError unless the last line there answers this row."""
        self._file.seek(0)
        last = _last_line(self._file)
        kept = {name: last.get(name) for name in source}
        if number != self.num_done - 1 or kept != dict(source):
            raise DataError(
                f"output {self.path}: line {self.num_done} does not answer row {number + 1} of the "
                "input, which has changed since; choose another output."
            )

    def put(self, number: int, line: Mapping[str, Any]) -> int:
        """Keep an answer until all before it are there; returns how many lines were written."""
        self._waiting[number] = line
        before, text = self.num_done, []
        while self.num_done in self._waiting:
            text.append(json.dumps(self._waiting.pop(self.num_done), ensure_ascii=False) + "\n")
            self.num_done += 1
        if text:
            self._file.write("".join(text).encode())
            self._file.flush()
            if time.monotonic() - self._synced > SYNC_SECONDS:
                self._sync()
        return self.num_done - before

    def close(self) -> None:
        """Everything that is in order is safely on the disk."""
        self._sync()
        self._file.close()

    def _sync(self) -> None:
        os.fsync(self._file.fileno())
        self._synced = time.monotonic()

    def _require_maker(self, maker: Mapping[str, Any]) -> None:
        file = maker_file(self.path)
        if self.num_done and file.is_file():
            recorded = json.loads(file.read_text(encoding="utf-8"))
            other = [name for name in maker if recorded.get(name) != maker[name]]
            if other:
                raise RecipeError(
                    f"output {self.path} was begun with another {' and '.join(other)}; choose "
                    "another output, or remove it to begin anew."
                )
            return
        if self.num_done:
            raise RecipeError(f"output {self.path} is there and was not made by infer; choose another.")
        write_json(file, dict(maker))


def maker_file(path: Path) -> Path:
    """What stands beside an output: what its answers were made with."""
    return path.with_name(f"{path.name}.made_with.json")


def begun_with(path: Path, name: str) -> Any:
    """One fact about who began an output; None where nobody has."""
    try:
        return json.loads(maker_file(path).read_text(encoding="utf-8")).get(name)
    except (OSError, ValueError):
        return None


def _whole_lines(file: Any) -> tuple[int, int]:
    """How many lines there are, and where the last whole one ends."""
    file.seek(0)
    num, end, position = 0, 0, 0
    while block := file.read(BLOCK):
        num += block.count(b"\n")
        newline = block.rfind(b"\n")
        end = position + newline + 1 if newline >= 0 else end
        position += len(block)
    return num, end


def _last_line(file: Any) -> dict[str, Any]:
    """The last line of a file of whole lines; {} where it is not JSON."""
    size = file.seek(0, os.SEEK_END)
    length = 4096
    while True:
        file.seek(max(0, size - length))
        lines = file.read().splitlines()
        if len(lines) > 1 or length >= size:
            break
        length *= 4
    try:
        facts = json.loads(lines[-1])
    except (ValueError, IndexError):
        return {}
    return facts if isinstance(facts, dict) else {}


# Rows from lines as they come: a file, a growing file, a pipe; read beside the answering.

LOOK_SECONDS = 0.2  # how often a growing file, and a request to stop, is looked at


class RowPrefetcher:
    """Rows that a thread reads ahead, at most `most` of them."""

    def __init__(self, rows: Iterable[Numbered], most: int = 1024) -> None:
        self.ended = False
        self._queue: queue.Queue[Any] = queue.Queue(maxsize=most)
        threading.Thread(target=self._fill, args=(iter(rows),), daemon=True).start()

    def take(self, most: int, *, wait: bool) -> list[Numbered]:
        """At most so many rows; with `wait` at least one, unless it has ended."""
        rows: list[Numbered] = []
        while len(rows) < most and not self.ended:
            try:
                item = self._queue.get(timeout=LOOK_SECONDS) if wait else self._queue.get_nowait()
            except queue.Empty:
                if not wait:
                    break
                signals.check("infer")
                continue
            wait = False
            if isinstance(item, BaseException):
                raise item
            if item is None:
                self.ended = True
            else:
                rows.append(item)
        return rows

    def _fill(self, rows: Iterator[Numbered]) -> None:
        try:
            for row in rows:
                self._queue.put(row)
            self._queue.put(None)
        except BaseException as error:
            self._queue.put(error)


def lines_of(path: Path, *, follow: bool = False) -> Iterator[str]:
    """The lines of a file; with `follow` also those that are still to be written, for ever."""
    try:
        file = path.open(encoding="utf-8", newline="\n")
    except OSError as error:
        raise DataError(f"input {path}: {error.strerror}.") from None
    with file:
        half = ""
        while True:
            try:
                line = half + file.readline()
            except UnicodeDecodeError:
                raise DataError(f"input {path} is not UTF-8 text.") from None
            half = ""
            if line.endswith("\n") or (line and not follow):
                yield line
            elif follow:
                half = line  # Its writer has not finished it.
                time.sleep(LOOK_SECONDS)
            else:
                return


def numbered(lines: Iterable[str], task: Task, *, strict: bool = False) -> Iterator[Numbered]:
    """A row for every line that is not blank, counted from 0."""
    number = 0
    for place, line in enumerate(lines, 1):
        if line.strip():
            yield number, row_of(line.rstrip("\r\n"), task, place, strict=strict)
            number += 1


def row_of(line: str, task: Task, place: int, *, strict: bool = False) -> Row:
    """A row with the fields of the prompt; the answer's own are empty, for nobody knows them.

    A plain line is the only field of the prompt; with `strict` every line is JSON.
    """
    wanted = list(task.asked)
    blank: dict[str, Any] = {"id": str(place), **dict.fromkeys(task.fields, "")}
    if not wanted:
        raise DataError(f"task {task.name!r} has no prompt to fill; infer needs one with a prompt.")
    try:
        given = json.loads(line)
    except ValueError:
        given = None
    if isinstance(given, dict) and set(wanted) <= set(given):
        return {**blank, **given}
    if len(wanted) == 1 and not strict:
        return {**blank, wanted[0]: line}
    raise DataError(f"line {place}: expected a JSON object with {', '.join(wanted)}.")
