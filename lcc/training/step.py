"""Gradients of one optimizer step: micro-batches, ranks, and retries with less memory."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from lcc.core import signals
from lcc.core.errors import LostError, PreemptedError, ResourceError
from lcc.core.lazy import torch
from lcc.core.machine import is_out_of_memory
from lcc.core.progress import Progress
from lcc.distributed.dist import Dist, Distributed
from lcc.distributed.gradients import Reduction
from lcc.training.batches import (
    Batch,
    EncodedExamples,
    LogitsOf,
    Micro,
    Size,
    TrainingSet,
    micro_batches,
    pack,
    packed_size,
    padded_size,
    prefetched,
    share_of_rank,
)
from lcc.training.distillation import Distillation, sampled_loss
from lcc.training.loss import summed_loss

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module, Parameter

    from lcc.core.types import Head
    from lcc.distributed.fsdp import Sharded
    from lcc.training.distillation import HiddenMatch
    from lcc.training.loss import Projection

STOPPED = "asked to stop; this batch changed nothing."


@dataclass
class Stepper:
    """Computes losses and gradients; halves `micro_tokens` when memory does not suffice.

    With a `projection` and without a teacher, logits of `loss_chunk` targets are held at a time.
    `own_loss` stands in place of the student's cross entropy where an objective has more to it.
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
    sharded: Sharded | None = None
    distributed: Distributed = field(default_factory=Distributed)
    own_loss: Callable[[Batch], Tensor] | None = None
    stage: str = "training"  # as errors name it

    def __post_init__(self) -> None:
        self.reduction = Reduction(self.dist, self.distributed)

    @property
    def trainable(self) -> list[Parameter]:
        return [p for p in self.model.parameters() if p.requires_grad]

    def accumulate(self, examples: TrainingSet, batch: Sequence[int], *, step: int) -> float:
        """Leave the whole batch's gradient in `.grad` on every rank; its mean loss per target.

        A target weighs the same wherever it fell: sums over micro-batches and ranks are divided by
        the targets of the whole batch, so that the result is one large batch's.
        """
        total = sum(examples.targets[i] for i in batch)
        self.model.train()
        loss = self._with_memory(examples, batch, lambda mine: self._backward(mine, total, step))
        if self.sharded is None:  # FSDP's backward has summed them
            self.reduction.sum_(self.trainable, self.device)
        return loss / total

    def validate(self, examples: TrainingSet) -> float:
        """Mean cross entropy per target, in eval mode, without smoothing or teacher."""
        everything = range(len(examples))
        self.model.eval()
        with torch.no_grad():
            loss = self._with_memory(examples, everything, self._summed)
        if self.sharded is not None:
            self.sharded.rest()
        return loss / sum(examples.targets)

    def _with_memory(
        self, examples: TrainingSet, batch: Sequence[int], work: Callable[[Iterator[Batch]], float]
    ) -> float:
        """`work` over this rank's micro-batches, summed over ranks; smaller ones if it fails."""
        while True:
            size = packed_size if self.packing else padded_size
            pieces = micro_batches(batch, examples.lengths, micro_tokens=self.micro_tokens, size=size)
            mine = share_of_rank(
                pieces, examples.lengths, rank=self.dist.rank, world_size=self.dist.world_size, size=size
            )
            self._agree_to_go_on()
            local, failed, stopped = 0.0, False, False
            try:
                batches = self._collated(examples, mine, self._idle(pieces, examples, size))
                # On a CPU the thread would take from the arithmetic what it saves.
                local = work(prefetched(batches) if self.device.startswith("cuda") else batches)
            except PreemptedError:
                stopped = True
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                failed = True
            if failed and self.sharded is not None:
                # The others wait in a gather for this process: only a fresh group can try again.
                self._halve(examples, pieces)
                raise LostError(
                    f"{self.stage}: out of memory; tried again with micro_tokens="
                    f"{self.micro_tokens}, which can be set at once."
                )
            # Ranks must agree: a lone retry would leave the others waiting for its gradients.
            counts = [local, float(failed), float(stopped)]
            loss, num_failed, num_stopped = self.dist.sum(counts, self.device)
            if num_stopped:
                raise PreemptedError(STOPPED)
            if not num_failed:
                return loss
            self._halve(examples, pieces)

    def _agree_to_go_on(self) -> None:
        """Under FSDP every pass is everybody's: nobody may stop between two of them alone."""
        if self.sharded is not None and self.dist.sum([signals.requested()], self.device)[0]:
            raise PreemptedError(STOPPED)

    def _idle(self, pieces: Sequence[Micro], examples: TrainingSet, size: Size) -> list[Micro]:
        """What this rank runs without effect: under FSDP every pass is everybody's."""
        if self.sharded is None:
            return []
        ranks = range(self.dist.world_size)
        sizes = [
            len(share_of_rank(pieces, examples.lengths, rank=rank, world_size=len(ranks), size=size))
            for rank in ranks
        ]
        return [pieces[-1]] * (max(sizes) - sizes[self.dist.rank])  # the narrowest one

    def _collated(
        self, examples: TrainingSet, pieces: Sequence[Micro], idle: Sequence[Micro]
    ) -> Iterator[Batch]:
        for number, piece in enumerate([*pieces, *idle]):
            if self.sharded is None:
                signals.check("batch")
            if self.packing:
                assert isinstance(examples, EncodedExamples), "only rows of a task are packed here"
                batch = pack([examples.rows[i] for i in piece], device=self.device)
            else:
                batch = examples.collate(piece, pad=self.pad, device=self.device)
            yield replace(batch, examples=tuple(piece), counts=number < len(pieces))

    def _call(self, function: Callable[[Batch], Tensor], batch: Batch) -> Tensor:
        """`function(batch)`, zero where the batch only keeps this rank in step."""
        if self.sharded is None:
            return function(batch)
        return self.sharded.call(function, batch) * float(batch.counts)

    def _backward(self, batches: Iterator[Batch], total: int, step: int) -> float:
        for parameter in self.trainable:
            parameter.grad = None
        seed_step(self.seed, step, self.dist.rank)
        loss_sum = torch.zeros((), dtype=torch.float64 if self.device != "mps" else torch.float32)
        loss_sum = loss_sum.to(self.device)
        for batch in batches:
            loss = self._call(self._loss, batch)
            (loss / total).backward()  # type: ignore[no-untyped-call]
            self._note_scattered()
            loss_sum += loss.detach()
        return float(loss_sum)

    def _note_scattered(self) -> None:
        if self.sharded is not None:  # every backward reduces every gradient, in float32
            whole = sum(parameter.numel() for parameter in self.trainable)
            self.reduction.bytes_sent += 4 * whole

    def _loss(self, batch: Batch) -> Tensor:
        if self.own_loss is not None:
            with self._autocast():
                return self.own_loss(batch)
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
        from lcc.training.autograd import chunked_loss  # its class wants torch when it is read

        with self._autocast():
            return chunked_loss(
                projection,
                projection.states(batch),
                batch.targets,
                chunk=chunk,
                label_smoothing=label_smoothing,
            )

    def _compared(
        self, logits: Tensor, batch: Batch, distillation: Distillation, teacher: Tensor | None = None
    ) -> Tensor:
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

    def _loss_with_states(self, batch: Batch, distillation: Distillation, hidden: HiddenMatch) -> Tensor:
        with self._autocast():
            logits, own = hidden.student(batch)
        with torch.no_grad(), self._autocast():
            teacher, shown = hidden.teacher(batch)
        loss = self._compared(logits, batch, distillation, teacher)
        return loss + hidden.weight * hidden.loss(own, shown, len(batch.targets))

    def _summed(self, batches: Iterator[Batch]) -> float:
        loss_sum = 0.0
        for batch in batches:
            loss_sum += float(self._call(self._validation_loss, batch))
        return loss_sum

    def _validation_loss(self, batch: Batch) -> Tensor:
        return self._cross_entropy(batch, 0.0) if self.own_loss is None else self._loss(batch)

    def _autocast(self) -> AbstractContextManager[object]:
        enabled = self.dtype == "bfloat16"
        return torch.autocast(self.device.partition(":")[0], dtype=torch.bfloat16, enabled=enabled)

    def _halve(self, examples: TrainingSet, pieces: Sequence[Micro]) -> None:
        for parameter in self.trainable:
            parameter.grad = None
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()
        size = packed_size if self.packing else padded_size
        widest = max(size([examples.lengths[i] for i in piece]) for piece in pieces)
        if all(len(piece) == 1 for piece in pieces):
            raise ResourceError(
                f"{self.stage}: out of memory on a single example of {widest} tokens; lower "
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
