"""Engine thread: the one thread that owns the session, admits waiting requests and delivers their steps."""

from __future__ import annotations

import asyncio
import threading
import time
import traceback
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from lcc.core.errors import LccError
from lcc.serving.protocol import busy

if TYPE_CHECKING:
    from lcc.core.types import Array
    from lcc.inference.session import AnswerStep, Request, Session

MAX_FAILURES = 3
GATHER_SECONDS = 0.003  # how long a turn that nobody can join later waits for company


@dataclass(eq=False)
class Ticket:
    """One answer that somebody waits for; `deliver` is called in the event loop."""

    request: Request
    deliver: Callable[[AnswerStep | Exception], None]
    deadline: float  # by which it must have a slot
    handle: int | None = None
    left: bool = False


@dataclass(eq=False)
class ReadJob:
    """Rows whose vectors or logits somebody waits for; jobs of one kind are computed together."""

    kind: Literal["embed", "logits"]
    rows: Sequence[Sequence[int]]
    deliver: Callable[[Any], None]
    left: bool = False


@dataclass
class EngineThread:
    """Turns a session in a thread of its own; everything public may be called from any thread.

    At most `queue` answers wait for a slot, each `queue_seconds` at most; `failed` is called, in
    the loop, when the session raised what no client is to blame for: nothing is answered after it.
    """

    session: Session
    loop: asyncio.AbstractEventLoop
    queue: int
    queue_seconds: float
    batch_rows: int = 32
    failed: Callable[[BaseException], None] = lambda error: None
    waiting: deque[Ticket] = field(default_factory=deque)
    active: dict[int, Ticket] = field(default_factory=dict)
    num_turns: int = 0
    _num_failures: int = 0  # one after another
    _jobs: deque[ReadJob] = field(default_factory=deque)
    _left: list[Ticket] = field(default_factory=list)
    _calls: list[tuple[Callable[[Any], None], Any]] = field(default_factory=list)
    _wake: threading.Condition = field(default_factory=threading.Condition)
    _error: BaseException | None = None
    _closing: bool = False
    _thread: threading.Thread | None = None

    def open(self) -> None:
        """Begin to turn."""
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop the thread; requests that still wait get the error."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._thread is not None:
            self._thread.join()

    def submit(self, tickets: Sequence[Ticket]) -> None:
        """Let `tickets` wait for slots; raises Refusal where too many wait already."""
        with self._wake:
            self._check_open()
            if len(self.waiting) + len(tickets) > self.queue + max(0, self._num_free()):
                raise busy(f"{len(self.waiting)} answers wait already; try again later.")
            self.waiting.extend(tickets)
            self._wake.notify()

    def compute(self, job: ReadJob) -> None:
        """Let a job wait for its turn; raises Refusal where too many rows wait already."""
        with self._wake:
            self._check_open()
            if sum(len(job.rows) for job in self._jobs) > self.queue * self.batch_rows:
                raise busy("too many texts wait already; try again later.")
            self._jobs.append(job)
            self._wake.notify()

    def leave(self, tickets: Sequence[Ticket]) -> None:
        """Nobody waits for these any more: their slots are free at the next turn."""
        with self._wake:
            for ticket in tickets:
                if not ticket.left:
                    ticket.left = True
                    self._left.append(ticket)
            self._wake.notify()

    def _num_free(self) -> int:
        return int(self.session.free_slots) if not self.active else 0

    def _check_open(self) -> None:
        if self._error is not None or self._closing:
            raise LccError("the server is going down; try another.")

    def _run(self) -> None:
        try:
            while self._await_work():
                self._turn()
                self._hand_out()
        except Exception as error:
            self._fail(error)
        else:
            self._fail(LccError("the server is going down; try another."))

    def _await_work(self) -> bool:
        """Sleep until there is something to do; False when it is time to go."""
        with self._wake:
            while not (self._closing or self.waiting or self._jobs or self._left or self.active):
                self._wake.wait()
            if not self._closing and not self.active and not self._is_continuous:
                self._wake.wait(GATHER_SECONDS)
            return not self._closing

    @property
    def _is_continuous(self) -> bool:
        return "continuous" in self.session.abilities

    def _turn(self) -> None:
        self._forget()
        self._admit()
        self._compute()
        if self.active:
            self.num_turns += 1
            for step in self._stepped():
                ticket = self.active.get(step.handle)
                if ticket is None:
                    continue
                if step.finish is not None:
                    del self.active[step.handle]
                self._calls.append((ticket.deliver, step))

    def _stepped(self) -> list[AnswerStep]:
        """The session's turn; what it raises ends the answers under way, and thrice itself."""
        try:
            steps = self.session.step()
        except Exception as error:
            self._num_failures += 1
            if self._num_failures >= MAX_FAILURES:
                raise
            traceback.print_exc()
            self._calls += [(ticket.deliver, error) for ticket in self.active.values()]
            for handle in self.active:
                self.session.drop(handle)
            self.active.clear()
            return []
        self._num_failures = 0
        return steps

    def _forget(self) -> None:
        with self._wake:
            left, self._left = self._left, []
            for ticket in left:
                if ticket.handle is None and ticket in self.waiting:
                    self.waiting.remove(ticket)
        for ticket in left:
            if ticket.handle is not None and self.active.pop(ticket.handle, None) is not None:
                self.session.drop(ticket.handle)

    def _admit(self) -> None:
        """Give free slots to who waits longest; a session that is not continuous fills up once."""
        if self.active and not self._is_continuous:
            return self._expire()
        while self.session.free_slots > 0:
            with self._wake:
                if not self.waiting:
                    return None
                ticket = self.waiting.popleft()
            try:
                handle = self.session.start(ticket.request)
            except LccError as error:
                self._calls.append((ticket.deliver, error))
                continue
            ticket.handle = handle
            self.active[handle] = ticket
        return self._expire()

    def _expire(self) -> None:
        now = time.monotonic()
        with self._wake:
            while self.waiting and self.waiting[0].deadline < now:
                ticket = self.waiting.popleft()
                late = busy("no slot was free in time; try again later.")
                self._calls.append((ticket.deliver, late))

    def _compute(self) -> None:
        """One batch of the jobs that wait longest, all of one kind."""
        with self._wake:
            jobs: list[ReadJob] = []
            num_rows = 0
            while self._jobs and (not jobs or self._jobs[0].kind == jobs[0].kind):
                num_rows += len(self._jobs[0].rows)
                if jobs and num_rows > self.batch_rows:
                    break
                job = self._jobs.popleft()
                if not job.left:
                    jobs.append(job)
        if not jobs:
            return
        rows = [row for job in jobs for row in job.rows]
        ask = self.session.embed if jobs[0].kind == "embed" else self.session.logits
        try:
            results: list[Array] = ask(rows)
        except LccError as error:
            self._calls += [(job.deliver, error) for job in jobs]
            return
        for job in jobs:
            mine, results = results[: len(job.rows)], results[len(job.rows) :]
            self._calls.append((job.deliver, mine))

    def _hand_out(self) -> None:
        """One call into the event loop a turn, however many answers it has advanced."""
        calls, self._calls = self._calls, []
        if calls:
            self.loop.call_soon_threadsafe(_deliver, calls)

    def _fail(self, error: Exception) -> None:
        with self._wake:
            self._error = error
            tickets = [*self.active.values(), *self.waiting]
            deliveries = [t.deliver for t in tickets] + [job.deliver for job in self._jobs]
            self.active.clear()
            self.waiting.clear()
            self._jobs.clear()
        self._calls += [(deliver, error) for deliver in deliveries]
        if not self._closing:
            self._calls.append((self.failed, error))
        if not self.loop.is_closed():
            self._hand_out()


