"""Training batches: examples packed into micro-batches by tokens, collated, prefetched; the training set."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

from lcc.core.errors import DataError
from lcc.core.lazy import torch
from lcc.tasks.encode import padded_rows

if TYPE_CHECKING:
    from torch import Tensor

    from lcc.core.types import Head

# Batches by token budget with length bucketing, a pure function of lengths, seed and epoch.

Micro = list[int]
"""Indices of the examples that go through the model together."""

Size = Callable[[Sequence[int]], int]
"""Tokens, padding included, that examples of these lengths cost together."""

BUCKET_BATCHES = 32  # as many batches' worth of shuffled examples are sorted by length together


class EncodedExample(Protocol):
    """What `Task.encode` makes of a row: -100 in `labels` is masked out of the loss."""

    @property
    def input_ids(self) -> list[int]: ...

    @property
    def labels(self) -> list[int] | int: ...


def epoch_batches(lengths: Sequence[int], *, batch_tokens: int, seed: int, epoch: int) -> list[list[int]]:
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


def padded_size(lengths: Sequence[int]) -> int:
    """Every example is padded to the longest."""
    return len(lengths) * max(lengths)


def packed_size(lengths: Sequence[int]) -> int:
    """Examples stand one behind the other in one row."""
    return sum(lengths)


def micro_batches(
    batch: Sequence[int], lengths: Sequence[int], *, micro_tokens: int, size: Size = padded_size
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
    pieces: Sequence[Micro], lengths: Sequence[int], *, rank: int, world_size: int, size: Size = padded_size
) -> list[Micro]:
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


# Batches made ready while the one before is computed.

T = TypeVar("T")


def prefetched(items: Iterator[T]) -> Iterator[T]:
    """`items`, each made by a thread while the one before is in use; its errors are raised here.

    Whatever makes an item must not draw from the global random state, which the user of the one
    before draws from meanwhile.
    """
    end = object()
    with ThreadPoolExecutor(1, "prefetch") as thread:
        pending = thread.submit(next, items, end)
        while (item := pending.result()) is not end:
            pending = thread.submit(next, items, end)
            yield item  # type: ignore[misc]


def moved(tensor: Tensor, device: str) -> Tensor:
    """On `device`; to CUDA through pinned memory, without waiting for the copy."""
    if device.startswith("cuda"):
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


IGNORED = -100
LogitsOf = Callable[["Batch"], "Tensor"]
"""Logits (num_targets, classes) at the batch's targets, and nowhere else."""


@dataclass(frozen=True)
class Batch:
    """Examples on the device, padded or packed in one row, and where their targets stand."""

    inputs: dict[str, Tensor]  # what the model's forward takes
    positions: Tensor | None  # (B, T) bool: where a logit is needed; None for one logit per row
    targets: Tensor  # (num_targets,)
    examples: tuple[int, ...] = ()  # which of the training examples they are, in this order
    lengths: tuple[int, ...] | None = None  # of the texts packed in one row
    counts: bool = True  # else it only keeps a rank in step with the others


def num_targets(example: EncodedExample, head: Head) -> int:
    """How many predictions of `example` are scored."""
    if head == "classify":
        return 1
    labels = _sequence(example)
    return sum(label != IGNORED for label in (labels[1:] if head == "causal" else labels))


def num_tokens(example: EncodedExample, head: Head) -> int:
    """Tokens that `example` costs: its input, and its target where that is another sequence."""
    return len(example.input_ids) + (len(_sequence(example)) if head == "seq2seq" else 0)


def collate(examples: Sequence[EncodedExample], *, head: Head, pad: int, device: str) -> Batch:
    """Pad on the right to the longest example."""
    ids = padded_rows([e.input_ids for e in examples], pad)
    mask = padded_rows([[1] * len(e.input_ids) for e in examples], 0)
    inputs = {"input_ids": moved(ids, device), "attention_mask": moved(mask, device)}
    kinds = [getattr(e, "kinds", None) or [] for e in examples]
    if any(map(any, kinds)):
        inputs["token_type_ids"] = moved(padded_rows(kinds, 0), device)
    if head in ("classify", "extract"):
        each = [e.labels if isinstance(e.labels, list) else [e.labels] for e in examples]
        # Of a span first where it begins, for every row, then where it ends.
        targets = torch.tensor(each).T.flatten()
        return Batch(inputs, None, moved(targets, device))
    labels = padded_rows([_sequence(e) for e in examples], IGNORED)
    if head == "seq2seq":
        inputs["labels"] = moved(labels, device)
    elif head == "causal":
        # The logit at t predicts token t + 1.
        labels = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED)
    positions = labels != IGNORED
    return Batch(inputs, moved(positions, device), moved(labels[positions], device))


def pack(examples: Sequence[EncodedExample], *, device: str) -> Batch:
    """One row without padding, in which every example's positions begin at 0; causal heads only."""
    lengths = tuple(len(e.input_ids) for e in examples)
    ids = torch.tensor([[i for e in examples for i in e.input_ids]])  # (1, T)
    positions = torch.cat([torch.arange(length) for length in lengths]).unsqueeze(0)
    # An example's last token predicts nothing: what follows it is another example.
    labels = torch.tensor([[i for e in examples for i in (*_sequence(e)[1:], IGNORED)]])
    at = labels != IGNORED
    inputs = {"input_ids": moved(ids, device), "position_ids": moved(positions, device)}
    return Batch(inputs, moved(at, device), moved(labels[at], device), lengths=lengths)


def _sequence(example: EncodedExample) -> list[int]:
    assert isinstance(example.labels, list), example
    return example.labels


def require_loss(head: Head) -> None:
    """Raises DataError for a head that has nothing to be trained towards."""
    if head in ("embed", "paired"):
        raise unsupervised(head)


def unsupervised(head: Head) -> DataError:
    return DataError(
        f"task.head: {head!r} has no supervised loss to train on; "
        "choose a task with the head causal, seq2seq or classify."
    )


# What training draws its batches from: a contract that rows and corpora both keep.


class TrainingSet(Protocol):
    """Examples by number, as one epoch sees them.

    Batches are planned from `lengths` alone, so these are the same in every epoch; where an example
    is drawn anew each time (masks, spans), its length is the most that it can cost.
    """

    @property
    def lengths(self) -> Sequence[int]:
        """Tokens that each example costs."""
        ...

    @property
    def targets(self) -> Sequence[int]:
        """Predictions of each example that are scored in this epoch."""
        ...

    def __len__(self) -> int: ...

    def at(self, epoch: int) -> TrainingSet:
        """The same examples as `epoch` sees them: a function of seed, epoch and number alone."""
        ...

    def collate(self, indices: Sequence[int], *, pad: int, device: str) -> Batch:
        """These examples as one micro-batch."""
        ...


class EncodedExamples:
    """Encoded rows with what batching asks of them."""

    def __init__(self, rows: Sequence[EncodedExample], head: Head) -> None:
        self.head: Head = head
        self.rows = [row for row in rows if num_targets(row, head)]
        self.num_without_target = len(rows) - len(self.rows)
        self.lengths = [num_tokens(row, head) for row in self.rows]
        self.targets = [num_targets(row, head) for row in self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def at(self, epoch: int) -> EncodedExamples:
        """Rows are the same in every epoch."""
        return self

    def collate(self, indices: Sequence[int], *, pad: int, device: str) -> Batch:
        """These rows, padded on the right to the longest."""
        return collate([self.rows[i] for i in indices], head=self.head, pad=pad, device=device)
