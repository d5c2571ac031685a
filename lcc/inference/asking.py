"""Rows of a task through a session: prompts as evaluation makes them, answers as they finish."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from lcc.core import preemption
from lcc.core.errors import DataError
from lcc.inference.requests import Finish, Request
from lcc.parts.chatting import handed_over

if TYPE_CHECKING:
    from lcc.inference.sessions import Session
    from lcc.parts.task import Row, Task

AHEAD = 8  # rows looked at for each that is answered, so that those alike in length go together
READ_TOGETHER = 256
Numbered = tuple[int, "Row"]


class Source(Protocol):
    """Where rows come from; `ended` once none will come."""

    ended: bool

    def take(self, most: int, *, wait: bool) -> list[Numbered]:
        """At most so many rows; with `wait` at least one, unless it has ended."""
        ...


@dataclass(frozen=True)
class Said:
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
        told = {"handed_over": True} if self.handed_over else {}
        return {"output": self.output, "finish": self.finish, "prompt_tokens": self.num_prompt,
                "tokens": self.num_tokens, "seconds": round(self.seconds, 4), **told}  # fmt: skip


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
class Asking:
    """A session at a task; `batch_tokens` bound what runs at once, prompts and answers."""

    session: Session
    task: Task
    seed: int = 0
    batch_tokens: int = 16384
    show: Callable[[str], None] | None = None

    def answers(self, source: Source) -> Iterator[tuple[int, Row, Said]]:
        """Every row's answer as it finishes, which need not be the order of the rows."""
        self.require()
        return self._written(source) if self._writes else self._read(source)

    def require(self) -> None:
        """Raise DataError where this engine cannot do what the task asks."""
        abilities, task = self.session.abilities, self.task
        wanted = [("beams", task.decode.num_beams > 1), ("sampling", task.sampling.temperature > 0),
                  ("repetition_penalty", task.sampling.repetition_penalty != 1.0)]  # fmt: skip
        missing = [word for word, asked in wanted if asked and word not in abilities]
        if self._writes and missing:
            raise DataError(f"this engine has no {' nor '.join(missing)}; use engine=transformers.")
        if not self._writes and task.head != "classify" and not hasattr(self.session, "module"):
            raise DataError(f"task {task.name!r} chooses among words; only engine=transformers "
                            "does so.")  # fmt: skip

    @property
    def _writes(self) -> bool:
        is_batch = self.task.decode.num_beams > 1 and hasattr(self.session, "module")
        return self.task.head in ("causal", "seq2seq") and not self.task.is_ranked and not is_batch

    def _written(self, source: Source) -> Iterator[tuple[int, Row, Said]]:
        pool: list[tuple[int, int, Numbered, list[int], int]] = []
        running: dict[int, _Running] = {}
        window = AHEAD * max(1, self.session.free_slots)
        while running or pool or not source.ended:
            preemption.check("infer")
            if len(pool) < window // 2 and not source.ended:
                new = source.take(window - len(pool), wait=not pool and not running)
                for number, row in new:
                    handover = handed_over(self.task, row)
                    if handover is not None:
                        yield number, row, Said(handover, handed_over=True)
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
                    yield one.number, one.row, _said(one, step.finish)

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

    def _prepared(
        self, one: Numbered, window: int
    ) -> tuple[int, int, Numbered, list[int], int]:  # fmt: skip
        """Itself, after what it is sorted by: windows in order, lest a long row wait for ever."""
        ids, limit = prompt_of(self.task, one[1], self.session)
        return -(one[0] // window), -len(ids), one, ids, limit

    def _request(self, ids: Sequence[int], limit: int, number: int) -> Request:
        how, draw = self.task.decode, self.task.sampling
        return Request(
            tuple(ids), limit, temperature=draw.temperature, top_k=draw.top_k, top_p=draw.top_p,
            repetition_penalty=draw.repetition_penalty, num_beams=how.num_beams,
            seed=row_seed(self.seed, number), stop=how.stop,
        )  # fmt: skip

    def _read(self, source: Source) -> Iterator[tuple[int, Row, Said]]:
        while not source.ended:
            preemption.check("infer")
            batch = source.take(READ_TOGETHER, wait=True)
            started = time.perf_counter()
            outputs = self._outputs([row for _, row in batch]) if batch else []
            each = (time.perf_counter() - started) / max(1, len(batch))
            for (number, row), (text, finished) in zip(batch, outputs, strict=True):
                finish: Finish = "stop" if finished else "length"
                yield number, row, Said(text, finish, seconds=each)

    def _outputs(self, rows: Sequence[Row]) -> list[tuple[str, bool]]:
        from lcc.engine.answering import Answering

        task, session = self.task, self.session
        if task.head == "classify":
            ids = [task.prompt_ids(row, session.tokenizer, max_length=session.context)
                   for row in rows]  # fmt: skip
            chosen = [int(values.argmax()) for values in session.logits(ids)]
            return [(task.label_names[i], True) for i in chosen]
        module: Any = getattr(session, "module")  # noqa: B009
        return Answering(module, session.tokenizer, task).outputs(rows)


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


def _said(one: _Running, finish: Finish) -> Said:
    seconds = time.perf_counter() - one.started
    return Said("".join(one.text).strip(), finish, one.num_prompt, one.num_tokens, seconds)
