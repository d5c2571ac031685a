"""How fast models answer in every engine: prefill, first token, tokens a second, memory.

    python benchmarks/inference.py --model smollm=./base --model w8=./int8 --model w4=./int4

Every model, engine and number of threads is a process of its own, pinned to cores; rounds are
interleaved, so that whatever else the machine does falls on all of them. The first model is the
parent that the others are compared with: `theory` is the share of bytes that a token must read.
`ceiling` is the machine's own bandwidth over those bytes. `by hand` is the library's own loop.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from results import write_section

HERE = Path(__file__).parent
BY_HAND = "generate (by hand)"
COLUMNS = ["model", "engine", "threads", "prefill tok/s", "first token ms", "decode tok/s",
           "p50 ms", "p99 ms", "8 at once tok/s", "of ceiling", "against parent", "theory",
           "MB"]  # fmt: skip


class Worker:
    """One model in one engine, in a process that measures a round whenever it is asked."""

    def __init__(self, job: dict[str, Any], cpus: list[int], script: str = __file__) -> None:
        self.job, self.rounds = job, list[dict[str, Any]]()
        command = [sys.executable, str(Path(script).resolve()), "--worker", json.dumps(job)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(job["threads"])}
        pin = getattr(os, "sched_setaffinity", None)
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
            preexec_fn=(lambda: pin(0, cpus)) if pin else None,
        )  # fmt: skip
        self.opened = self.reply()

    def reply(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                found: dict[str, Any] = json.loads(line)
                return found
        return {"refused": f"it ended with {self._process.wait()}"}

    def round(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("round\n")
        self._process.stdin.flush()
        self.rounds.append(self.reply())

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def cells(self) -> list[str]:
        """How its row begins."""
        return [self.job["name"], self.job["engine"], str(self.job["threads"])]

    def best(self, name: str, pick: Any = max) -> float:
        """Of all rounds the best: what disturbs a round can only make it slower."""
        return float(pick(one[name] for one in self.rounds))


def measure(job: dict[str, Any]) -> None:
    """The worker's side: open, then a round for every line that comes in."""
    from lcc.core.errors import LccError

    try:
        asked = _hand(job) if job["engine"] == BY_HAND else _session(job)
    except (LccError, ImportError) as error:
        print(json.dumps({"refused": str(error)}), flush=True)
        return
    asked([5] * 8, 4, 1)  # what is compiled or fetched at first use
    print(json.dumps({"opened": True}), flush=True)
    for _ in sys.stdin:
        prompt = [5 + i % 90 for i in range(job["prompt"])]
        first, _ = asked(prompt, 1, 1)
        whole, steps = asked(prompt[:8], job["new"], 1)
        together, _ = asked(prompt[:8], job["new"], 8)
        print(json.dumps({
            "prefill": job["prompt"] / first, "first_ms": 1000 * first,
            "decode": len(steps) / sum(steps), "p50": 1000 * statistics.median(steps),
            "p99": 1000 * statistics.quantiles(steps, n=100)[-1], "rss": peak_bytes(),
            "together": 8 * job["new"] / together, "whole": whole,
        }), flush=True)  # fmt: skip


def opened(job: dict[str, Any], *, slots: int, context: int) -> Any:
    """The session of the job's engine; the model is first written in its format."""
    from lcc.core.store import Store
    from lcc.exporting.selecting import select
    from lcc.inference.sessions import Opening

    opening = Opening(threads=job["threads"], slots=slots, context=context)
    chosen = select(job["engine"], Path(job["folder"]), opening, store=Store(Path(job["store"])),
                    say=lambda sentence: print(sentence, file=sys.stderr))  # fmt: skip
    return chosen.open(opening)


def _session(job: dict[str, Any]) -> Any:
    """Seconds of `rows` answers by the engine's session, and of each turn after the first."""
    from lcc.inference.requests import Request

    session = opened(job, slots=8, context=job["prompt"] + job["new"] + 8)

    def asked(prompt: list[int], new: int, rows: int) -> tuple[float, list[float]]:
        begun = time.perf_counter()
        running = {session.start(Request(tuple(prompt), new)) for _ in range(rows)}
        times = []
        while running:
            before = time.perf_counter()
            for step in session.step():
                running -= {step.handle} if step.finish else set()
            times.append(time.perf_counter() - before)
        return time.perf_counter() - begun, times[1:] or times

    return asked


def _hand(job: dict[str, Any]) -> Any:
    """The same by transformers' own generate, dense in float32."""
    import torch
    import transformers

    from lcc.engine.decoding import token_times
    from lcc.parts.model import open_bundle

    transformers.utils.logging.set_verbosity_error()
    torch.set_num_threads(job["threads"])
    module = open_bundle(Path(job["folder"])).load()

    def asked(prompt: list[int], new: int, rows: int) -> tuple[float, list[float]]:
        ids = torch.tensor([prompt] * rows)
        times = token_times(module, ids, torch.ones_like(ids), num_new=new)
        gaps = [after - before for before, after in pairwise(times)]
        return times[-1], gaps or times

    return asked


def peak_bytes() -> int:
    from lcc.engine.benching import memory_bytes

    return memory_bytes("VmHWM")


