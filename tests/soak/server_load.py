"""A server in a process of its own, under every kind of load; prints what came of it.

python tests/soak/server_load.py FOLDER PLAN [MODEL]; a plan is JSON, what is to be done in order:
{"malformed": [10000], "slow": [500, 60], "throughput": [16, 30], "endurance": [1200]}
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

import malforming
import served_models as serving
from crowds import Slow, honest, hung_up
from processes_served import ServerProcess

THREADS = 4
SAMPLE_SECONDS = 2.0


def malformed(server: ServerProcess, num: int) -> dict[str, Any]:
    """`num` malformed requests from a few clients, and an honest one after them."""
    seen: Counter[int] = Counter()

    def send(number: int) -> None:
        dice = random.Random(number)
        for _ in range(num // THREADS):
            seen[malforming.status(server.port, malforming.request(dice))] += 1

    _together([partial(send, n) for n in range(THREADS)])
    after = honest(server.port)
    statuses = {str(status): count for status, count in sorted(seen.items())}
    return {
        "requests": sum(seen.values()),
        "statuses": statuses,
        "honest_after": after.status,
        "num_5xx": sum(n for status, n in seen.items() if status >= 500),
    }


def slow(server: ServerProcess, num: int, seconds: float) -> dict[str, Any]:
    """Honest latency without and beside `num` connections that trickle, stall or do not read."""
    alone = _latencies(server.port, seconds)
    with Slow(server.port, num) as crowd:
        beside = _latencies(server.port, seconds)
    return {
        "slow": num,
        "cut": crowd.num_cut,
        "honest": len(beside),
        "p95_alone_seconds": _p95(alone),
        "p95_beside_seconds": _p95(beside),
        "ratio": round(_p95(beside) / _p95(alone), 2),
    }


def throughput(server: ServerProcess, clients: int, seconds: float) -> dict[str, Any]:
    """Tokens a second that one client gets, and that many get together."""
    one = _tokens(server.port, 1, seconds)
    many = _tokens(server.port, clients, seconds)
    return {
        "clients": clients,
        "one_tokens_per_second": round(one, 1),
        "many_tokens_per_second": round(many, 1),
        "ratio": round(many / one, 2),
    }


def endurance(server: ServerProcess, seconds: float) -> dict[str, Any]:
    """Everything at once, for long: what is left in memory."""
    counts: Counter[str] = Counter()
    sizes: list[tuple[float, int]] = []
    until = time.monotonic() + seconds

    def live(number: int) -> None:
        dice = random.Random(number)
        while time.monotonic() < until:
            what = dice.random()
            if what < 0.5:
                counts[f"honest {honest(server.port, dice).status}"] += 1
            elif what < 0.9:
                status = malforming.status(server.port, malforming.request(dice))
                counts["malformed 5xx" if status >= 500 else "malformed"] += 1
            else:
                hung_up(server.port)
                counts["hung up"] += 1

    def watch() -> None:
        while time.monotonic() < until:
            sizes.append((time.monotonic(), server.bytes()))
            time.sleep(SAMPLE_SECONDS)

    with Slow(server.port, 20) as crowd:
        _together([watch, *(partial(live, n) for n in range(THREADS))])
    begun = sizes[0][0]
    early = [size for at, size in sizes if at - begun >= 0.2 * seconds][: len(sizes) // 5 + 1]
    late = [size for at, size in sizes if at - begun >= 0.75 * seconds]
    growth = statistics.median(late) - statistics.median(early)
    return {
        "seconds": seconds,
        **counts,
        "slow_ones_cut": crowd.num_cut,
        "early_bytes": int(statistics.median(early)),
        "late_bytes": int(statistics.median(late)),
        "growth_bytes": int(growth),
        "most_bytes": max(size for _, size in sizes),
    }


def _latencies(port: int, seconds: float) -> list[float]:
    found: list[float] = []
    until = time.monotonic() + seconds
    while time.monotonic() < until or len(found) < 20:
        reply = honest(port)
        assert reply.status == 200, reply
        found.append(reply.seconds)
    return found


def _tokens(port: int, clients: int, seconds: float) -> float:
    """Tokens a second over all clients, each asking again as soon as it is answered."""
    counts = [0] * clients
    until = time.monotonic() + seconds

    def ask(number: int) -> None:
        while time.monotonic() < until:
            reply = honest(port, num_tokens=32)
            assert reply.status == 200, reply
            counts[number] += reply.num_tokens

    begun = time.monotonic()
    _together([partial(ask, n) for n in range(clients)])
    return sum(counts) / (time.monotonic() - begun)


def _p95(values: list[float]) -> float:
    return round(sorted(values)[int(0.95 * (len(values) - 1))], 4)


def _together(works: list[Callable[[], None]]) -> None:
    """All of them at once; raises what any raised."""
    errors: list[BaseException] = []

    def run(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


KINDS: dict[str, Callable[..., dict[str, Any]]] = {
    "malformed": malformed,
    "slow": slow,
    "throughput": throughput,
    "endurance": endurance,
}


def main(folder: str, plan: str, model: str = "") -> int:
    path = Path(model) if model else serving.chatter(Path(folder) / "m", width=256, layers=6)
    found = {}
    with ServerProcess(path, Path(folder), "serve.read_seconds=3", "serve.write_seconds=3") as server:
        _tokens(server.port, 1, 1.0)  # what is made at first use is no part of it
        for kind, amounts in json.loads(plan).items():
            found[kind] = KINDS[kind](server, *amounts)
            print(json.dumps({kind: found[kind]}), flush=True)
    server.require_clean()
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
