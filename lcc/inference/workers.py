"""Worker processes that answer rows of one task, each with a session of its own."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from lcc.core import errors, signals
from lcc.inference.batch import LOOK_SECONDS, BatchInference, RowAnswer, RowPrefetcher, RowSource
from lcc.inference.session import opened

if TYPE_CHECKING:
    from lcc.inference.batch import Numbered
    from lcc.inference.session import Opening, Session
    from lcc.tasks.task import Task
    from lcc.tasks.template import Row

CHUNK = 8  # rows handed over together


@dataclass(frozen=True)
class WorkerJob:
    """What a process needs to answer rows: the folder is in the engine's own format."""

    engine: str
    options: dict[str, Any]
    folder: Path
    opening: Opening
    task: Task
    seed: int
    batch_tokens: int

    def opened(self) -> Session:
        """A session of its own."""
        return opened(self.engine, self.options, self.folder, self.opening)

    def asking(self, session: Session) -> BatchInference:
        """The session at the job's task."""
        return BatchInference(session, self.task, self.seed, self.batch_tokens)


@dataclass
class _WorkerProcess:
    process: Any
    pipe: Connection
    rows: dict[int, Row]


class WorkerPool:
    """`num` processes at one job; who dies ends all, and the answers given stay."""

    def __init__(self, job: WorkerJob, num: int) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([*PRELOADED, "lcc.inference.engine"])
        self._members: list[_WorkerProcess] = []
        self._most = 4 * max(job.opening.slots, CHUNK)
        with no_main():
            for _ in range(num):
                ours, theirs = context.Pipe()
                process = context.Process(target=work, args=(theirs, job), daemon=True)
                process.start()
                theirs.close()
                self._members.append(_WorkerProcess(process, ours, {}))

    def answers(self, source: RowSource) -> Iterator[tuple[int, Row, RowAnswer]]:
        """Every row's answer as it finishes."""
        while not source.ended or any(member.rows for member in self._members):
            signals.check("infer")
            self._hand_out(source)
            for pipe in wait([member.pipe for member in self._members], LOOK_SECONDS):
                member = next(one for one in self._members if one.pipe is pipe)
                for number, said in self._received(member):
                    yield number, member.rows.pop(number), said

    def close(self) -> None:
        """End every process."""
        for member in self._members:
            member.pipe.close()
            member.process.kill()
        for member in self._members:
            member.process.join()

    def _hand_out(self, source: RowSource) -> None:
        """Rows to whoever has the fewest, so that all end at about the same time."""
        while not source.ended:
            member = min(self._members, key=lambda one: len(one.rows))
            if len(member.rows) >= self._most:
                return
            rows = source.take(CHUNK, wait=not any(one.rows for one in self._members))
            if not rows:
                return
            member.rows.update(dict(rows))
            try:
                member.pipe.send(rows)
            except BrokenPipeError:
                self._received(member)

    def _received(self, member: _WorkerProcess) -> list[tuple[int, RowAnswer]]:
        try:
            message = member.pipe.recv()
        except (EOFError, ConnectionResetError):
            member.process.join()
            raise errors.ResourceError(
                f"a worker process died (exit {member.process.exitcode}); with fewer workers each "
                "has more memory. Run the same command again to continue."
            ) from None
        if isinstance(message, tuple):
            kind, text = message
            raise getattr(errors, kind, errors.LccError)(text)
        answers: list[tuple[int, RowAnswer]] = message
        return answers


def work(pipe: Connection, job: WorkerJob) -> None:
    """One worker process: rows come in lists, answers go out as they finish."""
    for number in signals.ASKING:
        # A scheduler asks every process of a job to stop; whoever hands out the rows decides.
        signal.signal(number, signal.SIG_IGN)
    feed = RowPrefetcher(_rows(pipe))
    try:
        for number, _, said in job.asking(job.opened()).answers(feed):
            pipe.send([(number, said)])
    except errors.LccError as error:
        pipe.send((type(error).__name__, str(error)))
    except BrokenPipeError:
        pass


def _rows(pipe: Connection) -> Iterator[Numbered]:
    while True:
        try:
            rows = pipe.recv()
        except (EOFError, ConnectionResetError):
            os._exit(0)  # Nobody waits for the answers any more.
        yield from rows


@contextmanager
def answering(
    job: WorkerJob, num: int, show: Callable[[str], None] | None, info: Callable[[str], None]
) -> Iterator[Callable[[RowSource], Iterator[tuple[int, Row, RowAnswer]]]]:
    """What answers rows while it is open: a session here, or `num` processes where more than 1."""
    if num > 1:
        pool = WorkerPool(job, num)
        try:
            yield pool.answers
        finally:
            pool.close()
        return
    session = job.opened()
    if getattr(session, "note", ""):
        info(str(session.note))  # type: ignore[attr-defined]
    try:
        yield dataclasses.replace(job.asking(session), show=show).answers
    finally:
        session.close()


PRELOADED = ["torch", "transformers", "transformers.models.auto.modeling_auto",
             "transformers.generation.utils", "lcc.inference.benchmark", "lcc.evaluation.generate",
             "lcc.models.bundle"]  # fmt: skip


@contextmanager
def no_main() -> Iterator[None]:
    """Keep a new process from running the user's script again: it needs nothing from there."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
