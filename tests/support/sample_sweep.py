"""A sweep on disk as its driver leaves it: finished, failed, running and waiting points."""

from __future__ import annotations

from pathlib import Path

from sample_run import write_sample_run

from lcc.config.search_space import Direction
from lcc.store.sweeps import Point, Result, Sweep

LRS = ("0.0001", "0.0003", "0.001", "0.003", "0.01", "0.02", "0.03", "0.05")
PLANS = ("w8", "<b>w4</b>", "nf4")
GOALS: dict[str, Direction] = {"eval.quantize.bleu": "maximize", "bytes": "minimize"}


def write_sample_sweep(root: Path, objectives: dict[str, Direction] | None = None) -> Sweep:
    """Six finished points of two words, then one failed, and one that never started."""
    run = write_sample_run(root)
    ranges = [
        {"head": "plan", "values": list(PLANS)},
        {"head": "stages.finetune.lr", "low": 1e-4, "high": 0.05, "log": True},
    ]
    sweep = Sweep(
        run.parent / "sweep-mt-12345678",
        "run",
        ["plan=w8,nf4"],
        name="mt",
        command="lcc run -m +recipe=mt 'plan=w8,<b>w4</b>,nf4'",
        started="2026-11-25T10:00:00Z",
        launcher={"name": "local", "workers": 2},
        sampler={"name": "random", "trials": 8},
        objectives=objectives or {},
        ranges=ranges,
    )
    for index, lr in enumerate(LRS):
        chosen = {"plan": PLANS[index % 3], "stages.finetune.lr": lr}
        point = Point(index, [f"plan={PLANS[index % 3]}"], chosen, run=run.name)
        sweep.points.append(point)
        if index < 6:
            reached = {"eval.quantize.bleu": 30 + 2.5 * index, "bytes": (4 + index % 3 * index) * 1e6}
            point.values = {name: reached[name] for name in objectives or {}}
            sweep.keep_result(index, Result("finished", run.name, seconds=60.0 + index))
        elif index == 6:
            error = "step 'finetune' failed: <i>diverged</i>."
            sweep.keep_result(index, Result("failed", run.name, error, exit_code=7, seconds=3.0))
    sweep.write()
    return sweep
