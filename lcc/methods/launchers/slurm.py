"""Launch points as job arrays of a Slurm cluster, submitted and requeued through submitit."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field

from lcc.config.cards import card
from lcc.core.disk import write_json
from lcc.core.errors import ResourceError
from lcc.methods.launchers import RESTARTS, LaunchedTask, TaskGroup
from lcc.methods.launchers._commands import fate_of, forget_end
from lcc.methods.launchers._slurm_job import SlurmJob

MOST_QUEUED = 1000  # Slurm's default MaxArraySize is 1001
PATIENCE = 30  # polls that squeue may fail before it is believed
ENDED = ("BOOT_FAIL", "CANCELLED", "COMPLETED", "COMPLETING", "DEADLINE", "FAILED", "NODE_FAIL",
         "OUT_OF_MEMORY", "TIMEOUT", "REVOKED")  # fmt: skip
# These become lines of a shell script: nothing but names may stand in them.
Name = Annotated[str, Field(pattern=r"^[\w.,:@&|+=\-]+$")]


@card
class Slurm:
    """What each point asks for: `cpus`, `gpus`, `memory_gb`, `minutes` of time.

    All points that are known go to the queue as one array, of which `array_parallelism` run at a
    time. `requeue`: a point that is preempted or out of time is put back and goes on where it was,
    at most `requeues` times for lack of time; `notice_seconds` before its end it is told.
    """

    word: ClassVar[str] = "slurm"
    revision: ClassVar[int] = 1

    partition: Name | None = None
    account: Name | None = None
    qos: Name | None = None
    constraint: Name | None = None
    cpus: Annotated[int, Field(ge=1)] = 1
    gpus: Annotated[int, Field(ge=0)] = 0
    memory_gb: Annotated[int, Field(ge=1)] | None = None
    minutes: Annotated[int, Field(ge=1)] = 240
    array_parallelism: Annotated[int, Field(ge=1)] = 8
    requeue: bool = True
    requeues: Annotated[int, Field(ge=0)] = 20
    notice_seconds: Annotated[int, Field(ge=10)] = 120

    @property
    def restarts(self) -> int:
        """How often the driver submits a preempted point anew."""
        return RESTARTS if self.requeue else 0

    def capacity(self, *, adaptive: bool) -> int:
        return self.array_parallelism if adaptive else MOST_QUEUED

    def open(self, folder: Path, name: str) -> TaskGroup:
        for program in ("sbatch", "squeue", "scancel", "scontrol", "srun"):
            if shutil.which(program) is None:
                raise ResourceError(
                    f"launcher=slurm: this machine has no {program}; start the sweep where Slurm's "
                    "commands are installed, or choose launcher=local."
                )
        return SlurmCrew(self, _submitit(), folder, name)

    def parameters(self, name: str) -> dict[str, Any]:
        """The same in submitit's words."""
        more = {"account": self.account, "qos": self.qos, "constraint": self.constraint}
        optional = {
            "partition": self.partition,
            "gpus_per_node": self.gpus or None,
            "mem": f"{self.memory_gb}GB" if self.memory_gb else None,
        }
        flag = {"requeue" if self.requeue else "no-requeue": True}
        return {
            "job_name": name,
            "time": self.minutes,
            "cpus_per_task": self.cpus,
            "ntasks_per_node": 1,
            "nodes": 1,
            "signal_delay_s": self.notice_seconds,
            "array_parallelism": self.array_parallelism,
            "additional_parameters": {**{k: v for k, v in more.items() if v}, **flag},
            **{key: value for key, value in optional.items() if value is not None},
        }


def _submitit() -> Any:
    try:
        import submitit
    except ImportError:
        raise ResourceError(
            "launcher=slurm needs submitit; pip install 'lcc[slurm]', or choose launcher=local."
        ) from None
    return submitit


@dataclass(frozen=True)
class Submission:
    """One submission: its name in the queue, and the point of each array task."""

    name: str
    indices: list[int]


