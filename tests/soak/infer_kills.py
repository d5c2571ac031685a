"""`lcc infer` over many short rows, killed again and again; every row is answered exactly once.

Usage: infer_kills.py FOLDER NUM_ROWS NUM_KILLS WORKERS
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
import speakers

from lcc.cli import main


def prepare(folder: Path, num_rows: int) -> list[str]:
    """A tiny model, the rows, and the words of the command."""
    speakers.save(speakers.llama(num_hidden_layers=1), folder / "model")
    draw = random.Random(0)
    with (folder / "in.jsonl").open("w", encoding="utf-8") as file:
        for i in range(num_rows):
            text = f"{i} " + "a" * draw.randint(0, 20)
            file.write(json.dumps({"id": f"r{i}", "source": text}) + "\n")
            file.write("\n" if i % 1000 == 7 else "")  # a blank line is no row
    return [
        "infer",
        f"model={folder / 'model'}",
        "task=translation",
        "max_new_tokens=4",
        f"slots={4 if num_rows <= 1000 else 32}",  # answers come in order of windows of slots
        f"input={folder / 'in.jsonl'}",
        f"output={folder / 'out.jsonl'}",
    ]


def run(words: list[str], folder: Path, *, until: int | None, with_signal: int) -> int:
    """One process; it gets the signal once `until` lines are there. Its wait status."""
    child = os.fork()
    if child == 0:
        log = os.open(folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os._exit(main(words))
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status
        if until is not None and num_lines(folder) >= until:
            os.kill(child, with_signal)
            return os.waitpid(child, 0)[1]
        time.sleep(0.002)


def num_lines(folder: Path) -> int:
    try:
        return (folder / "out.jsonl").read_bytes().count(b"\n")
    except OSError:
        return 0


def soak(folder: Path, num_rows: int, num_kills: int, workers: int) -> dict[str, Any]:
    words = [*prepare(folder, num_rows), f"workers={workers}"]
    draw, killed, asked, halves = random.Random(1), 0, 0, 0
    started = time.monotonic()
    for attempt in range(num_kills):
        before = num_lines(folder)
        left = num_rows - before
        number = signal.SIGTERM if attempt % 4 == 3 else signal.SIGKILL
        until = before + draw.randint(1, max(1, left // (num_kills - attempt + 1)))
        status = run(words, folder, until=until, with_signal=number)
        if os.WIFSIGNALED(status):
            killed += 1
        else:
            assert os.waitstatus_to_exitcode(status) == 75, (status, read(folder / "log.txt"))
            asked += 1
        if attempt % 3 == 0:  # what a kill in the middle of a write leaves
            with (folder / "out.jsonl").open("ab") as file:
                file.write(b'{"id": "half')
            halves += 1
    status = run(words, folder, until=None, with_signal=0)
    assert status == 0, (status, read(folder / "log.txt")[-3000:])
    lines = read(folder / "out.jsonl").splitlines()
    answered = [json.loads(line)["id"] for line in lines]
    assert answered == [f"r{i}" for i in range(num_rows)], "gaps or duplicates"
    facts = {
        "rows": num_rows,
        "killed": killed,
        "asked": asked,
        "half_lines": halves,
        "workers": workers,
        "seconds": round(time.monotonic() - started),
    }
    whole = num_rows <= 1000
    if whole:  # and they are the answers of a run that nobody disturbed
        (folder / "out.jsonl").rename(folder / "disturbed.jsonl")
        assert run(words, folder, until=None, with_signal=0) == 0
        said = [json.loads(line)["output"] for line in read(folder / "out.jsonl").splitlines()]
        assert said == [json.loads(line)["output"] for line in lines]
    return {**facts, "compared": whole}


def read(file: Path) -> str:
    return file.read_text(encoding="utf-8")


if __name__ == "__main__":
    where, *numbers = sys.argv[1:]
    print(json.dumps(soak(Path(where), *map(int, numbers))))
