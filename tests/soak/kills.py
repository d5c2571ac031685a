"""Kill a training at random moments and inside its saves; it must end as if nothing had been.

python tests/soak/kills.py FOLDER NUMBER [SEED]
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import faults
import nursery
import world


@dataclass
class Soak:
    """What was done and what came of it."""

    folder: Path
    dice: random.Random
    steps: Any = None
    expected: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    operations: list[tuple[str, str]] = field(default_factory=list)
    counts: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(
            ("runs", "kills", "kills_in_saves", "kills_at_random", "resumed", "losses"), 0
        )
    )

    def prepare(self) -> None:
        """One run that nobody disturbs, its time, and the file operations of its step."""
        whole = world.found(self.folder / "whole")
        self.steps = world.planned(whole)
        nursery.import_like(lambda: self._run(whole), self.folder / "whole.log")
        self.expected = world.result(whole)
        world.without_result(whole, self.folder / "start")
        traced = self._copy("traced")
        started = time.monotonic()
        nursery.finished(lambda: self._traced(traced), self.folder / "traced.log")
        self.seconds = time.monotonic() - started
        assert world.result(traced) == self.expected, "two undisturbed runs differ"
        log = (self.folder / "operations.json").read_text(encoding="utf-8")
        self.operations = [tuple(one) for one in json.loads(log)]

    def _traced(self, folder: Path) -> int:
        layer = faults.Layer(folder / "runs")
        faults.install(layer)
        code = self._run(folder)
        text = json.dumps(layer.log)
        (self.folder / "operations.json").write_text(text, encoding="utf-8")
        return code

    def trial(self, number: int) -> None:
        """One run: killed once or twice, then left alone until it ends."""
        folder, log = self._copy(f"trial-{number}"), self.folder / f"trial-{number}.log"
        self.counts["runs"] += 1
        in_save = number % 2 == 0
        self._kill(folder, log, in_save=in_save)
        if self.dice.random() < 0.3:
            self._kill(folder, log, in_save=False)
        child = nursery.fork(lambda: self._run(folder), log)
        code = child.ended()
        self.counts["resumed"] += "resumed after step" in child.told()
        if code != 0 or world.result(folder) != self.expected:
            self.counts["losses"] += 1
            print(f"trial {number} was lost (exit {code}): {child.told()}", file=sys.stderr)
            return
        print(number, self.counts, file=sys.stderr, flush=True)
        shutil.rmtree(folder)

    def _kill(self, folder: Path, log: Path, *, in_save: bool) -> None:
        if in_save:
            at = self.dice.choice(self._in_saves())
            child = nursery.fork(lambda: self._killed_at(folder, at), log)
            code = child.ended()
        else:
            child = nursery.fork(lambda: self._run(folder), log)
            code = child.killed_after(self.dice.uniform(0, 1.05 * self.seconds))
        assert code in (0, -signal.SIGKILL), f"neither killed nor done ({code}): {child.told()}"
        if code == -signal.SIGKILL:
            self.counts["kills"] += 1
            self.counts["kills_in_saves" if in_save else "kills_at_random"] += 1
        elif not in_save:
            self.seconds *= 0.9  # it is done sooner than the first one was

    def _killed_at(self, folder: Path, at: int) -> int:
        faults.install(faults.Layer(folder / "runs", at=at, how="kill"))
        return self._run(folder)

    def _in_saves(self) -> list[int]:
        """Numbers of the operations that save the training's state or publish its result."""
        first = next(i for i, (_, path) in enumerate(self.operations) if "/state/" in path)
        return [
            i + 1
            for i, (_, path) in enumerate(self.operations)
            if i >= first and not path.startswith("soak-")
        ]

    def _run(self, folder: Path) -> int:
        return world.run(folder, self.steps)

    def _copy(self, name: str) -> Path:
        target = self.folder / name
        shutil.copytree(self.folder / "start", target, symlinks=True)
        return target


def main(folder: Path, num_trials: int, seed: int = 0) -> dict[str, int]:
    """All trials; their counts."""
    soak = Soak(folder, random.Random(f"kills {seed}"))
    soak.prepare()
    number = 0
    while soak.counts["kills"] < num_trials:
        soak.trial(number)
        number += 1
    return soak.counts


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]), *map(int, sys.argv[3:]))))