class SlurmCrew:
    """Jobs by name: `jobs.json` is written before anything is submitted, so that a driver that
    died in the middle of it finds in the queue what it had not yet noted."""

    poll_seconds = 2.0

    def __init__(self, options: Slurm, submitit: Any, folder: Path, name: str) -> None:
        self.options, self.submitit, self.folder, self.name = options, submitit, folder, name
        self._file = folder / "jobs.json"
        known = json.loads(self._file.read_text(encoding="utf-8")) if self._file.is_file() else []
        self._batches = [Submission(**batch) for batch in known]
        self._states: dict[int, tuple[str, str]] = {}  # point → job, state
        self._failures = 0

    def submit(self, tasks: Sequence[LaunchedTask]) -> None:
        batch = Submission(f"{self.name}-{len(self._batches)}", [task.index for task in tasks])
        self._note([*self._batches, batch])
        executor = self.submitit.SlurmExecutor(
            folder=self.folder.absolute() / "jobs", max_num_timeout=self.options.requeues
        )
        executor.update_parameters(**self.options.parameters(batch.name))
        for task in tasks:
            forget_end(task.log)
        try:
            with executor.batch():
                for task in tasks:
                    executor.submit(SlurmJob(task, requeue=self.options.requeue))
        except (self.submitit.core.utils.FailedJobError, subprocess.CalledProcessError) as error:
            self._note(self._batches[:-1])
            raise ResourceError(
                f"launcher=slurm: sbatch refused the points: {_last_line(error)}; "
                "change launcher.* and run again."
            ) from None

    def alive(self) -> set[int]:
        rows = self._squeue()
        if rows is not None:
            self._states = {}
            by_name = {batch.name: batch.indices for batch in self._batches}
            for job, name, state in rows:
                for index in _points(job, by_name.get(name, [])):
                    # A point that was submitted again is what its newest job is.
                    self._states[index] = (job, state)
        return {index for index, (_, state) in self._states.items() if state not in ENDED}

    def fate(self, index: int) -> str:
        job, state = self._states.get(index, ("", ""))
        word = fate_of(self.folder / "points" / f"{index:03d}.log")
        return f"{word} (Slurm job {job}: {state})" if job else word

    def stop(self, index: int) -> None:
        job, _ = self._states.get(index, ("", ""))
        if job:
            subprocess.run(["scancel", job], check=False, capture_output=True)

    def close(self) -> str:
        left = self.alive()
        if not left:
            for path in (self.folder / "jobs").glob("*.pkl"):
                path.unlink()  # submitit's own mail, which nobody will read any more
            return ""
        word = "1 point goes" if len(left) == 1 else f"{len(left)} points go"
        names = ",".join(batch.name for batch in self._batches)
        return (
            f"{word} on in Slurm's queue; run the same command again to see how they end, or "
            f"scancel --name={names} to end them."
        )

    def _note(self, batches: list[Submission]) -> None:
        self._batches = batches
        write_json(self._file, [vars(batch) for batch in batches])

    def _squeue(self) -> list[tuple[str, str, str]] | None:
        """Job, name and state of everything of ours that Slurm still knows; None when silent."""
        if not self._batches:
            return []
        names = ",".join(batch.name for batch in self._batches)
        done = subprocess.run(
            ["squeue", "--noheader", "--array", "--states=all", f"--name={names}", "--format=%i|%j|%T"],
            check=False,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            self._failures += 1
            if self._failures > PATIENCE:
                raise ResourceError(
                    f"launcher=slurm: squeue does not answer ({done.stderr.strip()}); run again later."
                )
            return None
        self._failures = 0
        rows = [line.strip().split("|") for line in done.stdout.splitlines() if line.strip()]
        return sorted(((r[0], r[1], r[2]) for r in rows), key=lambda row: _number(row[0]))


def _number(job: str) -> int:
    return int("".join(c for c in job.partition("_")[0] if c.isdigit()) or 0)


def _points(job: str, indices: list[int]) -> list[int]:
    """The points of one line: `12_3` is the fourth of its batch, `12` all of a batch of one."""
    _, underscore, task = job.partition("_")
    if not underscore:
        return indices
    return [indices[int(task)]] if task.isdigit() and int(task) < len(indices) else []


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else type(error).__name__
