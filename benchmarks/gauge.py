"""How fast this machine is: `python gauge.py JOB.json` with a number of threads."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

TRIAD, MATRIX, TRIES = 20_000_000, 1536, 4


def seconds(work: Callable[[], object], threads: int) -> float:
    """Processor time of each thread: what else runs on the machine does not count."""
    started = time.process_time()
    work()
    return (time.process_time() - started) / threads


def main() -> None:
    import torch

    threads = json.loads(Path(sys.argv[1]).read_text())["threads"]
    torch.set_num_threads(threads)
    a, b, c = (torch.ones(TRIAD) for _ in range(3))
    left, right = torch.ones(MATRIX, MATRIX), torch.ones(MATRIX, MATRIX)
    triad = min(seconds(lambda: torch.add(b, c, alpha=2.0, out=a), threads) for _ in range(TRIES))
    product = min(seconds(lambda: left @ right, threads) for _ in range(2 * TRIES))
    print(json.dumps({"bandwidth": 12 * TRIAD / triad, "flops": 2 * MATRIX**3 / product}))


if __name__ == "__main__":
    main()
