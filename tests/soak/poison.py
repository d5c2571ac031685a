"""NaN and Inf put into a training wherever they may come from; every step and save looked at."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from lcc.training.checkpoint import generations, load_state, step_of
from lcc.training.step import Stepper
from lcc.training.trainer import Training

VALUES = (math.nan, math.inf, -math.inf)


def in_batch(stepper: Stepper, value: float, dice: random.Random) -> Callable[[], None]:
    """What the batch says: the states that the embedding makes of it."""
    embedding: Any = stepper.model.get_input_embeddings()  # type: ignore[operator]
    handle = embedding.register_forward_hook(lambda _m, _i, out: out * value)
    return handle.remove  # type: ignore[no-any-return]


def in_loss(stepper: Stepper, value: float, dice: random.Random) -> Callable[[], None]:
    """The loss itself, with its gradients."""
    original = stepper._loss
    stepper._loss = lambda batch: original(batch) * value  # type: ignore[method-assign]
    return lambda: setattr(stepper, "_loss", original)


def in_gradient(stepper: Stepper, value: float, dice: random.Random) -> Callable[[], None]:
    """One element of one gradient, under a loss that is finite."""
    chosen = dice.choice(stepper.trainable)
    at = dice.randrange(chosen.numel())

    def spoil(gradient: torch.Tensor) -> torch.Tensor:
        flat = gradient.reshape(-1).clone()
        flat[at] = value
        return flat.view_as(gradient)

    return chosen.register_hook(spoil).remove  # type: ignore[no-untyped-call, no-any-return]


def in_norm(stepper: Stepper, value: float, dice: random.Random) -> Callable[[], None]:
    """Gradients that are finite, every one, and whose norm is not."""
    chosen = dice.choice(stepper.trainable)
    return chosen.register_hook(lambda g: torch.full_like(g, 3e38)).remove  # type: ignore[no-untyped-call, no-any-return]


def in_own_sum(stepper: Stepper, value: float, dice: random.Random) -> Callable[[], None]:
    """What this process adds to the others' gradients, also where its share of a batch is empty."""
    original, chosen = stepper._backward, dice.choice(stepper.trainable)

    def spoilt(*args: Any) -> float:
        loss = original(*args)
        if chosen.grad is None:
            chosen.grad = torch.zeros_like(chosen)
        chosen.grad.view(-1)[dice.randrange(chosen.numel())] = value
        return loss

    stepper._backward = spoilt  # type: ignore[method-assign]
    return lambda: setattr(stepper, "_backward", original)


PLACES = {"batch": in_batch, "loss": in_loss, "gradient": in_gradient, "norm": in_norm, "own sum": in_own_sum}


@dataclass
class Watched:
    """A training, poisoned at some steps, whose every step and save is looked at."""

    run: Training
    place: str
    steps: set[int]
    dice: random.Random
    is_source: bool = True  # whether this very process spoils what it computes
    wrong: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.step, self.run._step = self.run._step, self._poisoned  # type: ignore[method-assign]
        write = self.run.checkpoints.write
        look = partial(self._looked_at, write)
        object.__setattr__(self.run.checkpoints, "write", look)  # frozen

    def _poisoned(self, epoch: int, batch: list[int]) -> None:
        number = self.run.counters.step + 1
        is_bad, spoils = number in self.steps, number in self.steps and self.is_source
        before = self._numbers()
        value = self.dice.choice(VALUES)
        undo = PLACES[self.place](self.run.stepper, value, self.dice) if spoils else lambda: None
        self.step(epoch, batch)
        undo()
        is_same = all(torch.equal(a, b) for a, b in zip(before, self._numbers(), strict=True))
        if is_same != is_bad:
            self.wrong.append(f"step {number}: {'changed' if is_bad else 'did not change'}")

    def _numbers(self) -> list[torch.Tensor]:
        state = self.run.optimizer.state
        moments = [state[p].get("exp_avg") for p in self.run.stepper.trainable]
        kept = [torch.zeros(1) if m is None else m.clone() for m in moments]
        return [*(p.detach().clone() for p in self.run.stepper.trainable), *kept]

    def _looked_at(self, write: Any, *args: Any, **kwargs: Any) -> None:
        before = [step_of(path) for path in generations(self.run.state)]
        write(*args, **kwargs)
        if not self.run.dist.is_main:
            return  # the others are on their way to the next save
        after = [step_of(path) for path in generations(self.run.state)]
        if self.run.counters.nonfinite_in_row and before and after != before:
            self.wrong.append(f"states {before} gave way to {after} in a row of bad steps")
        if self.steps & set(after):
            self.wrong.append(f"states {after} are of bad steps {self.steps}")
        saved = load_state(self.run.state / f"step-{after[0]:09d}")
        tensors = [*saved.tensors["trainable"].values(), *saved.tensors["optimizer"].values()]
        if not all(bool(t.isfinite().all()) for t in tensors):
            self.wrong.append(f"state {after[0]} is not finite")
