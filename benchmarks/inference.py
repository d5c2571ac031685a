"""How fast models answer in every engine: prefill, first token, tokens a second, memory.

    python benchmarks/inference.py --model smollm=./base --model w8=./int8 --model w4=./int4

Every model, engine and number of threads is a process of its own, pinned to cores; the rounds of an
engine's models, and of the library's own loop without lcc (`by hand`), are interleaved, so that
whatever else the machine does falls on all of them. The first model is the parent that the others
are compared with: `theory` is the share of bytes that a token must read. `ceiling` is the machine's
own bandwidth over those bytes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from by_hand import LOOPS, Asked
from results import write_section

from lcc.inference.session import Opening

HERE = Path(__file__).parent
BY_HAND = " by hand"  # behind an engine's name: its own loop, without lcc
OURS_BY_HAND = "transformers" + BY_HAND  # dense whatever is stored: of the parent alone
SLOTS = 8
COLUMNS = ["model", "engine", "threads", "prefill tok/s", "first token ms", "decode tok/s",
           "p50 ms", "p99 ms", "8 at once tok/s", "of ceiling", "against by hand",
           "against parent", "theory", "MB"]  # fmt: skip


class Worker:
    """One model in one engine, in a process that measures a round whenever it is asked."""

    def __init__(self, job: dict[str, Any], cpus: list[int], script: str = __file__) -> None:
        self.job, self.rounds = job, list[dict[str, Any]]()
        command = [sys.executable, str(Path(script).resolve()), "--worker", json.dumps(job)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(job["threads"])}
        pin = getattr(os, "sched_setaffinity", None)
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            preexec_fn=(lambda: pin(0, cpus)) if pin else None,
        )
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

    choose_clock(job)
    if job.get("prepare"):
        # In a process of its own: writing a copy takes more memory than using it.
        chosen(job, Opening(threads=job["threads"]))
        return
    try:
        asked = _hand(job) if job["engine"].endswith(BY_HAND) else _session(job)
    except (LccError, ImportError) as error:
        print(json.dumps({"refused": str(error)}), flush=True)
        return
    asked([5] * 8, 4, 1)  # what is compiled or fetched at first use
    print(json.dumps({"opened": True}), flush=True)
    for _ in sys.stdin:
        print(json.dumps(a_round(asked, job)), flush=True)


def choose_clock(job: dict[str, Any]) -> None:
    """Whoever measures in this process measures by the job's clock."""
    if job["clock"] == "cpu":
        time.perf_counter = time.process_time


def a_round(asked: Asked, job: dict[str, Any]) -> dict[str, Any]:
    """Figures of one long prompt, one answer, and eight answers at once, all of `new` tokens."""
    length, new = job["prompt"], job["new"]
    prompt = [5 + i % 90 for i in range(length)]
    text = prompt[:8] if job["text"] is None else ids_of(job)
    first, _, _ = asked(prompt, 1, 1)
    begin, _, _ = asked(text, 1, 1)
    whole, gaps, told = asked(text, new, 1)
    together, _, all_told = asked(text, new, SLOTS)
    found = {
        "prefill": length / first,
        "first_ms": 1000 * first,
        "rss": peak_bytes(),
        "decode": (told - 1) / (whole - begin),
        "together": all_told / together,
    }
    if gaps:
        found |= {
            "decode": len(gaps) / sum(gaps),
            "p50": 1000 * statistics.median(gaps),
            "p99": 1000 * statistics.quantiles(gaps, n=100)[-1],
        }
    return found


def ids_of(job: dict[str, Any]) -> list[int]:
    """The tokens of the job's text."""
    from lcc.models.bundle import open_bundle

    return list(open_bundle(Path(job["folder"])).tokenizer(job["text"])["input_ids"])


def opened(job: dict[str, Any], *, slots: int, context: int) -> Any:
    """The session of the job's engine."""
    opening = Opening(threads=job["threads"], slots=slots, context=context)
    return chosen(job, opening).open(opening)


def chosen(job: dict[str, Any], opening: Opening) -> Any:
    """The job's engine, with the model in its format, which is written at first."""
    from lcc.export.select_engine import select
    from lcc.store.store import Store

    return select(
        job["engine"],
        Path(job["folder"]),
        opening,
        store=Store(Path(job["store"])),
        info=lambda sentence: print(sentence, file=sys.stderr),
    )


def _session(job: dict[str, Any]) -> Asked:
    """See `by_hand.Asked`: by the engine's session."""
    from lcc.inference.session import Request

    session = opened(job, slots=SLOTS, context=job["prompt"] + job["new"] + 8)

    def asked(prompt: Sequence[int], new: int, rows: int) -> tuple[float, list[float], int]:
        begun = time.perf_counter()
        request = Request(tuple(prompt), new, ignore_ends=True)
        running = {session.start(request) for _ in range(rows)}
        times, told = [begun], 0
        while running:
            for step in session.step():
                told += len(step.tokens)
                running -= {step.handle} if step.finish else set()
            times.append(time.perf_counter())
        return times[-1] - begun, [b - a for a, b in pairwise(times[1:])], told

    return asked


def _hand(job: dict[str, Any]) -> Asked:
    """See `by_hand.Asked`: the library's own loop over the same files."""
    engine = job["engine"].removesuffix(BY_HAND)
    folder = chosen({**job, "engine": engine}, Opening(threads=job["threads"])).folder
    context = job["prompt"] + job["new"] + 8
    return LOOPS[engine](folder, job["threads"], SLOTS, context)


def peak_bytes() -> int:
    from lcc.inference.benchmark import memory_bytes

    return memory_bytes("VmHWM")