def _deliver(calls: Sequence[tuple[Callable[[Any], None], Any]]) -> None:
    for deliver, what in calls:
        deliver(what)


# The event loop's side of the engine's thread: waiting for answers, vectors and logits.


class StepQueue:
    """The answers to one HTTP request, step by step as they come; `leave` once done with them."""

    def __init__(self, engine_thread: EngineThread, requests: Sequence[Request]) -> None:
        self._turner = engine_thread
        self._events: asyncio.Queue[tuple[int, AnswerStep | Exception]] = asyncio.Queue()
        deadline = time.monotonic() + engine_thread.queue_seconds
        self._tickets = [
            Ticket(request, self._teller(index), deadline) for index, request in enumerate(requests)
        ]
        engine_thread.submit(self._tickets)

    def _teller(self, index: int) -> Callable[[AnswerStep | Exception], None]:
        return lambda what: self._events.put_nowait((index, what))

    async def steps(self) -> AsyncIterator[tuple[int, AnswerStep]]:
        """(number of the request, its step) until all are finished; raises what the engine did."""
        num_open = len(self._tickets)
        while num_open:
            index, what = await self._events.get()
            if isinstance(what, Exception):
                raise what
            num_open -= what.finish is not None
            yield index, what

    def leave(self) -> None:
        """Give the slots of unfinished answers back."""
        self._turner.leave(self._tickets)


async def computed(
    engine_thread: EngineThread, kind: Literal["embed", "logits"], rows: Sequence[Sequence[int]]
) -> list[Array]:
    """What the session makes of `rows`, computed together with others' rows."""
    done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def deliver(what: Any) -> None:
        if done.done():
            return
        if isinstance(what, Exception):
            done.set_exception(what)
        else:
            done.set_result(what)

    job = ReadJob(kind, rows, deliver)
    engine_thread.compute(job)
    try:
        return list(await done)
    finally:
        job.left = True
