"""The training loop: for pretraining, fine-tuning, healing and distillation, on any device."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lcc.core.errors import DivergedError, LostError, PreemptedError
from lcc.core.lazy import torch
from lcc.core.progress import Bar, Progress
from lcc.core.tracking import CurveFile, Tracker
from lcc.engine.batching import batches_from, epoch_ends
from lcc.engine.optimization import (
    Clip,
    ClipResult,
    OptimizerCard,
    parameter_groups,
    schedule_of,
    with_own_rates,
)
from lcc.engine.options import TrainingOptions
from lcc.engine.rank_allocation import RankAllocation
from lcc.engine.resume import (
    Counters,
    Interruption,
    Saved,
    note_micro_tokens,
    noted_micro_tokens,
    optimizer_state,
    read_state,
    restore_optimizer,
    watched,
    write_state,
)
from lcc.engine.sparse_training import mask_gradients, mask_weights
from lcc.engine.stepping import Examples, Stepper
from lcc.engine.storing import is_sharded, placed

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter


@dataclass
class Training:
    """One training: a model's trainable parameters are changed in place by `run`."""

    options: TrainingOptions
    stepper: Stepper
    train: Examples
    validation: Examples
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
            self.train.lengths, batch_tokens=o.batch_tokens, seed=self.stepper.seed,
            epochs=o.epochs, max_steps=o.max_steps,
        )  # fmt: skip
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
        self.best: dict[str, Tensor] = {}

    def run(self) -> Counters:
        """Train to the end, or raise PreemptedError or DivergedError with the state saved."""
        self._restore()
        if self.stepper.sharded is None:
            self.dist.broadcast_(list(self._trainable().values()))
        try:
            return self._run()
        except LostError:
            note_micro_tokens(self.state, self.stepper.micro_tokens, rank=self.dist.rank)
            raise

    def _run(self) -> Counters:
        counters = self.counters
        if counters.validation_before is None and len(self.validation):
            counters.validation_before = self.stepper.validate(self.validation)
        saved_at = time.monotonic()
        with (
            watched() as interruption,
            self.progress.track("train", self.num_steps, done=counters.step) as bar,
        ):
            for _, epoch, batch in self.plan(start=counters.step, stop=self._stop()):
                self._step(epoch, batch, bar)
                if self._should_stop():
                    break
                if self._is_save_due(saved_at, interruption):
                    self._save()
                    saved_at = time.monotonic()
        if self.best and counters.best_step != counters.step:
            self._load(self.best)
        return counters

    def _stop(self) -> int:
        return self.counters.step if self.counters.finished else self.num_steps

    def _step(self, epoch: int, batch: list[int], bar: Bar) -> None:
        counters, started = self.counters, time.monotonic()
        loss = self.stepper.accumulate(self.train, batch, step=counters.step)
        mask_gradients(self.model, self.masks)
        if self.allocation is not None:
            self.allocation.regularise()
        rate = float(self.schedule.get_last_lr()[0])
        found = self.clip.apply(self._trainable(), counters.past_norms)
        is_finite = math.isfinite(loss) and math.isfinite(found.norm_before)
        if is_finite:
            self.optimizer.step()
            self.schedule.step()
            mask_weights(self.model, self.masks)
            if self.allocation is not None:
                self.allocation.allocate(counters.step + 1)
        self.optimizer.zero_grad()
        if epoch != counters.epoch:
            counters.epoch, counters.loss_sum, counters.loss_targets = epoch, 0.0, 0
        counters.step += 1
        counters.tokens += sum(self.train.lengths[i] for i in batch)
        counters.seconds += time.monotonic() - started
        self._count(batch, loss, found, is_finite=is_finite)
        row = {"loss": loss, "lr": rate, "grad_norm": found.norm_before,
               "clipped_share": found.clipped_share if is_finite else 0.0,
               "tokens": counters.tokens, "seconds": counters.seconds}  # fmt: skip
        if found.threshold is not None:
            row["clip_threshold"] = found.threshold
        if self._is_evaluation_due():
            row["validation_loss"] = self._evaluate()
        if self.dist.is_main:
            self.curves.log(counters.step, row)
            self.tracker.log(counters.step, row)
        bar.advance(1, loss=loss, lr=rate)
        self._stop_if_diverged()

    def _count(self, batch: list[int], loss: float, found: ClipResult, *, is_finite: bool) -> None:
        counters = self.counters
        if not is_finite:
            counters.nonfinite_steps += 1
            counters.nonfinite_in_row += 1
            return
        counters.nonfinite_in_row = 0
        counters.clipped_steps += found.clipped_share > 0
        counters.clipped_share_sum += found.clipped_share
        counters.clip_threshold = found.threshold
        if self.clip.window:
            counters.past_norms = [*counters.past_norms, found.norm_before][-self.clip.window :]
        num_targets = sum(self.train.targets[i] for i in batch)
        counters.loss_sum += loss * num_targets
        counters.loss_targets += num_targets

    def _stop_if_diverged(self) -> None:
        counters = self.counters
        if counters.nonfinite_in_row < self.options.max_nonfinite:
            return
        num, good = counters.nonfinite_in_row, counters.step - counters.nonfinite_in_row
        # Skipped steps changed nothing: what is in memory is the state after the last good step.
        counters.step, counters.nonfinite_in_row = good, 0
        self._save()
        raise DivergedError(
            f"finetune: {num} steps in a row had a loss or gradient that is not finite; the state "
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
                self.best = {k: _kept(v) for k, v in self._trainable().items()}
        else:
            counters.evaluations_without_gain += 1
        return loss

    def _should_stop(self) -> bool:
        patience = self.options.patience
        stop = patience is not None and self.counters.evaluations_without_gain >= patience
        if stop and self.counters.step < self.num_steps:
            self.counters.finished = True
            self.progress.say(f"stopped early at step {self.counters.step}: validation loss has "
                              f"not fallen {patience} times in a row.")  # fmt: skip
        return stop

    def _is_save_due(self, saved_at: float, interruption: Interruption) -> bool:
        every = self.options.save_every
        by_step = every is not None and self.counters.step % every == 0
        by_time = self.dist.is_main and time.monotonic() - saved_at >= self.options.save_seconds
        stop, timed = self.dist.sum([interruption.requested, by_time], self.stepper.device)
        if stop:
            self._save()
            raise PreemptedError("finetune: asked to stop; the state after step "
                                 f"{self.counters.step} is saved.")  # fmt: skip
        return by_step or bool(timed)

    def _trainable(self) -> dict[str, Parameter]:
        return {n: p for n, p in self.model.named_parameters() if p.requires_grad}

    def _load(self, tensors: Mapping[str, Tensor]) -> None:
        parameters = self._trainable()
        assert tensors.keys() == parameters.keys(), tensors.keys() ^ parameters.keys()
        with torch.no_grad():
            for name, tensor in tensors.items():
                like = parameters[name]
                like.copy_(tensor if is_sharded(tensor) else placed(tensor, like))

    def _save(self) -> None:
        self.counters.micro_tokens = self.stepper.micro_tokens
        tensors, optimizer = optimizer_state(self.optimizer)
        reduction, sent = self.stepper.reduction.state()
        groups: Mapping[str, Mapping[str, Tensor]] = {
            "trainable": self._trainable(), "optimizer": tensors, "best": self.best,
            "reduction": reduction,
            **({"allocation": self.allocation.tensors()} if self.allocation is not None else {}),
        }  # fmt: skip
        facts = {"counters": dataclasses.asdict(self.counters), "optimizer": optimizer,
                 "schedule": self.schedule.state_dict(), "reduction": sent,
                 "threads": torch.get_num_threads(),
                 "ranks": self.allocation and self.allocation.pattern,
                 "world_size": self.dist.world_size}  # fmt: skip
        if self.stepper.sharded is not None:
            groups = self.stepper.sharded.as_saved(groups)
        write_state(self.state, self.counters.step, facts=facts, tensors=groups, dist=self.dist)

    def _restore(self) -> None:
        saved = read_state(self.state, self.dist)
        if saved is not None:
            self._continue(saved)
        if self.dist.is_main:
            self.curves.rewind(self.counters.step)
        noted = noted_micro_tokens(self.state) or self.stepper.micro_tokens
        self.stepper.micro_tokens = min(self.stepper.micro_tokens, noted)

    def _continue(self, saved: Saved) -> None:
        facts: dict[str, Any] = saved.facts
        self.counters = Counters(**facts["counters"])
        self.stepper.micro_tokens = self.counters.micro_tokens
        self._load(saved.tensors["trainable"])
        parameters = self._trainable()
        self.best = {name: _kept(placed(tensor, parameters[name]))
                     for name, tensor in saved.tensors["best"].items()}  # fmt: skip
        if self.allocation is not None:
            self.allocation.restore(saved.tensors["allocation"], facts["ranks"])
        restore_optimizer(self.optimizer, saved.tensors["optimizer"], facts["optimizer"])
        self.schedule.load_state_dict(facts["schedule"])
        self.stepper.reduction.restore(
            saved.tensors["reduction"], facts["reduction"], device=self.stepper.device
        )
        if facts["world_size"] == self.dist.world_size:
            # Sums differ in their last bits between thread counts.
            torch.set_num_threads(facts["threads"])
        self.progress.say(f"resumed after step {self.counters.step}.")


def _kept(parameter: Tensor) -> Tensor:
    """A copy in main memory; a piece of a sharded one stays where it is."""
    value = parameter.detach()
    return value.clone() if is_sharded(value) else value.cpu().clone()
