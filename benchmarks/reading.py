"""How fast encoders and classifiers read in every engine: one row, 32 rows, memory.

    python benchmarks/reading.py --model minilm=./base --model w8=./int8

Every model and engine is a process of its own on the same cores; rounds are interleaved. Rows have
eight lengths up to `--length` tokens, as texts do: padding costs whoever pads. The first model is
the parent that the others are compared with in the same engine. `by hand` is plain transformers in
float32 with rows padded to the longest of a batch.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from inference import Worker, choose_clock, opened, parser_of, peak_bytes, refused
from results import write_section
from running import table

BY_HAND = "forward (by hand)"
COLUMNS = ["model", "engine", "threads", "one row ms", "rows/s", "against by hand", "against parent", "MB"]
ROWS, LENGTHS = 32, 8
Rows = Sequence[Sequence[int]]


def rows_of(length: int) -> list[list[int]]:
    return [[5 + j % 90 for j in range(length * (1 + i % LENGTHS) // LENGTHS)] for i in range(ROWS)]


def measure(job: dict[str, Any]) -> None:
    """The worker's side: open, then a round for every line that comes in."""
    from lcc.core.errors import LccError

    choose_clock(job)
    rows = rows_of(job["length"])
    try:
        read = _hand(job) if job["engine"] == BY_HAND else _session(job)
        read(rows[:2])
    except (LccError, ImportError) as error:
        print(json.dumps({"refused": str(error)}), flush=True)
        return
    print(json.dumps({"opened": True}), flush=True)
    for _ in sys.stdin:
        begun = time.perf_counter()
        read(rows[LENGTHS - 1 : LENGTHS])
        first = time.perf_counter()
        read(rows)
        done = time.perf_counter()
        print(
            json.dumps(
                {"one_ms": 1000 * (first - begun), "rows": ROWS / (done - first), "rss": peak_bytes()}
            ),
            flush=True,
        )


def _session(job: dict[str, Any]) -> Callable[[Rows], Any]:
    session = opened(job, slots=ROWS, context=job["length"] + 8)
    return session.embed if "embed" in session.abilities else session.logits


def _hand(job: dict[str, Any]) -> Callable[[Rows], Any]:
    import torch

    from lcc.models.bundle import open_bundle

    torch.set_num_threads(job["threads"])
    module = open_bundle(Path(job["folder"])).load(dtype="float32").eval()

    def read(rows: Rows) -> Any:
        longest = max(map(len, rows))
        ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])
        mask = torch.tensor([[int(i < len(row)) for i in range(longest)] for row in rows])
        with torch.inference_mode():
            return module(input_ids=ids, attention_mask=mask)

    return read


def row_of(worker: Worker, hand: Worker | None, parent: Worker | None) -> list[str]:
    if not worker.rounds:
        return refused(worker, COLUMNS)
    speed = worker.best("rows")
    against = [
        "" if other is None or other is worker or not other.rounds else f"{speed / other.best('rows'):.2f} ×"
        for other in (hand, parent)
    ]
    return [
        *worker.cells(),
        f"{worker.best('one_ms', min):.1f}",
        f"{speed:.0f}",
        *against,
        f"{worker.best('rss', min) / 1e6:.0f}",
    ]


def main() -> None:
    from lcc.config.cards import names

    parser = parser_of(__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--length", type=int, default=128)
    options = parser.parse_args()
    if options.worker:
        measure(json.loads(options.worker))
        return
    if not options.model:
        parser.error("name at least one --model NAME=FOLDER")
    options.work.mkdir(parents=True, exist_ok=True)
    models = dict(word.split("=", 1) for word in options.model)
    engines = [*(options.engines.split(",") if options.engines else names("engines")), BY_HAND]
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
    workers = [
        Worker(
            {
                "name": name,
                "folder": folder,
                "engine": engine,
                "threads": options.threads,
                "length": options.length,
                "clock": options.clock,
                "store": str(options.work / "store"),
            },
            cores[-options.threads :],
            script=__file__,
        )
        for name, folder in models.items()
        for engine in engines
        if engine != BY_HAND or name == next(iter(models))
    ]
    for _ in range(options.rounds):
        for worker in workers:
            if "opened" in worker.opened:
                worker.round()
    first = next(iter(models))
    parents = {w.job["engine"]: w for w in workers if w.job["name"] == first}
    rows = []
    for worker in workers:
        rows.append(row_of(worker, parents.get(BY_HAND), parents.get(worker.job["engine"])))
        worker.close()
    text = (
        f"## Reading\n\n`python benchmarks/reading.py --length {options.length} --rounds "
        f"{options.rounds} --threads {options.threads} --clock {options.clock}`, 32 "
        f"rows of {options.length // LENGTHS} to {options.length} tokens; best of the "
        "interleaved rounds.\n\n" + table(COLUMNS, rows)
    )
    write_section(options.results, "reading", text)
    print(text)


if __name__ == "__main__":
    main()
