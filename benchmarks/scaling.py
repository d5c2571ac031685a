"""How training scales: processes, parameters, width, depth and tokens, and 7B and 70B on paper.

    python benchmarks/scaling.py                two processes, exponents, projection
    python benchmarks/scaling.py --only fits    on one core

Every point is a process of its own that runs lcc's steps on random tokens (steps.py). Losses of one
and two processes are compared before their speeds are.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import projection
from running import run, table

BASE = {"width": 256, "depth": 4, "tokens": 1024, "length": 128, "vocabulary": 512, "steps": 5, "threads": 1}
WIDTHS, DEPTHS, TOKENS = (128, 192, 256, 384, 512), (2, 4, 8, 16), (512, 1024, 2048, 4096)
SWEEPS = {"width": WIDTHS, "depth": DEPTHS, "tokens": TOKENS}
# The work of two processes: large enough that a step is not all start-up.
PAIR = {**BASE, "width": 384, "depth": 6, "tokens": 2048, "steps": 4}
WAYS = {
    "1 process × 1 thread": {"threads": 1},
    "1 process × 2 threads": {"threads": 2},
    "2 processes, ddp": {"threads": 2, "world_size": 2, "strategy": "ddp"},
    "2 processes, fsdp": {"threads": 2, "world_size": 2, "strategy": "fsdp"},
}


def steps(job: dict[str, Any], work: Path) -> dict[str, Any]:
    return dict(run(sys.executable, "steps.py", job, work))


def flops_of(fact: dict[str, Any], job: dict[str, Any]) -> float:
    """Multiplications of a step: 6 for each parameter of the body and head, and attention's own."""
    attention = 12 * job["depth"] * job["width"] * job["length"]
    head = job["vocabulary"] * job["width"]
    return float(job["tokens"]) * (6 * (fact["body"] + head) + attention)


def efficiency(rounds: int, work: Path) -> str:
    """Tokens a second in turns, and what a second process or thread is worth."""
    taken: dict[str, list[dict[str, Any]]] = {name: [] for name in WAYS}
    for _ in range(rounds):
        for name, way in WAYS.items():
            taken[name].append(steps({**PAIR, **way}, work))
    losses = {name: facts[0]["loss"] for name, facts in taken.items()}
    expected = losses["1 process × 1 thread"]
    spread = max(abs(loss - expected) for loss in losses.values())
    assert spread < 1e-5, losses
    speeds = {name: PAIR["tokens"] / min(f["seconds"] for f in facts) for name, facts in taken.items()}
    alone = speeds["1 process × 1 thread"]
    work_of = {name: min(f["cpu_of_all"] for f in facts) for name, facts in taken.items()}
    lines = []
    for name, speed in speeds.items():
        places = 1 if name == "1 process × 1 thread" else 2
        fact = taken[name][0]
        lines.append(
            [
                name,
                f"{speed:,.0f}",
                f"{speed / alone:.2f}×",
                f"{speed / alone / places:.0%}",
                f"{work_of[name]:.2f} s",
                f"{work_of['1 process × 1 thread'] / work_of[name]:.0%}",
                f"{fact['memory'] / 1e6:,.0f} MB",
                f"{fact['bytes_sent'] / 1e6:,.1f} MB",
            ]
        )
    titles = [
        "setting",
        "tokens/s",
        "speed",
        "of ideal",
        "processor time",
        "of ideal",
        "memory above the model",
        "gradients sent",
    ]
    body = table(titles, lines)
    size = taken["2 processes, ddp"][0]["parameters"] / 1e6
    return (
        f"{size:.1f} M parameters, {PAIR['tokens']} tokens a step, best of {rounds} rounds in "
        f"turns; losses after the same steps differ by {spread:.1e}.\n\n{body}"
    )


