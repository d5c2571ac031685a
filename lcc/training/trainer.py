"""The training loop: for pretraining, fine-tuning, healing and distillation, on any device."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

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
    Groups,
    LoadedState,
    no_others,
    note_micro_tokens,
    noted_micro_tokens,
    optimizer_state,
    restore_optimizer,
)
from lcc.training.optim import (
    OPTIMIZER_BYTES,
    Clip,
    ClipResult,
    OptimizerCard,
    RankAllocation,
    parameter_groups,
    schedule_of,
    with_own_rates,
)
from lcc.training.options import AVERAGE_BYTES, Average, TrainingOptions, state_before
from lcc.training.step import Stepper

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter

# -----------------------------------------------------------------------------
# What of a training is saved, and how it is put back.


def save(training: Training) -> int:
    """The state after the last finite step, which is returned.

    Raises DivergedError where a number in it is not finite.
    """
    stepper = training.stepper
    is_good = not training.counters.nonfinite_in_row
    counters, best = (training.counters, training.best) if is_good else training.good
    counters.micro_tokens = stepper.micro_tokens
    tensors, optimizer = optimizer_state(training.optimizer)
    reduction, sent = stepper.reduction.state()
    allocation = training.allocation
    groups: Groups = {
        "trainable": training.trainable(),
        "optimizer": tensors,
        "best": best,
        "reduction": reduction,
        **({"allocation": allocation.tensors()} if allocation is not None else {}),
        **({"average": training.average.tensors} if training.options.ema else {}),
    }
    facts = {
        "counters": dataclasses.asdict(counters),
        "optimizer": optimizer,
        "schedule": training.schedule.state_dict(),
        "reduction": sent,
        "threads": torch.get_num_threads(),
        "ranks": allocation and allocation.pattern,
        "world_size": training.dist.world_size,
    }
    if stepper.sharded is not None:
        groups = stepper.sharded.as_saved(groups)
    spike = training.spike
    needed = no_others if spike is None else partial(spike.needed, counters.anchors)
    training.generations.write(counters.step, facts=facts, tensors=groups, needed=needed)
    return counters.step


def restore(training: Training) -> None:
    """Put `training`, in place, where its newest sound state left off."""
    saved = training.generations.newest()
    if saved is not None:
        _continue(training, saved)
    counters, stepper = training.counters, training.stepper
    if training.dist.is_main:
        # A step whose evaluation was cut off tells its numbers once more.
        training.curves.rewind(counters.step - (counters.row is not None))
    noted = noted_micro_tokens(training.state) or stepper.micro_tokens
    stepper.micro_tokens = min(stepper.micro_tokens, noted)


def _continue(training: Training, saved: LoadedState) -> None:
    facts = saved.facts
    counters = training.counters = Counters(**facts["counters"])
    training.stepper.micro_tokens = counters.micro_tokens
    parameters = training.trainable()
    training.best = {
        name: kept_copy(placed(tensor, parameters[name])) for name, tensor in saved.tensors["best"].items()
    }
    training.good = counters.copy(), training.best
    take_up(training, saved)
    training.schedule.load_state_dict(facts["schedule"])
    if facts["world_size"] == training.dist.world_size:
        # Sums differ in their last bits between thread counts.
        torch.set_num_threads(facts["threads"])
    training.progress.say(f"resumed after step {counters.step}.")


def take_up(training: Training, saved: LoadedState) -> None:
    """Weights, optimizer, ranks and error feedback as they were, in place."""
    facts, tensors, reduction = saved.facts, saved.tensors, training.stepper.reduction
    training.load(tensors["trainable"])
    if training.allocation is not None:
        training.allocation.restore(tensors["allocation"], facts["ranks"])
    if training.options.ema is not None:
        training.average.restore(tensors["average"])
    restore_optimizer(training.optimizer, tensors["optimizer"], facts["optimizer"])
    sent = max(reduction.bytes_sent, facts["reduction"]["bytes_sent"])
    facts_of_reduction = {**facts["reduction"], "bytes_sent": sent}
    reduction.restore(tensors["reduction"], facts_of_reduction, device=training.stepper.device)


def kept_copy(parameter: Tensor) -> Tensor:
    """A copy in main memory; a piece of a sharded one stays where it is."""
    value = parameter.detach()
    return value.clone() if is_sharded(value) else value.cpu().clone()


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
        self.generations = CheckpointManager(
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
            restore(self)
            # Before hours of work: is there room for all that will be saved?
            each = getattr(self.optimizer_card, "state_bytes", OPTIMIZER_BYTES)
            each += AVERAGE_BYTES if self.options.ema else 0
            self.generations.require_space(self.trainable(), each, best=self.options.keep_best)
            if self.stepper.sharded is None:
                self.dist.broadcast_(list(self.trainable().values()))
            self.average.start()
            try:
                self._train()
            except PreemptedError:
                saved = f"the state after step {save(self)} is saved."
                raise PreemptedError(f"{self.options.word}: asked to stop; {saved}") from None
            except LostError:
                note_micro_tokens(self.state, self.stepper.micro_tokens, rank=self.dist.rank)
                raise
        if self.best and self.counters.best_step != self.counters.step:
            self.load(self.best)
        else:
            self.average.publish()
        return self.counters

    def _train(self) -> None:
        """Every step from here on; raises PreemptedError, on all ranks together, between two."""
        counters = self.counters
        if counters.validation_before is None and len(self.validation):
            counters.validation_before = self.stepper.validate(self.validation)
        if self.goes_back and not counters.step and not counters.anchors:
            counters.anchors.append(0)
            save(self)
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
                    save(self)
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
            take_up(self, state_before(self.spike, loss, counters, self.generations))
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
        save(self)
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
                self.best = {k: kept_copy(v) for k, v in self.trainable().items()}
        else:
            counters.evaluations_without_gain += 1
        return loss

    def _should_stop(self) -> bool:
        patience = self.options.patience
        stop = patience is not None and self.counters.evaluations_without_gain >= patience
        if stop and self.counters.step < self.num_steps:
            self.counters.finished = True
            self.progress.say(
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
