"""The gradients of one optimizer step: micro-batches, ranks, and too little memory."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lcc.core.errors import ResourceError
from lcc.core.lazy import torch
from lcc.core.progress import Progress
from lcc.engine.batching import Example, Micro, micro_batches, packed, padded, share_of_rank
from lcc.engine.feeding import prefetched
from lcc.engine.objectives import (
    Batch,
    Distillation,
    LogitsOf,
    collate,
    num_targets,
    num_tokens,
    pack,
    sampled_loss,
    summed_loss,
)
from lcc.parts.dist import Dist

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module, Parameter

    from lcc.engine.projecting import Projection
    from lcc.engine.teaching import HiddenMatch
    from lcc.parts.checkpoint import Head

_SAYS_MEMORY = ("not enough memory", "out of memory", "can't allocate memory")


class Examples:
    """Encoded rows with what batching asks of them."""

    def __init__(self, rows: Sequence[Example], head: Head) -> None:
        self.rows = [row for row in rows if num_targets(row, head)]
        self.num_without_target = len(rows) - len(self.rows)
        self.lengths = [num_tokens(row, head) for row in self.rows]
        self.targets = [num_targets(row, head) for row in self.rows]

    def __len__(self) -> int:
        return len(self.rows)


@dataclass
class Stepper:
    """Computes losses and gradients; halves `micro_tokens` when memory does not suffice.

    With a `projection` and without a teacher, logits of `loss_chunk` targets are held at a time.
    """

    model: Module
    head: Head
    student: LogitsOf
    micro_tokens: int
    pad: int
    seed: int
    device: str
    dtype: str
    dist: Dist
    progress: Progress
    label_smoothing: float = 0.0
    distillation: Distillation | None = None
    packing: bool = False
    projection: Projection | None = None
    loss_chunk: int | None = None

    @property
    def trainable(self) -> list[Parameter]:
        return [p for p in self.model.parameters() if p.requires_grad]

    def accumulate(self, examples: Examples, batch: Sequence[int], *, step: int) -> float:
        """Leave the whole batch's gradient in `.grad` on every rank; its mean loss per target.

        A target weighs the same wherever it fell: sums over micro-batches and ranks are divided by
        the targets of the whole batch, so that the result is one large batch's.
        """
        total = sum(examples.targets[i] for i in batch)
        self.model.train()
        loss = self._with_memory(examples, batch, lambda mine: self._backward(mine, total, step))
        self._sum_gradients()
        return loss / total

    def validate(self, examples: Examples) -> float:
        """Mean cross entropy per target, in eval mode, without smoothing or teacher."""
        everything = range(len(examples))
        self.model.eval()
        with torch.no_grad():
            loss = self._with_memory(examples, everything, self._summed)
        return loss / sum(examples.targets)

    def _with_memory(
        self, examples: Examples, batch: Sequence[int], work: Callable[[Iterator[Batch]], float]
    ) -> float:
        """`work` over this rank's micro-batches, summed over ranks; smaller ones if it fails."""
        while True:
            size = packed if self.packing else padded
            pieces = micro_batches(
                batch, examples.lengths, micro_tokens=self.micro_tokens, size=size
            )
            mine = share_of_rank(
                pieces, examples.lengths, rank=self.dist.rank, world_size=self.dist.world_size,
                size=size,
            )  # fmt: skip
            local, failed = 0.0, False
            try:
                batches = self._collated(examples, mine)
                # On a CPU the thread would take from the arithmetic what it saves.
                local = work(prefetched(batches) if self.device.startswith("cuda") else batches)
            except RuntimeError as error:
                if not _is_memory(error):
                    raise
                failed = True
            # Ranks must agree: a lone retry would leave the others waiting for its gradients.
            loss, num_failed = self.dist.sum([local, float(failed)], self.device)
            if not num_failed:
                return loss
            self._halve(examples, pieces)

    def _collated(self, examples: Examples, pieces: Sequence[Micro]) -> Iterator[Batch]:
        for piece in pieces:
            rows = [examples.rows[i] for i in piece]
            if self.packing:
                batch = pack(rows, device=self.device)
            else:
                batch = collate(rows, head=self.head, pad=self.pad, device=self.device)
            yield replace(batch, examples=tuple(piece))

    def _backward(self, batches: Iterator[Batch], total: int, step: int) -> float:
        for parameter in self.trainable:
            parameter.grad = None
        seed_step(self.seed, step, self.dist.rank)
        loss_sum = torch.zeros((), dtype=torch.float64 if self.device != "mps" else torch.float32)
        loss_sum = loss_sum.to(self.device)
        for batch in batches:
            loss = self._loss(batch)
            (loss / total).backward()  # type: ignore[no-untyped-call]
            loss_sum += loss.detach()
        return float(loss_sum)

    def _loss(self, batch: Batch) -> Tensor:
        distillation = self.distillation
        if distillation is None:
            return self._cross_entropy(batch, self.label_smoothing)
        if distillation.hidden is not None:
            return self._loss_with_states(batch, distillation, distillation.hidden)
        with self._autocast():
            logits = self.student(batch)
        return self._compared(logits, batch, distillation)

    def _cross_entropy(self, batch: Batch, label_smoothing: float) -> Tensor:
        projection, chunk = self.projection, self.loss_chunk
        if projection is None or chunk is None:
            with self._autocast():
                logits = self.student(batch)
            return summed_loss(logits, batch.targets, label_smoothing=label_smoothing)
        from lcc.engine.chunked_loss import chunked_loss  # its class wants torch when it is read

        with self._autocast():
            return chunked_loss(projection, projection.states(batch), batch.targets, chunk=chunk,
                                label_smoothing=label_smoothing)  # fmt: skip

    def _compared(
        self, logits: Tensor, batch: Batch, distillation: Distillation,
        teacher: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """The loss of the logits against the teacher's."""
        smoothing = self.label_smoothing
        how = {"weight": distillation.weight, "temperature": distillation.temperature}
        if distillation.samples is not None:
            samples = distillation.samples(batch.examples)
            return sampled_loss(logits, batch.targets, samples, label_smoothing=smoothing, **how)
        if teacher is None:
            assert distillation.teacher is not None
            with torch.no_grad(), self._autocast():
                teacher = distillation.teacher(batch)
        return summed_loss(logits, batch.targets, label_smoothing=smoothing, teacher=teacher, **how)

    def _loss_with_states(
        self, batch: Batch, distillation: Distillation, hidden: HiddenMatch
    ) -> Tensor:
        with self._autocast():
            logits, own = hidden.student(batch)
        with torch.no_grad(), self._autocast():
            teacher, shown = hidden.teacher(batch)
        loss = self._compared(logits, batch, distillation, teacher)
        return loss + hidden.weight * hidden.loss(own, shown, len(batch.targets))

    def _summed(self, batches: Iterator[Batch]) -> float:
        loss_sum = 0.0
        for batch in batches:
            loss_sum += float(self._cross_entropy(batch, 0.0))
        return loss_sum

    def _autocast(self) -> AbstractContextManager[object]:
        enabled = self.dtype == "bfloat16"
        return torch.autocast(self.device.partition(":")[0], dtype=torch.bfloat16, enabled=enabled)

    def _sum_gradients(self) -> None:
        # Data parallelism by one sum a step, not by DistributedDataParallel's hooks: ranks may hold
        # different numbers of micro-batches, and all must retry when one runs out of memory.
        if self.dist.world_size == 1:
            return
        for parameter in self.trainable:
            if parameter.grad is None:  # this rank's share was empty
                parameter.grad = torch.zeros_like(parameter)
        self.dist.sum_([p.grad for p in self.trainable if p.grad is not None])

    def _halve(self, examples: Examples, pieces: Sequence[Micro]) -> None:
        for parameter in self.trainable:
            parameter.grad = None
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()
        size = packed if self.packing else padded
        widest = max(size([examples.lengths[i] for i in piece]) for piece in pieces)
        if all(len(piece) == 1 for piece in pieces):
            raise ResourceError(
                f"finetune: out of memory on a single example of {widest} tokens; lower "
                "max_length, set gradient_checkpointing=true, or choose a smaller model."
            )
        self.micro_tokens = math.ceil(widest / 2)
        self.progress.warn(f"out of memory; micro-batches are now {self.micro_tokens} tokens.")


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed torch's and Python's generators for one step.

    Dropout is then a function of (seed, step, rank): a resumed run or a retry draws the same.
    """
    mixed = random.Random(f"step {seed} {step} {rank}").getrandbits(63)
    torch.manual_seed(mixed)
    random.seed(mixed)


def _is_memory(error: RuntimeError) -> bool:
    is_typed = isinstance(error, torch.OutOfMemoryError)
    return is_typed or any(words in str(error).lower() for words in _SAYS_MEMORY)
