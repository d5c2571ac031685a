"""Fill a small disk in the middle of a run: it stops with 6 and its last state, and then goes on.

python tests/soak/full_disk.py FOLDER DISK NUMBER
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nursery
import world

SAYS = re.compile(r"needs [\d.,]+ [kM]?B of free disk in \S+, where [\d.,]+ [kM]?B is free")
BLOCK = 4096


@dataclass
class Filling:
    """What was filled and what came of it."""

    folder: Path
    disk: Path
    dice: random.Random
    steps: Any = None
    expected: dict[str, Any] = field(default_factory=dict)
    counts: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("in_saves", "in_results", "refused_before"), 0)
    )
    losses: list[str] = field(default_factory=list)

    def prepare(self) -> None:
        whole = world.found(self.folder / "whole")
        self.steps = world.planned(whole)
        nursery.import_like(lambda: self._run(whole), self.folder / "whole.log")
        self.expected = world.result(whole)
        world.without_result(whole, self.folder / "start")

    def in_save(self, number: int) -> None:
        """The disk fills up at some save of the training's state."""
        at, left = self.dice.randint(2, 9), self.dice.randrange(0, 20) * BLOCK
        self._trial(f"save {at}, {left} bytes left", lambda run: self._full_at_save(run, at, left))
        self.counts["in_saves"] += 1

    def in_result(self) -> None:
        """The disk fills up when the model is written: by code outside Python."""
        self._trial("model", self._full_at_model)
        self.counts["in_results"] += 1

    def refused(self) -> None:
        """Too little from the start: nothing is begun."""
        run = self._copy()
        fill(self.disk, left=10 * BLOCK)
        child = nursery.fork(lambda: self._run(run), self.folder / "refused.log")
        code = child.ended()
        begun = list((run / "runs" / "work").glob("*/curves.jsonl"))
        self._judge("from the start", code, child.told(), [f"{begun} was begun"] if begun else [])
        self._away()
        self.counts["refused_before"] += 1

    def _trial(self, what: str, full: Callable[[Path], int]) -> None:
        run = self._copy()
        child = nursery.fork(lambda: full(run), self.folder / f"{what.replace(' ', '-')}.log")
        code = child.ended()
        wrong = self._states(run)
        (self.disk / "ballast").unlink()
        again = nursery.fork(lambda: self._run(run), self.folder / "again.log")
        if again.ended() != 0:
            wrong.append(f"did not go on: {again.told()}")
        elif "resumed after step" not in again.told():
            wrong.append("began anew")
        elif world.result(run) != self.expected:
            wrong.append("ended otherwise")
        self._judge(what, code, child.told(), wrong)
        self._away()

    def _states(self, run: Path) -> list[str]:
        """What is wrong with the states that the full disk has left."""
        from lcc.training.checkpoint import newest_state

        told: list[str] = []
        folder = next((run / "runs" / "work").glob("*/state"), None)
        if folder is None or newest_state(folder, told.append) is None:
            return ["no state is left"]
        return [f"damaged: {told}"] if told else []

    def _judge(self, what: str, code: int, told: str, wrong: list[str]) -> None:
        if code != 6:
            wrong.append(f"ended with {code}")
        if SAYS.search(" ".join(told.split())) is None:
            wrong.append(f"does not say the bytes: {told}")
        if wrong:
            self.losses.append(f"{what}: {'; '.join(wrong)}")

    def _full_at_save(self, run: Path, at: int, left: int) -> int:
        from lcc.training import checkpoint as generations

        write, calls = generations.write_state, []

        def write_state(*args: Any, **kwargs: Any) -> None:
            calls.append(args)
            if len(calls) == at:
                fill(self.disk, left=left)
            write(*args, **kwargs)

        generations.write_state = write_state
        return self._run(run)

    def _full_at_model(self, run: Path) -> int:
        from lcc.models import checkpoint

        save = checkpoint.save

        def full(bundle: Any, folder: Path) -> None:
            fill(self.disk, left=4 * BLOCK)
            save(bundle, folder)

        checkpoint.save = full
        return self._run(run)

    def _run(self, folder: Path) -> int:
        return world.run(folder, self.steps)

    def _copy(self) -> Path:
        target = self.disk / "run"
        shutil.copytree(self.folder / "start", target, symlinks=True)
        return target

    def _away(self) -> None:
        shutil.rmtree(self.disk / "run")
        (self.disk / "ballast").unlink(missing_ok=True)


def fill(disk: Path, *, left: int) -> None:
    """Take all but `left` bytes of the disk."""
    with (disk / "ballast").open("wb", buffering=0) as file:
        size = shutil.disk_usage(disk).free - left
        os.posix_fallocate(file.fileno(), 0, size)


def main(folder: Path, disk: str, num_saves: int) -> dict[str, Any]:
    """All trials; their counts and what was lost."""
    filling = Filling(folder, Path(disk), random.Random("full"))
    filling.prepare()
    for number in range(num_saves):
        filling.in_save(number)
    filling.in_result()
    filling.refused()
    return {**filling.counts, "losses": filling.losses}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]) / "runs", sys.argv[2], int(sys.argv[3]))))
