"""Process of one point of a sweep: `python -m lcc.sweeps.point FOLDER INDEX`, wherever it was sent."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

from lcc.core.errors import LccError, PreemptedError
from lcc.pipeline.planner import point_pipeline
from lcc.pipeline.runner import run_name, run_pipeline
from lcc.store.locks import Lease
from lcc.store.sweeps import Point, Result, Sweep, read_sweep

SECONDS_BETWEEN_LOOKS = 0.5
STOPPING = (signal.SIGTERM, signal.SIGUSR1)  # of schedulers that want the place back


def main(argv: Sequence[str]) -> int:
    """Run point INDEX of the sweep in FOLDER; its exit code is that of `lcc VERB WORDS`."""
    _stop_when_told()
    sweep = read_sweep(Path(argv[0]))
    point = sweep.points[int(argv[1])]
    try:
        lease = _lease(sweep, point)
    except KeyboardInterrupt:
        return PreemptedError.exit_code
    try:
        done = sweep.result(point.index)
        if done is not None and done.status == "finished" and done.run == point.run:
            return 0  # by another process, while this one waited for it
        result = _attempt(sweep, point, attempts=1 + (done.attempts if done else 0))
        _ignore_stops()  # what the attempt came to must be written
        sweep.keep_result(point.index, result)
        return result.exit_code
    finally:
        lease.release()


def _stop_when_told() -> None:
    """Every signal to stop is Ctrl-C to code that has no handler of its own."""
    for number in STOPPING:
        signal.signal(number, _interrupt)
    # What submitit has Slurm send ahead of time goes to every process of the job, so also to us.
    signal.signal(signal.SIGUSR2, lambda number, frame: os.kill(os.getpid(), signal.SIGTERM))


def _interrupt(number: int, frame: FrameType | None) -> None:
    _ignore_stops()  # once is enough; the end must not be interrupted
    raise KeyboardInterrupt


def _ignore_stops() -> None:
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)


def _lease(sweep: Sweep, point: Point) -> Lease:
    """The point is ours alone; a second process of the same point waits for the first to end."""
    while True:
        lease = sweep.leases.try_acquire(f"{point.index:03d}")
        if lease is not None:
            return lease
        time.sleep(SECONDS_BETWEEN_LOOKS)


def _attempt(sweep: Sweep, point: Point, *, attempts: int) -> Result:
    began = time.monotonic()
    result = Result(
        "running",
        point.run,
        started=f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        attempts=attempts,
        host=f"{socket.gethostname()}:{os.getpid()}",
    )
    try:
        sweep.keep_result(point.index, result)
        print(
            f"--- attempt {attempts} at {result.started} on {result.host}: {' '.join(point.words)}",
            file=sys.stderr,
            flush=True,
        )
        result.run = _run(sweep, point)
        result.status = "finished"
    except (PreemptedError, KeyboardInterrupt) as error:
        result.status, result.exit_code = "preempted", PreemptedError.exit_code
        result.error = str(error)
    except LccError as error:
        print(f"lcc: {error}", file=sys.stderr, flush=True)
        result.status, result.exit_code, result.error = "failed", error.exit_code, str(error)
    except Exception as error:
        # Our own fault: the log has the traceback, the sweep one line, the other points go on.
        traceback.print_exc()
        result.status, result.exit_code = "failed", 1
        result.error = f"{type(error).__name__}: {error}"
    result.seconds = round(time.monotonic() - began, 1)
    return result


def _run(sweep: Sweep, point: Point) -> str:
    from lcc.reports import write_reports

    pipeline = point_pipeline(point.words, sweep.verb)
    if run_name(pipeline) != point.run:
        print(
            f"warning: here these words mean {run_name(pipeline)}, where the sweep was started "
            f"{point.run}: files or versions differ.",
            file=sys.stderr,
        )
    run = run_pipeline(pipeline, words=point.words, verb=sweep.verb)
    write_reports(run.folder)
    return run.name


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
