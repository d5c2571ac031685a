"""How fast this machine is: `python gauge.py JOB.json` with a number of threads."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

TRIAD, MATRIX, TRIES = 20_000_000, 1536, 4


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main() -> None:
    import torch

    torch.set_num_threads(json.loads(Path(sys.argv[1]).read_text())["threads"])
    a, b, c = (torch.ones(TRIAD) for _ in range(3))
    left, right = torch.ones(MATRIX, MATRIX), torch.ones(MATRIX, MATRIX)
    triad = min(seconds(lambda: torch.add(b, c, alpha=2.0, out=a)) for _ in range(TRIES))
    product = min(seconds(lambda: left @ right) for _ in range(2 * TRIES))
    print(json.dumps({"bandwidth": 12 * TRIAD / triad, "flops": 2 * MATRIX**3 / product}))


if __name__ == "__main__":
    main()
