"""How often a masked language model guesses right, beside guessing the most frequent token."""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from lcc.core.lazy import torch
from lcc.engine.encoder_heads import PairBatch, masked_logits, pair_logits
from lcc.engine.pretraining import Drawing

COUNTS = ("masked", "hits", "unigram_hits", "pairs", "pair_hits")


def guesses(
    module: Any, drawing: Drawing, *, pad: int, frequent: int, batch_size: int,
    advance: Callable[[float], None],
) -> list[dict[str, float]]:  # fmt: skip
    """COUNTS of each document of the drawing's corpus; `frequent` is the token that a guess
    without any context names.
    """
    module.eval()
    ends = drawing.material.corpus.ends
    found = [dict.fromkeys(COUNTS, 0.0) for _ in ends]
    order = sorted(range(len(drawing)), key=lambda i: -drawing.lengths[i])
    with torch.inference_mode():
        for first in range(0, len(order), batch_size):
            chosen = order[first : first + batch_size]
            owners = [bisect.bisect_right(ends, drawing.pieces[i][0]) for i in chosen]
            for owner, counts in zip(owners, _counted(module, drawing, chosen, pad, frequent),
                                     strict=True):  # fmt: skip
                for name, value in counts.items():
                    found[owner][name] += value
            asked = len(set(ends.tolist())) or 1  # documents that have text
            advance(len(chosen) * asked / len(order))
    return found


def _counted(
    module: Any, drawing: Drawing, chosen: list[int], pad: int, frequent: int
) -> list[dict[str, float]]:
    batch = drawing.collate(chosen, pad=pad, device=str(module.device))
    assert batch.positions is not None
    hits = masked_logits(module)(batch).argmax(-1) == batch.targets
    rows = torch.nonzero(batch.positions)[:, 0]  # of each target
    per_row = {"masked": torch.ones_like(hits), "hits": hits,
               "unigram_hits": batch.targets == frequent}  # fmt: skip
    sums = {name: torch.bincount(rows, weights=value.double(), minlength=len(chosen)).tolist()
            for name, value in per_row.items()}  # fmt: skip
    if isinstance(batch, PairBatch):
        assert batch.relations is not None
        right = pair_logits(module)(batch).argmax(-1).eq(batch.relations)
        sums |= {"pairs": [1.0] * len(chosen), "pair_hits": right.double().tolist()}
    return [{name: values[i] for name, values in sums.items()} for i in range(len(chosen))]


def most_frequent(documents: Iterable[list[int]]) -> int:
    """The commonest token; of several the one with the smallest id."""
    counts = Counter(token for ids in documents for token in ids)
    return min(counts, key=lambda token: (-counts[token], token))
