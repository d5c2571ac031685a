"""Batches by token budget with length bucketing, a pure function of lengths, seed and epoch."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

Micro = list[int]
"""Indices of the examples that go through the model together."""

Size = Callable[[Sequence[int]], int]
"""Tokens, padding included, that examples of these lengths cost together."""

BUCKET_BATCHES = 32  # as many batches' worth of shuffled examples are sorted by length together


class Example(Protocol):
    """What `Task.encode` makes of a row: -100 in `labels` is masked out of the loss."""

    @property
    def input_ids(self) -> list[int]: ...

    @property
    def labels(self) -> list[int] | int: ...


def epoch_batches(
    lengths: Sequence[int], *, batch_tokens: int, seed: int, epoch: int
) -> list[list[int]]:
    """The optimizer steps of one epoch: indices whose lengths sum to about `batch_tokens`.

    The same for every world size and micro-batch budget. An example longer than the budget is a
    batch of its own.
    """
    dice = random.Random(f"batches {seed} {epoch}")
    order = list(range(len(lengths)))
    dice.shuffle(order)
    batches = []
    for bucket in _cut(order, lengths, batch_tokens * BUCKET_BATCHES):
        bucket.sort(key=lambda index: lengths[index])
        batches.extend(_cut(bucket, lengths, batch_tokens))
    dice.shuffle(batches)
    return batches


def padded(lengths: Sequence[int]) -> int:
    """Every example is padded to the longest."""
    return len(lengths) * max(lengths)


def packed(lengths: Sequence[int]) -> int:
    """Examples stand one behind the other in one row."""
    return sum(lengths)


def micro_batches(
    batch: Sequence[int], lengths: Sequence[int], *, micro_tokens: int, size: Size = padded
) -> list[Micro]:
    """`batch` in pieces whose size stays within `micro_tokens` (one example at least).

    Sorted longest first, so that a piece holds examples of like lengths.
    """
    pieces: list[Micro] = []
    for index in sorted(batch, key=lambda i: (-lengths[i], i)):
        together = [*pieces[-1], index] if pieces else []
        if together and size([lengths[i] for i in together]) <= micro_tokens:
            pieces[-1] = together
        else:
            pieces.append([index])
    return pieces


def share_of_rank(
    pieces: Sequence[Micro], lengths: Sequence[int], *, rank: int, world_size: int,
    size: Size = padded,
) -> list[Micro]:  # fmt: skip
    """The micro-batches that `rank` computes: longest first, each to the least loaded rank."""
    loads = [0] * world_size
    mine = []
    for piece in pieces:
        chosen = loads.index(min(loads))
        loads[chosen] += size([lengths[i] for i in piece])
        if chosen == rank:
            mine.append(piece)
    return mine


def epoch_ends(
    lengths: Sequence[int], *, batch_tokens: int, seed: int, epochs: float, max_steps: int | None
) -> list[int]:
    """The step after which each epoch ends; the last entry is the number of steps.

    The last epoch is cut short by a fraction in `epochs` and by `max_steps`.
    """
    ends: list[int] = []
    for epoch in range(math.ceil(epochs)):
        size = len(epoch_batches(lengths, batch_tokens=batch_tokens, seed=seed, epoch=epoch))
        share = min(1.0, epochs - epoch)
        ends.append((ends[-1] if ends else 0) + max(1, round(size * share)))
        if max_steps is not None and ends[-1] >= max_steps:
            ends[-1] = max_steps
            break
    return ends


def batches_from(
    lengths: Sequence[int], *, batch_tokens: int, seed: int, start: int, stop: int
) -> Iterator[tuple[int, int, list[int]]]:
    """(step, epoch, batch) of the steps in [start, stop), epoch after epoch."""
    step, epoch = 0, 0
    while step < stop:
        for batch in epoch_batches(lengths, batch_tokens=batch_tokens, seed=seed, epoch=epoch):
            if start <= step < stop:
                yield step, epoch, batch
            step += 1
        epoch += 1


def _cut(order: Sequence[int], lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Consecutive runs of `order` whose lengths sum to at most `budget` (one example at least)."""
    runs: list[list[int]] = []
    filled = budget
    for index in order:
        if not runs or filled + lengths[index] > budget:
            runs.append([])
            filled = 0
        runs[-1].append(index)
        filled += lengths[index]
    return runs
