"""How long each turn of a conversation waits for its first token, with and without what was read.

    python benchmarks/conversation.py --model chat=./int8

Two sessions in this process, one of which keeps keys and values of what it read; they are asked the
same in turns. Every turn the user says `--said` tokens and the model answers with `--answer`.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from results import write_section
from running import table

from lcc.inference.session import Opening, Request

WITHOUT, WITH = 0, 256  # megabytes kept
SAID = "And what else should one know about this, if one has little time to read? "
COLUMNS = ["turn", "prompt tokens", "without ms", "with ms", "ratio"]


def turn(session: Any, ids: list[int], answer: int) -> tuple[float, list[int]]:
    """Processor seconds until the first token, and all that was answered."""
    started = time.process_time()
    session.start(Request(tuple(ids), answer))
    found, first = list[int](), 0.0
    while session.free_slots < 1:
        for step in session.step():
            first = first or time.process_time() - started
            found += [token.id for token in step.tokens]
    return first, found


def main() -> None:
    """A table of turns, the best of all rounds."""
    from lcc.config.cards import find_card

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, metavar="NAME=FOLDER")
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--said", type=int, default=32, help="tokens of the user, each turn")
    parser.add_argument("--answer", type=int, default=32, help="most tokens of each answer")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results", type=Path, default=None, help="docs/results.md, to write it")
    options = parser.parse_args()
    name, _, folder = options.model.rpartition("=")
    opened = {
        kept: find_card("engines", "transformers")().open(
            Path(folder), Opening(threads=options.threads, slots=1, prefix_mb=kept)
        )
        for kept in (WITHOUT, WITH)
    }
    ids = opened[WITH].tokenizer(SAID)["input_ids"]
    said = [ids[i % len(ids)] for i in range(options.said)]
    best: dict[tuple[int, int], float] = {}
    lengths: dict[int, int] = {}
    for number in range(options.rounds):
        texts = {kept: said[number:9] for kept in opened}  # so that no round begins as another
        for each in range(1, options.turns + 1):
            for kept, session in opened.items():
                texts[kept] += said
                lengths[each] = len(texts[kept])
                seconds, answer = turn(session, texts[kept], options.answer)
                key = (each, kept)
                best[key] = min(seconds, best.get(key, seconds))
                texts[kept] += answer
        assert texts[WITHOUT] == texts[WITH], "they answered differently"
    rows = []
    for each in range(1, options.turns + 1):
        slow, fast = (1000 * best[each, kept] for kept in (WITHOUT, WITH))
        rows.append([str(each), str(lengths[each]), f"{slow:.0f}", f"{fast:.0f}", f"{slow / fast:.1f} ×"])
    text = "\n".join(
        [
            f"## Waiting for the next turn of a conversation ({name})\n",
            f"`python benchmarks/conversation.py --said {options.said} --answer "
            f"{options.answer}`, {options.threads} threads, processor time.\n",
            table(COLUMNS, rows),
        ]
    )
    print(text)
    if options.results is not None:
        write_section(options.results, "conversation", text)


if __name__ == "__main__":
    main()
