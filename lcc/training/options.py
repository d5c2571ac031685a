"""Weights averaged along training: what is evaluated and published while the raw ones go on."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from statistics import median
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from lcc.config.cards import card
from lcc.core.errors import DivergedError
from lcc.core.lazy import torch
from lcc.distributed.state import placed
from lcc.training.checkpoint import CheckpointManager, Counters, LoadedState
from lcc.training.optim import ScheduleName

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter

AVERAGE_BYTES = 4  # of a parameter, in memory and in every saved state


@card
class EMA:
    """An exponential moving average of the weights after every step (Polyak and Juditsky, 1992).

    For noisy runs at a level learning rate. The decay of step t is at most (1 + t) / (10 + t), so
    that a short run soon forgets the weights it began with.
    """

    word: ClassVar[str] = "averaging"
    revision: ClassVar[int] = 1
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.999

    def decay_at(self, step: int) -> float:
        return min(self.decay, (1 + step) / (10 + step))


class Average:
    """The running average of `parameters` by name; without an `ema` it holds and does nothing."""

    def __init__(self, ema: EMA | None, parameters: Mapping[str, Parameter]) -> None:
        self.ema, self.parameters = ema, parameters
        self.tensors: dict[str, Tensor] = {}

    def start(self) -> None:
        """Begin with the parameters as they are, unless an average was restored."""
        if self.ema is not None and not self.tensors:
            self.tensors = {n: p.detach().clone() for n, p in self.parameters.items()}

    def restore(self, saved: Mapping[str, Tensor]) -> None:
        """Take up the average that was saved, sharded as the parameters are now."""
        for name, tensor in saved.items():
            like = self.parameters[name].detach()
            self.tensors[name] = like.clone().copy_(placed(tensor, like))

    def update(self, step: int) -> None:
        """Take the parameters after optimizer step `step` (from 1) into the average."""
        if self.ema is None:
            return
        weight = 1 - self.ema.decay_at(step)
        with torch.no_grad():
            for name, average in self.tensors.items():
                average.lerp_(self.parameters[name].detach(), weight)

    def publish(self) -> None:
        """Put the average in place of the parameters."""
        with torch.no_grad():
            for name, average in self.tensors.items():
                self.parameters[name].copy_(average)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model computes with the average inside, and with its own parameters again after."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        # Values and not storages: FSDP2 and optimizers hold on to the parameters' own.
        with torch.no_grad():
            for name, average in self.tensors.items():
                raw = self.parameters[name].detach().clone()
                self.parameters[name].copy_(average)
                average.copy_(raw)


# -----------------------------------------------------------------------------
# Losses that jump: noticed against the recent median, answered by going back and past them.


@card
class Spike:
    """A loss above `factor` times the median of the last `window` finite ones is a spike.

    With `rollback`, training goes back to its state of at least that many steps before and on with
    the batches that follow the spike (as PaLM's authors did by hand; Chowdhery et al., 2022),
    `max_rollbacks` times at most; without it spikes are only counted.
    """

    factor: Annotated[float, Field(gt=1)] = 2.0
    window: Annotated[int, Field(ge=2)] = 50
    rollback: Annotated[int, Field(ge=1)] | None = None
    max_rollbacks: Annotated[int, Field(ge=1)] = 5

    def sees(self, recent: Sequence[float], loss: float) -> bool:
        """Whether `loss` is one, after the `recent` finite losses, the newest last."""
        known = recent[-self.window :]
        is_judged = len(known) == self.window and math.isfinite(loss)
        return is_judged and loss > self.factor * median(known)

    def is_anchor(self, step: int) -> bool:
        """Whether the state after `step` is one to go back to."""
        return self.rollback is not None and step % self.rollback == 0

    def before(self, anchors: Sequence[int], step: int) -> list[int]:
        """The steps that may be gone back to from a spike at `step`; at least the first is one."""
        assert self.rollback is not None
        early = [anchor for anchor in anchors if anchor <= step - self.rollback]
        return early or list(anchors[:1])

    def needed(self, anchors: Sequence[int], oldest: int) -> set[int]:
        """Steps whose state a training that goes on after step `oldest` or later may go back to."""
        if self.rollback is None or not anchors:
            return set()
        first = self.before(anchors, oldest + 1)[-1]
        return {anchor for anchor in anchors if anchor >= first}


def state_before(
    spike: Spike, loss: float, counters: Counters, generations: CheckpointManager
) -> LoadedState:
    """The state to go back to from a spike in the step after `counters`, which note it in place.

    The data go on behind the spike. Raises DivergedError when that was done too often.
    """
    what = f"{generations.stage}: a loss of {loss:.3g} in step {counters.step + 1} is a spike"
    if counters.rollbacks == spike.max_rollbacks:
        raise DivergedError(
            f"{what} and {counters.rollbacks} rollbacks were enough; lower lr, "
            "clip harder or raise spike.factor."
        )
    early = spike.before(counters.anchors, counters.step + 1)
    saved = generations.newest(among=early)
    if saved is None:
        raise DivergedError(f"{what}, and no sound state is left to go back to; run again.")
    then = Counters(**saved.facts["counters"])
    counters.recent, counters.anchors = then.recent, early
    counters.rollbacks += 1
    generations.warn(f"{what}: the weights are those after step {then.step} again.")
    return saved


# -----------------------------------------------------------------------------
# What a recipe may say about any training, beside its method.


@card
class TrainingOptions:
    """What a recipe may say about any training, beside its method.

    `batch_tokens` make one optimizer step, `micro_tokens` (padding included) go through the model
    at once. With `packing` texts stand one behind the other, none seeing another, in place of
    padded rows; logits of at most `loss_chunk` targets are held at once (null: of all); `compile`
    has torch compile the blocks. Without `eval_every` (steps) validation runs once an epoch;
    `patience` evaluations without a gain stop early. State for resuming is saved every
    `save_seconds`, and `save_every` steps if given. Steps that are not finite change nothing, and
    `max_nonfinite` in a row stop. With `ema` the average of the weights is evaluated and published.
    """

    word: ClassVar[str] = "training"  # the stage, as its errors name it
    epochs: Annotated[float, Field(gt=0)] = 1
    max_steps: Annotated[int, Field(ge=1)] | None = None
    lr: Annotated[float, Field(gt=0)] | None = None
    schedule: ScheduleName = "cosine"
    warmup_ratio: Annotated[float, Field(ge=0, le=1)] = 0.03
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    ema: EMA | None = None
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    batch_tokens: Annotated[int, Field(ge=1)] = 2048
    micro_tokens: Annotated[int, Field(ge=1)] = 2048
    max_length: Annotated[int, Field(ge=2)] = 512
    packing: bool = False
    loss_chunk: Annotated[int, Field(ge=1)] | None = 256
    gradient_checkpointing: bool = False
    compile: bool = False
    eval_every: Annotated[int, Field(ge=1)] | None = None
    eval_samples: Annotated[int, Field(ge=0)] = 256
    patience: Annotated[int, Field(ge=1)] | None = None
    keep_best: bool = True
    save_every: Annotated[int, Field(ge=1)] | None = None
    save_seconds: Annotated[float, Field(gt=0)] = 120
    max_nonfinite: Annotated[int, Field(ge=1)] = 5
    spike: Spike | None = None
