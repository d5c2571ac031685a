"""A served customer service under load: answers beside the FAQ's, waiting times, hand-overs.

    lcc serve +recipe=customer_service task.grounding.threshold=0.624 serve.page=false &
    python benchmarks/service.py --questions questions.jsonl --clients 1,4,16

`questions.jsonl` has lines with `question` and, where it is known, `answer`; every number of
clients asks all of them. Without --questions, the test split of +recipe=customer_service is asked,
as it was prepared here.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from results import write_section


class Reply(NamedTuple):
    """One answer: what was said, how long it took, and whether the model was asked."""

    text: str
    seconds: float
    tokens: int


def ask(url: str, question: str, max_tokens: int) -> Reply:
    body = {"messages": [{"role": "user", "content": question}], "temperature": 0, "max_tokens": max_tokens}
    request = urllib.request.Request(
        f"{url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    begun = time.perf_counter()
    with urllib.request.urlopen(request, timeout=600) as reply:
        said = json.load(reply)
    seconds = time.perf_counter() - begun
    tokens = said["usage"]["completion_tokens"]
    return Reply(said["choices"][0]["message"]["content"], seconds, tokens)


def measured(url: str, rows: Sequence[dict[str, Any]], clients: int, max_tokens: int) -> list[str]:
    """One row of the table: all questions, so many at a time."""
    from lcc.methods.metrics.squad import f1

    begun = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        replies = list(pool.map(lambda row: ask(url, row["question"], max_tokens), rows))
    took = time.perf_counter() - begun
    asked = [(row, one) for row, one in zip(rows, replies, strict=True) if one.tokens]
    scores = [f1(one.text, row["answer"]) for row, one in asked if row.get("answer")]
    times = sorted(one.seconds for _, one in asked) or [0.0]
    return [
        str(clients),
        str(len(rows)),
        f"{100 * (1 - len(asked) / len(rows)):.0f} %",
        f"{statistics.mean(scores):.3f}" if scores else "–",
        f"{statistics.median(times):.2f}",
        f"{times[int(0.95 * (len(times) - 1))]:.2f}",
        f"{sum(one.tokens for one in replies) / took:.1f}",
    ]


def prepared(num: int) -> list[dict[str, Any]]:
    """Questions of the recipe's own test split, which a run left in the store."""
    from lcc.data.dataset import PreparedData
    from lcc.pipeline.planner import pipeline_of
    from lcc.store.store import ROOT, Store

    step = pipeline_of(["+recipe=customer_service"], "run").step("data")
    artifact = Store(ROOT).find(step.key)
    assert artifact is not None, "run +recipe=customer_service first, or give --questions"
    found = PreparedData.open(artifact.path / "data").rows("test")
    rows = found[:: max(1, len(found) // num)][:num]  # questions of one kind stand together
    return [{"question": row["turns"][0], "answer": row["turns"][-1]} for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8080")
    parser.add_argument("--questions", type=Path)
    parser.add_argument("--num", type=int, default=40)
    parser.add_argument("--clients", default="1,4,16")
    parser.add_argument("--max-tokens", type=int, default=48)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.questions is None:
        rows = prepared(options.num)
    else:
        lines = options.questions.read_text(encoding="utf-8").splitlines()[: options.num]
        rows = [json.loads(line) for line in lines]
    titles = ["clients", "questions", "handed over", "token F1 of the rest", "p50 s", "p95 s", "tokens/s"]
    table = [measured(options.url, rows, int(n), options.max_tokens) for n in options.clients.split(",")]
    lines = [titles, ["---"] * len(titles), *table]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    print(text)
    if options.out is not None:
        write_section(options.out, "service", text)


if __name__ == "__main__":
    main()
