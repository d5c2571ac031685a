"""One training by lcc's own loop, timed: `python our_training.py JOB.json`, facts on stdout.

The job: model, rows, method, head, epochs, batch_tokens, lr, seed, threads, options of the stage.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

WARM = 1  # steps that are not timed


@dataclass
class Clocked:
    """A tracker that notes when each step ended, by the wall and of the processor."""

    losses: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    ends: list[tuple[float, float]] = field(default_factory=list)

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        self.losses.append(values["loss"])
        self.tokens.append(values["tokens"])
        self.ends.append((time.perf_counter(), time.process_time()))

    def close(self) -> None: ...

    def facts(self) -> dict[str, Any]:
        (wall, cpu), (wall_end, cpu_end) = self.ends[WARM - 1], self.ends[-1]
        peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return {
            "losses": self.losses,
            "tokens": self.tokens[-1] - self.tokens[WARM - 1],
            "seconds": wall_end - wall,
            "cpu_seconds": cpu_end - cpu,
            "peak_bytes": peak,
        }


@dataclass(frozen=True)
class Encoded:
    input_ids: list[int]
    labels: list[int]


def train(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    from lcc.config.cards import decode
    from lcc.core.progress import Progress
    from lcc.distributed.dist import SINGLE
    from lcc.models.bundle import open_bundle
    from lcc.pipeline.stage import Context
    from lcc.stages.finetune import Finetune
    from lcc.tasks.task import Task
    from lcc.training.batches import EncodedExamples

    options = {
        "method": job["method"],
        "lr": job["lr"],
        "schedule": "constant",
        "warmup_ratio": 0,
        "batch_tokens": job["batch_tokens"],
        "epochs": job["epochs"],
        "micro_tokens": job["batch_tokens"],
        "keep_best": False,
        "save_seconds": 1e9,
        **job.get("options", {}),
    }
    stage = decode(Finetune, options)
    bundle, clock = open_bundle(Path(job["model"])), Clocked()
    task = Task(
        name="rows", head=job["head"], fields=("source", "target"), template="{source}", answer="{target}"
    )
    around = Context(
        folder=folder,
        seed=job["seed"],
        device="cpu",
        dtype="float32",
        dist=SINGLE,
        progress=Progress(quiet=True),
        tracker=clock,
        task=task,
    )
    model = stage.method.apply(bundle, device="cpu", dtype="float32", seed=job["seed"])
    rows = [Encoded(**row) for row in json.loads(Path(job["rows"]).read_text(encoding="utf-8"))]
    train, none = (EncodedExamples(some, job["head"]) for some in (rows, []))
    training = stage._training(model, bundle, around, train=train, validation=none)
    stage._run(training)
    return clock.facts()


def main() -> None:
    import torch

    from lcc.models.card import hush

    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(job["threads"])
    hush()
    with tempfile.TemporaryDirectory() as folder:
        facts = train(job, Path(folder))
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