def fits(rounds: int, work: Path) -> tuple[str, float]:
    """Exponents of time and memory, and the share of a matrix product's FLOP/s that steps reach."""
    keys = [(name, value) for name, values in SWEEPS.items() for value in values]
    best: dict[tuple[str, int], dict[str, Any]] = {}
    for _ in range(rounds):
        points = [{**BASE, name: value} for name, value in keys]
        found = run(sys.executable, "steps.py", {"points": points, "threads": 1}, work)
        for key, fact in zip(keys, found, strict=True):
            kept = best.setdefault(key, fact)
            kept["cpu_seconds"] = min(kept["cpu_seconds"], fact["cpu_seconds"])
            kept["flops"] = max(kept["flops"], fact["flops"])
    flops = max(fact["flops"] for fact in best.values())
    lines, shares = [], []
    for name, values in SWEEPS.items():
        facts = [best[name, value] for value in values]
        lines.append(_fitted(name, list(values), facts))
        shares += [
            flops_of(f, {**BASE, name: v}) / f["cpu_seconds"] / flops
            for v, f in zip(values, facts, strict=True)
        ]
    grown = sorted((best[k] for k in best if k[0] != "tokens"), key=lambda f: int(f["body"]))
    lines.append(_fitted("parameters", [f["body"] for f in grown], grown))
    per_parameter = _slope([f["parameters"] for f in grown], [f["memory"] for f in grown])
    share = statistics.median(shares)
    titles = ["against", "range", "seconds ∝ xᵃ, a", "R²", "memory ∝ xᵇ, b", "R²"]
    text = table(titles, lines)
    turns = "one round" if rounds == 1 else f"best of {rounds} rounds"
    said = (
        f"One thread, float32, full fine-tuning with AdamW, {BASE['tokens']} tokens a step "
        f"unless varied, processor time, {turns}.\n\n{text}\n\nMemory grows by "
        f"{per_parameter:.1f} bytes a parameter beyond the weights (gradient 4, moments 8, the "
        f"rest activations and the allocator). Steps reach {share:.0%} (median; "
        f"{min(shares):.0%} to {max(shares):.0%}) of the {flops / 1e9:.0f} GFLOP/s of a matrix "
        "product here."
    )
    return said, share


def _fitted(name: str, xs: list[float], facts: list[dict[str, Any]]) -> list[str]:
    cells = [name, f"{min(xs):,.0f}–{max(xs):,.0f}"]
    for what in ("cpu_seconds", "memory"):
        exponent, fit = _power_law(xs, [fact[what] for fact in facts])
        cells += [f"{exponent:.2f}", f"{fit:.3f}"]
    return cells


def _power_law(xs: list[float], ys: list[float]) -> tuple[float, float]:
    """The exponent of the line through (log x, log y), and R²."""
    logs = [[math.log(value) for value in values] for values in (xs, ys)]
    fit = statistics.correlation(*logs) ** 2
    return statistics.linear_regression(*logs).slope, fit


def _slope(xs: list[float], ys: list[float]) -> float:
    return statistics.linear_regression(xs, ys).slope


def projected(share: float) -> str:
    """The paper table, from the measured share of a matrix product's speed."""
    product = 0.75  # of the data sheet, what a large bfloat16 product reaches on these GPUs
    utilisation = share * product
    titles = ["model", "method", "least GPUs", "on each", "1 B tokens", "talking / computing"]
    return (
        f"Assumed: steps reach {share:.0%} of a matrix product (as measured here) and that "
        f"{product:.0%} of the data sheet's dense bfloat16 FLOP/s, so {utilisation:.0%} in "
        f"all; {projection.MICRO_TOKENS} tokens at once on each GPU, activations checkpointed; "
        "float32 weights, gradients and moments in pieces (FSDP), bfloat16 weights gathered; "
        "talking not overlapped and only reckoned where there are several GPUs. A paper "
        "figure, not a measurement.\n\n"
        f"{table(titles, projection.rows(utilisation))}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=("efficiency", "fits"), help="leave the other out")
    parser.add_argument("--rounds", type=int, default=2)
    chosen = parser.parse_args()
    print(f"load before: {os.getloadavg()[0]:.1f} on {len(os.sched_getaffinity(0))} cores\n")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        if chosen.only != "fits":
            print(f"### Two processes\n\n{efficiency(chosen.rounds, work)}\n", flush=True)
        if chosen.only != "efficiency":
            text, share = fits(chosen.rounds, work)
            print(f"### Exponents\n\n{text}\n\n### On paper\n\n{projected(share)}\n", flush=True)
    print(f"load after: {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
