"""How long a command takes before its first step: help, a reused run, a config error.

    python benchmarks/startup.py --tree before=FOLDER --tree after=FOLDER

FOLDER is a checkout: it holds lcc/. The trees take turns, in one folder of runs each, so that what
else the machine does meets all of them alike. Figures are processor time, children included, the
median over the rounds; the unit is what importing torch and transformers takes here. The last
columns are each later tree's time over the first tree's.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from running import table

UNIT = "import torch, transformers"
COMMANDS = {
    "lcc --help": (["-m", "lcc", "--help"], 0),
    "lcc run +recipe=tiny, all reused": (["-m", "lcc", "run", "+recipe=tiny"], 0),
    "a config error": (["-m", "lcc", "run", "+recipe=tiny", "stages.finetune.lr=fast"], 2),
    UNIT: (["-c", UNIT], 0),
}


def processor_seconds(arguments: list[str], tree: Path, home: Path, code: int) -> float:
    """User and system time of one Python process and its children; raises where it exits otherwise."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "LCC_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=home,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert process.stdout is not None
    printed = process.stdout.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != code:
        raise SystemExit(f"{tree}: {arguments} exited {process.returncode}, not {code}:\n{printed}")
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tree", action="append", required=True, metavar="NAME=FOLDER")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    trees = {name: Path(folder).resolve() for name, _, folder in (t.partition("=") for t in options.tree)}
    taken: dict[str, dict[str, list[float]]] = {name: {c: [] for c in COMMANDS} for name in trees}
    with tempfile.TemporaryDirectory(prefix="startup-") as folder:
        homes = {name: Path(folder) / name for name in trees}
        for name, home in homes.items():
            home.mkdir()
            processor_seconds(*_job("lcc run +recipe=tiny, all reused", trees[name], home))
        for _ in range(options.rounds):
            for command in COMMANDS:
                for name, tree in trees.items():
                    taken[name][command].append(processor_seconds(*_job(command, tree, homes[name])))
    middle = {n: {c: statistics.median(times) for c, times in rows.items()} for n, rows in taken.items()}
    unit = statistics.median(t for rows in taken.values() for t in rows[UNIT])
    print(f"{UNIT}: {unit:.2f} s of processor time = 1.00\n")
    first = next(iter(trees))
    rows = [
        [command, *(f"{middle[n][command] / unit:.2f}" for n in trees)]
        + [f"{middle[n][command] / middle[first][command]:.2f}" for n in list(trees)[1:]]
        for command in COMMANDS
        if command != UNIT
    ]
    print(table(["command", *trees, *(f"{n} / {first}" for n in list(trees)[1:])], rows))


def _job(command: str, tree: Path, home: Path) -> tuple[list[str], Path, Path, int]:
    arguments, code = COMMANDS[command]
    return arguments, tree, home, code


if __name__ == "__main__":
    main()
