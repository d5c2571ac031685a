"""Training loop for pretraining, fine-tuning, healing and distillation, on any device."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from lcc.config.cards import card
from lcc.core import signals
from lcc.core.errors import DivergedError, LostError, PreemptedError
from lcc.core.lazy import torch
from lcc.core.progress import Bar, CurveFile, Progress, Tracker
from lcc.distributed.state import is_sharded, placed
from lcc.models.adapter_io import mask_gradients, mask_weights
from lcc.training.batches import TrainingSet, batches_from, epoch_ends
from lcc.training.checkpoint import (
    CheckpointManager,
    Counters,
    TrainingState,
    load_optimizer_state_dict,
    no_others,
    note_micro_tokens,
    noted_micro_tokens,
    optimizer_state_dict,
)
from lcc.training.ema import AVERAGE_BYTES, EMA, Average
from lcc.training.loss_spikes import Spike, state_before
from lcc.training.optim import (
    OPTIMIZER_BYTES,
    Clip,
    ClipResult,
    OptimizerCard,
    RankAllocation,
    ScheduleName,
    parameter_groups,
    schedule_of,
    with_own_rates,
)
from lcc.training.step import Stepper

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter


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


@dataclass
class Training:
    """One training: a model's trainable parameters are changed in place by `run`."""

    options: TrainingOptions
    stepper: Stepper
    train: TrainingSet
    validation: TrainingSet
    clip: Clip
    optimizer_card: OptimizerCard
    lr: float
    state: Path
    curves: CurveFile
    tracker: Tracker
    progress: Progress
    masks: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    lr_ratios: Mapping[str, float] = dataclasses.field(default_factory=dict)
    allocation: RankAllocation | None = None

    def __post_init__(self) -> None:
        o, self.model, self.dist = self.options, self.stepper.model, self.stepper.dist
        self.plan = partial(
            batches_from, self.train.lengths, batch_tokens=o.batch_tokens, seed=self.stepper.seed
        )
        self.epoch_ends = epoch_ends(
            self.train.lengths,
            batch_tokens=o.batch_tokens,
            seed=self.stepper.seed,
            epochs=o.epochs,
            max_steps=o.max_steps,
        )
        self.num_steps = self.epoch_ends[-1]
        self.counters = Counters(micro_tokens=self.stepper.micro_tokens)
        groups = parameter_groups(self.model, o.weight_decay)
        groups = with_own_rates(groups, self.model, lr=self.lr, ratios=self.lr_ratios)
        if self.allocation is not None:
            self.allocation.plan(self.num_steps)
        self.optimizer = self.optimizer_card.build(groups, self.lr)
        self.schedule = schedule_of(
            o.schedule, self.optimizer, num_steps=self.num_steps, warmup_ratio=o.warmup_ratio
        )
        self.checkpoints = CheckpointManager(
            self.state, self.dist, self.stepper.device, self.progress.warn, stage=o.word
        )
        self.spike = o.spike
        self.goes_back = o.spike is not None and o.spike.rollback is not None
        self.average = Average(o.ema, self.trainable())
        self.best: dict[str, Tensor] = {}
        # Steps that are not finite change nothing: what is saved is the state after the last other.
        self.good = self.counters.copy(), self.best

    def run(self) -> Counters:
        """Train to the end, or raise PreemptedError or DivergedError with the state saved."""
        with signals.watched():
            self._resume()
            # Before hours of work: is there room for all that will be saved?
            each = getattr(self.optimizer_card, "state_bytes", OPTIMIZER_BYTES)
            each += AVERAGE_BYTES if self.options.ema else 0
            self.checkpoints.require_space(self.trainable(), each, best=self.options.keep_best)
            if self.stepper.sharded is None:
                self.dist.broadcast_(list(self.trainable().values()))
            self.average.start()
            try:
                self._train()
            except PreemptedError:
                saved = f"the state after step {self._save()} is saved."
                raise PreemptedError(f"{self.options.word}: asked to stop; {saved}") from None
            except LostError:
                note_micro_tokens(self.state, self.stepper.micro_tokens, rank=self.dist.rank)
                raise
        if self.best and self.counters.best_step != self.counters.step:
            self.load(self.best)
        else:
            self.average.publish()
        return self.counters

    def state_dict(self) -> TrainingState:
        """What a resumed training needs: the state after the last finite step."""
        is_good = not self.counters.nonfinite_in_row
        counters, best = (self.counters, self.best) if is_good else self.good
        counters.micro_tokens = self.stepper.micro_tokens
        optimizer, numbers = optimizer_state_dict(self.optimizer)
        reduction, sent = self.stepper.reduction.state_dict()
        groups: dict[str, Mapping[str, Tensor]] = {
            "trainable": self.trainable(),
            "optimizer": optimizer,
            "best": best,
            "reduction": reduction,
        }
        facts = {
            "counters": dataclasses.asdict(counters),
            "optimizer": numbers,
            "schedule": self.schedule.state_dict(),
            "reduction": sent,
            "threads": torch.get_num_threads(),
            "ranks": None,
            "world_size": self.dist.world_size,
        }
        if self.allocation is not None:
            groups["allocation"], facts["ranks"] = self.allocation.state_dict()
        if self.options.ema is not None:
            groups["average"] = self.average.state_dict()
        sharded = self.stepper.sharded
        return TrainingState(facts, groups if sharded is None else sharded.as_saved(groups))

    def load_state_dict(self, state: TrainingState) -> None:
        """Continue, in place, where `state` left off."""
        counters = self.counters = Counters(**state.facts["counters"])
        self.stepper.micro_tokens = counters.micro_tokens
        parameters = self.trainable()
        self.best = {n: _copy(placed(t, parameters[n])) for n, t in state.tensors["best"].items()}
        self.good = counters.copy(), self.best
        self._load_weights(state)
        self.schedule.load_state_dict(state.facts["schedule"])
        if state.facts["world_size"] == self.dist.world_size:
            # Sums differ in their last bits between thread counts.
            torch.set_num_threads(state.facts["threads"])

    def _load_weights(self, state: TrainingState) -> None:
        """Weights, optimizer, ranks and error feedback as they were; counters and schedule go on."""
        facts, tensors, reduction = state.facts, state.tensors, self.stepper.reduction
        self.load(tensors["trainable"])
        if self.allocation is not None:
            self.allocation.load_state_dict(tensors["allocation"], facts["ranks"])
        if self.options.ema is not None:
            self.average.load_state_dict(tensors["average"])
        load_optimizer_state_dict(self.optimizer, tensors["optimizer"], facts["optimizer"])
        sent = max(reduction.bytes_sent, facts["reduction"]["bytes_sent"])
        numbers = {**facts["reduction"], "bytes_sent": sent}
        reduction.load_state_dict(tensors["reduction"], numbers, device=self.stepper.device)

    def _save(self) -> int:
        """Write `state_dict`; returns its step. Raises DivergedError where a number is not finite."""
        state = self.state_dict()
        step, anchors = int(state.facts["counters"]["step"]), state.facts["counters"]["anchors"]
        needed = no_others if self.spike is None else partial(self.spike.needed, anchors)
        self.checkpoints.write(step, facts=state.facts, tensors=state.tensors, needed=needed)
        return step

    def _resume(self) -> None:
        """Load the newest sound state, where there is one."""
        saved = self.checkpoints.newest()
        if saved is not None:
            self.load_state_dict(saved)
            self.progress.info(f"resumed after step {self.counters.step}.")
        if self.dist.is_main:
            # A step whose evaluation was cut off reports its numbers once more.
            self.curves.rewind(self.counters.step - (self.counters.row is not None))
        noted = noted_micro_tokens(self.state) or self.stepper.micro_tokens
        self.stepper.micro_tokens = min(self.stepper.micro_tokens, noted)

    def _train(self) -> None:
        """Every step from here on; raises PreemptedError, on all ranks together, between two."""
        counters = self.counters
        if counters.validation_before is None and len(self.validation):
            counters.validation_before = self.stepper.validate(self.validation)
        if self.goes_back and not counters.step and not counters.anchors:
            counters.anchors.append(0)
            self._save()
        saved_at = time.monotonic()
        # Ranks must stop at the same step: the stepper asks all of them, the bar only this one.
        done = counters.step - (counters.row is not None)
        with self.progress.track("train", self.num_steps, done=done, polls=False) as bar:
            if counters.row is not None and self._conclude(bar):
                return
            for _, epoch, batch in self.plan(start=counters.step, stop=self._stop()):
                self._step(epoch, batch)
                if self._conclude(bar):
                    return
                if self._is_save_due(saved_at):
                    self._save()
                    saved_at = time.monotonic()

    def _stop(self) -> int:
        return self.counters.step if self.counters.finished else self.num_steps

    def _step(self, epoch: int, batch: list[int]) -> None:
        counters, started = self.counters, time.monotonic()
        loss = self.stepper.accumulate(self.train.at(epoch), batch, step=counters.step)
        mask_gradients(self.model, self.masks)
        if self.allocation is not None:
            self.allocation.regularise()
        rate = float(self.schedule.get_last_lr()[0])
        clipped = self.clip.apply(self.trainable(), counters.past_norms)
        is_finite = math.isfinite(loss) and math.isfinite(clipped.norm_before)
        is_spike = self.spike.sees(counters.recent, loss) if self.spike else False
        if is_spike and self.goes_back:
            assert self.spike is not None
            self._load_weights(state_before(self.spike, loss, counters, self.checkpoints))
        elif is_finite:
            self.optimizer.step()
            self.schedule.step()
            mask_weights(self.model, self.masks)
            self.average.update(counters.step + 1)
            if self.allocation is not None:
                self.allocation.allocate(counters.step + 1)
            if self.spike:
                counters.recent = [*counters.recent, loss][-self.spike.window :]
        self.optimizer.zero_grad()
        if epoch != counters.epoch:
            counters.epoch, counters.loss_sum, counters.loss_targets = epoch, 0.0, 0
        counters.step += 1
        counters.tokens += sum(self.train.lengths[i] for i in batch)
        counters.seconds += time.monotonic() - started
        counters.spikes += is_spike
        self._count(batch, loss, clipped, is_finite=is_finite)
        counters.row = {
            "loss": loss,
            "lr": rate,
            "grad_norm": clipped.norm_before,
            "clipped_share": clipped.clipped_share if is_finite else 0.0,
            "tokens": counters.tokens,
            "seconds": counters.seconds,
            **({} if clipped.threshold is None else {"clip_threshold": clipped.threshold}),
            **({"spike": is_spike} if self.spike else {}),
        }

    def _conclude(self, bar: Bar) -> bool:
        """Evaluate where it is due and tell the step's numbers; whether training ends here."""
        counters, row = self.counters, self.counters.row
        assert row is not None
        if self._is_evaluation_due():
            with self.average.in_place():
                row["validation_loss"] = self._evaluate()
        counters.row = None
        if self.dist.is_main:
            self.curves.log(counters.step, row)
            self.tracker.log(counters.step, row)
        bar.advance(1, loss=row["loss"], lr=row["lr"])
        self._stop_if_diverged()
        is_over = self._should_stop()
        if not counters.nonfinite_in_row:
            if self.spike and self.spike.is_anchor(counters.step):
                counters.anchors.append(counters.step)
            self.good = counters.copy(), self.best
        return is_over

    def _count(self, batch: list[int], loss: float, clipped: ClipResult, *, is_finite: bool) -> None:
        counters = self.counters
        if not is_finite:
            counters.nonfinite_steps += 1
            counters.nonfinite_in_row += 1
            return
        counters.nonfinite_in_row = 0
        counters.clipped_steps += clipped.clipped_share > 0
        counters.clipped_share_sum += clipped.clipped_share
        counters.clip_threshold = clipped.threshold
        if self.clip.window:
            counters.past_norms = [*counters.past_norms, clipped.norm_before][-self.clip.window :]
        targets = self.train.at(counters.epoch).targets
        num_targets = sum(targets[i] for i in batch)
        counters.loss_sum += loss * num_targets
        counters.loss_targets += num_targets

    def _stop_if_diverged(self) -> None:
        num, good = self.counters.nonfinite_in_row, self.good[0].step
        if num < self.options.max_nonfinite:
            return
        self._save()
        raise DivergedError(
            f"{self.options.word}: {num} steps in a row had a loss or gradient that is not finite; the state "
            f"after step {good} is kept; lower lr (now {self.lr:g}) or clip harder."
        )

    def _is_evaluation_due(self) -> bool:
        if not len(self.validation):
            return False
        step, every = self.counters.step, self.options.eval_every
        if step == self.num_steps:
            return True
        return step in self.epoch_ends if every is None else step % every == 0

    def _evaluate(self) -> float:
        loss, counters = self.stepper.validate(self.validation), self.counters
        if self.allocation is not None and not self.allocation.is_settled(counters.step):
            return loss  # of ranks that will not stay
        if math.isfinite(loss) and (counters.best_loss is None or loss < counters.best_loss):
            counters.best_loss, counters.best_step = loss, counters.step
            counters.evaluations_without_gain = 0
            if self.options.keep_best:
                self.best = {k: _copy(v) for k, v in self.trainable().items()}
        else:
            counters.evaluations_without_gain += 1
        return loss

    def _should_stop(self) -> bool:
        patience = self.options.patience
        stop = patience is not None and self.counters.evaluations_without_gain >= patience
        if stop and self.counters.step < self.num_steps:
            self.counters.finished = True
            self.progress.info(
                f"stopped early at step {self.counters.step}: validation loss has "
                f"not fallen {patience} times in a row."
            )
        return stop

    def _is_save_due(self, saved_at: float) -> bool:
        every = self.options.save_every
        by_step = every is not None and self.counters.step % every == 0
        is_anchor = self.counters.anchors[-1:] == [self.counters.step]
        by_time = self.dist.is_main and time.monotonic() - saved_at >= self.options.save_seconds
        return bool(self.dist.sum([by_step or is_anchor or by_time], self.stepper.device)[0])

    def trainable(self) -> dict[str, Parameter]:
        """What training changes, by name."""
        return {n: p for n, p in self.model.named_parameters() if p.requires_grad}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Give what training changes these values, in place."""
        parameters = self.trainable()
        assert tensors.keys() == parameters.keys(), tensors.keys() ^ parameters.keys()
        with torch.no_grad():
            for name, tensor in tensors.items():
                like = parameters[name]
                like.copy_(tensor if is_sharded(tensor) else placed(tensor, like))


def _copy(parameter: Tensor) -> Tensor:
    """A copy in main memory; a piece of a sharded one stays where it is."""
    value = parameter.detach()
    return value.clone() if is_sharded(value) else value.cpu().clone()
