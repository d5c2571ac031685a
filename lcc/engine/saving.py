"""What of a training is saved, and how it is put back."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import TYPE_CHECKING

from lcc.core.lazy import torch
from lcc.engine.generations import Groups, Saved, no_others
from lcc.engine.resume import Counters, noted_micro_tokens, optimizer_state, restore_optimizer
from lcc.engine.storing import is_sharded, placed

if TYPE_CHECKING:
    from torch import Tensor

    from lcc.engine.training import Training


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
        "trainable": training.trainable(), "optimizer": tensors, "best": best,
        "reduction": reduction,
        **({"allocation": allocation.tensors()} if allocation is not None else {}),
        **({"average": training.average.tensors} if training.options.ema else {}),
    }  # fmt: skip
    facts = {"counters": dataclasses.asdict(counters), "optimizer": optimizer,
             "schedule": training.schedule.state_dict(), "reduction": sent,
             "threads": torch.get_num_threads(), "ranks": allocation and allocation.pattern,
             "world_size": training.dist.world_size}  # fmt: skip
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


def _continue(training: Training, saved: Saved) -> None:
    facts = saved.facts
    counters = training.counters = Counters(**facts["counters"])
    training.stepper.micro_tokens = counters.micro_tokens
    parameters = training.trainable()
    training.best = {name: kept_copy(placed(tensor, parameters[name]))
                     for name, tensor in saved.tensors["best"].items()}  # fmt: skip
    training.good = counters.copy(), training.best
    take_up(training, saved)
    training.schedule.load_state_dict(facts["schedule"])
    if facts["world_size"] == training.dist.world_size:
        # Sums differ in their last bits between thread counts.
        torch.set_num_threads(facts["threads"])
    training.progress.say(f"resumed after step {counters.step}.")


def take_up(training: Training, saved: Saved) -> None:
    """Weights, optimizer, ranks and error feedback as they were, in place."""
    facts, tensors, reduction = saved.facts, saved.tensors, training.stepper.reduction
    training.load(tensors["trainable"])
    if training.allocation is not None:
        training.allocation.restore(tensors["allocation"], facts["ranks"])
    if training.options.ema is not None:
        training.average.restore(tensors["average"])
    restore_optimizer(training.optimizer, tensors["optimizer"], facts["optimizer"])
    sent = max(reduction.bytes_sent, facts["reduction"]["bytes_sent"])
    told = {**facts["reduction"], "bytes_sent": sent}
    reduction.restore(tensors["reduction"], told, device=training.stepper.device)


def kept_copy(parameter: Tensor) -> Tensor:
    """A copy in main memory; a piece of a sharded one stays where it is."""
    value = parameter.detach()
    return value.clone() if is_sharded(value) else value.cpu().clone()
