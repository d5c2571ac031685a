"""A Slurm job from inside: the plain command, saved and put back in the queue."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

from lcc.methods.launchers import LaunchedTask
from lcc.methods.launchers._commands import PREEMPTED, end, run_to_end, start

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

SECONDS_TO_SAVE = 60.0  # within the notice that the job was submitted with


class SlurmJob:
    """A task as submitit's callable; what submitit stores of it are these few words."""

    def __init__(self, task: LaunchedTask, *, requeue: bool) -> None:
        self.task, self.requeue = task, requeue
        self._child: subprocess.Popen[bytes] | None = None

    def __call__(self) -> int:
        self._child = start(self.task)
        code = run_to_end(self._child, self.task)
        if code == PREEMPTED and self.requeue:
            _requeue()  # told to stop by a signal that did not come through submitit
        return code

    def checkpoint(self) -> DelayedSubmission | None:
        """Called by submitit when Slurm wants the place back: save, and be queued once more."""
        from submitit.helpers import DelayedSubmission

        if self._child is not None:
            end(self._child, seconds=SECONDS_TO_SAVE)
        if not self.requeue:
            return None
        again = SlurmJob(self.task, requeue=True)
        return DelayedSubmission(again)


def _requeue() -> None:
    array, task = (os.environ.get(f"SLURM_ARRAY_{part}_ID") for part in ("JOB", "TASK"))
    job = f"{array}_{task}" if array else os.environ["SLURM_JOB_ID"]
    subprocess.run(["scontrol", "requeue", job], check=False)