def bandwidth(threads: int, cpus: list[int], folder: Path) -> float:
    """Bytes a second that this machine reads and writes (triad), with so many threads."""
    file = folder / "gauge.json"
    file.write_text(json.dumps({"threads": threads}), encoding="utf-8")
    pin = getattr(os, "sched_setaffinity", None)
    done = subprocess.run([sys.executable, str(HERE / "gauge.py"), str(file)], text=True,
                          capture_output=True, check=True,
                          preexec_fn=(lambda: pin(0, cpus)) if pin else None)  # fmt: skip
    return float(json.loads(done.stdout.splitlines()[-1])["bandwidth"])


def read_bytes(folder: Path) -> int:
    """What a token must read of the stored weights: all but an embedding that is no head too."""
    from lcc.parts.folder import read_json
    from lcc.parts.tensor_files import StoredTensors

    tied = read_json(folder / "config.json").get("tie_word_embeddings", True)
    entries = StoredTensors(folder).entries
    has_head = any(name.startswith("lm_head") for name in entries)
    skipped = ("embed_tokens", "wte", "shared") if has_head and not tied else ()
    return sum(e.bytes for name, e in entries.items() if not any(s in name for s in skipped))


def refused(worker: Worker, columns: list[str]) -> list[str]:
    """The row of a model that its engine does not run."""
    why = str(worker.opened.get("refused", "")).replace("|", "/")
    print(f"{worker.job['name']} in {worker.job['engine']}: {why}", file=sys.stderr)
    short = why if len(why) < 90 and "/" not in why else "does not run; see the log"
    return [*worker.cells(), short, *[""] * (len(columns) - 4)]


def row_of(worker: Worker, parent: Worker | None, bytes_read: dict[str, int], speed: float) -> Any:
    job = worker.job
    if not worker.rounds:
        return refused(worker, COLUMNS)
    cells = worker.cells()
    decode = worker.best("decode")
    mine = bytes_read[job["name"]]
    against = theory = ""
    if parent is not None and parent.rounds and parent is not worker:
        against = f"{decode / parent.best('decode'):.2f} ×"
        theory = f"{bytes_read[parent.job['name']] / mine:.2f} ×"
    return [*cells, f"{worker.best('prefill'):.0f}", f"{worker.best('first_ms', min):.0f}",
            f"{decode:.1f}", f"{worker.best('p50', min):.1f}", f"{worker.best('p99', min):.1f}",
            f"{worker.best('together'):.0f}", f"{decode * mine / speed:.2f}", against, theory,
            f"{worker.best('rss', min) / 1e6:.0f}"]  # fmt: skip


def parser_of(told: str) -> argparse.ArgumentParser:
    """The options of every benchmark whose workers are models in engines."""
    parser = argparse.ArgumentParser(description=told.splitlines()[0])
    parser.add_argument("--model", action="append", default=[], help="NAME=FOLDER, parent first")
    parser.add_argument("--engines", default="", help="all that there are, unless named a,b")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--work", type=Path, default=Path("runs/inference"))
    parser.add_argument("--results", type=Path, default=HERE.parent / "docs" / "results.md")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--new", type=int, default=64)
    options = parser.parse_args()
    if options.worker:
        measure(json.loads(options.worker))
        return
    if not options.model:
        parser.error("name at least one --model NAME=FOLDER")
    from lcc.core.catalog import names

    options.work.mkdir(parents=True, exist_ok=True)
    engines = options.engines.split(",") if options.engines else [*names("engines"), BY_HAND]
    models = dict(word.split("=", 1) for word in options.model)
    bytes_read = {name: read_bytes(Path(folder)) for name, folder in models.items()}
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    told = []
    for threads in [n for n in map(int, options.threads.split(",")) if n <= len(cores)]:
        cpus = cores[-threads:]
        workers = [
            Worker({"name": name, "folder": folder, "engine": engine, "threads": threads,
                    "prompt": options.prompt, "new": options.new,
                    "store": str(options.work / "store")}, cpus)
            for name, folder in models.items() for engine in engines
        ]  # fmt: skip
        speeds = []
        for _ in range(options.rounds):
            speeds.append(bandwidth(threads, cpus, options.work))
            for worker in workers:
                if "opened" in worker.opened:
                    worker.round()
        parents = {w.job["engine"]: w for w in workers if w.job["name"] == next(iter(models))}
        speed = max(speeds)
        told.append(f"{threads} threads: {speed / 1e9:.1f} GB/s")
        for worker in workers:
            row = row_of(worker, parents[worker.job["engine"]], bytes_read, speed)
            lines.append("| " + " | ".join(row) + " |")
            worker.close()
    command = (f"python benchmarks/inference.py --prompt {options.prompt} --new {options.new} "
               f"--rounds {options.rounds} --threads {options.threads}")  # fmt: skip
    text = (f"## Inference\n\n`{command}`, one request unless it says 8; best of the interleaved "
            f"rounds. Bandwidth (triad), {'; '.join(told)}. `of ceiling` counts the stored bytes, "
            "so that a dense float32 load of a bfloat16 model can reach one half.\n\n"
            + "\n".join(lines))  # fmt: skip
    write_section(options.results, "inference", text)
    print(text)


if __name__ == "__main__":
    main()