def bandwidth(threads: int, cpus: list[int], folder: Path) -> float:
    """Bytes a second that this machine reads and writes (triad), with so many threads."""
    file = folder / "gauge.json"
    file.write_text(json.dumps({"threads": threads}), encoding="utf-8")
    pin = getattr(os, "sched_setaffinity", None)
    done = subprocess.run(
        [sys.executable, str(HERE / "gauge.py"), str(file)],
        text=True,
        capture_output=True,
        check=True,
        preexec_fn=(lambda: pin(0, cpus)) if pin else None,
    )
    return float(json.loads(done.stdout.splitlines()[-1])["bandwidth"])


def read_bytes(folder: Path) -> int:
    """What a token must read of the stored weights: all but an embedding that is no head too."""
    from lcc.models.card import read_json
    from lcc.models.safetensors_io import StoredTensors

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


def row_of(
    worker: Worker, hand: Worker | None, parent: Worker | None, bytes_read: dict[str, int], speed: float
) -> list[str]:
    """`hand` is the same model in the library's own loop, `parent` the parent's in this engine."""
    if not worker.rounds:
        return refused(worker, COLUMNS)
    decode, mine = worker.best("decode"), bytes_read[worker.job["name"]]
    others = [None if one is worker or not (one and one.rounds) else one for one in (hand, parent)]
    against = [f"{decode / one.best('decode'):.2f} ×" if one else "" for one in others]
    theory = f"{bytes_read[parent.job['name']] / mine:.2f} ×" if parent and against[1] else ""
    gaps = [f"{worker.best(name, min):.1f}" if name in worker.rounds[0] else "–" for name in ("p50", "p99")]
    return [
        *worker.cells(),
        f"{worker.best('prefill'):.0f}",
        f"{worker.best('first_ms', min):.0f}",
        f"{decode:.1f}",
        *gaps,
        f"{worker.best('together'):.0f}",
        f"{decode * mine / speed:.2f}",
        *against,
        theory,
        f"{worker.best('rss', min) / 1e6:.0f}",
    ]


def table(models: dict[str, str], engine: str, threads: int, options: Any) -> tuple[Any, float]:
    """The rows of one engine and its own loop, and the machine's bandwidth meanwhile."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
    cpus = cores[-threads:]
    bytes_read = {name: read_bytes(Path(folder)) for name, folder in models.items()}
    ways = [engine, engine + BY_HAND] if engine in LOOPS else [engine]
    jobs = [
        {
            "name": name,
            "folder": folder,
            "engine": way,
            "threads": threads,
            "prompt": options.prompt,
            "new": options.new,
            "clock": options.clock,
            "text": options.text,
            "store": str(options.work / "store"),
        }
        for name, folder in models.items()
        for way in ways
        if name == next(iter(models)) or way != OURS_BY_HAND
    ]
    for job in jobs:
        if job["engine"] == engine:
            Worker({**job, "prepare": True}, cpus).close()
    workers = [Worker(job, cpus) for job in jobs]
    speeds = []
    for _ in range(options.rounds):
        speeds.append(bandwidth(threads, cpus, options.work))
        for worker in workers:
            if "opened" in worker.opened:
                worker.round()
    named = {(w.job["name"], w.job["engine"]): w for w in workers}
    rows, speed = [], max(speeds)
    for worker in workers:
        name, way = worker.job["name"], worker.job["engine"]
        hand = named.get((name, way + BY_HAND)) or named.get((next(iter(models)), way + BY_HAND))
        rows.append(row_of(worker, hand, named.get((next(iter(models)), way)), bytes_read, speed))
        worker.close()
    return rows, speed


def parser_of(told: str) -> argparse.ArgumentParser:
    """The options of every benchmark whose workers are models in engines."""
    parser = argparse.ArgumentParser(description=told.splitlines()[0])
    parser.add_argument("--model", action="append", default=[], help="NAME=FOLDER, parent first")
    parser.add_argument("--engines", default="", help="all that there are, unless named a,b")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--work", type=Path, default=Path("runs/inference"))
    parser.add_argument("--results", type=Path, default=HERE.parent / "docs" / "results.md")
    parser.add_argument(
        "--clock",
        choices=["wall", "cpu"],
        default="wall",
        help="cpu: of the processor, for one thread beside other jobs",
    )
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--text", help="what answers begin from; else made-up tokens")
    options = parser.parse_args()
    if options.worker:
        measure(json.loads(options.worker))
        return
    if not options.model:
        parser.error("name at least one --model NAME=FOLDER")
    from lcc.config.cards import names

    options.work.mkdir(parents=True, exist_ok=True)
    engines = options.engines.split(",") if options.engines else names("engines")
    models = dict(word.split("=", 1) for word in options.model)
    num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    told = []
    for threads in [n for n in map(int, options.threads.split(",")) if n <= num_cores]:
        speeds = []
        for engine in engines:
            rows, speed = table(models, engine, threads, options)
            speeds.append(speed)
            lines += ["| " + " | ".join(row) + " |" for row in rows]
            print("\n".join(lines[-len(rows) :]), flush=True)
        told.append(f"{threads} threads: {min(speeds) / 1e9:.1f} to {max(speeds) / 1e9:.1f} GB/s")
    command = (
        f"python benchmarks/inference.py --prompt {options.prompt} --new {options.new} "
        f"--rounds {options.rounds} --threads {options.threads} "
        f"--clock {options.clock}"
    )
    text = (
        f"## Inference\n\n`{command}`, one request unless it says 8; best of the interleaved "
        f"rounds. Bandwidth (triad), {'; '.join(told)}. `of ceiling` counts the stored bytes, "
        "so that a dense float32 load of a bfloat16 model can reach one half.\n\n" + "\n".join(lines)
    )
    write_section(options.results, "inference", text)
    print(text)


if __name__ == "__main__":
    main()
