"""NaN and Inf wherever they may come from: no step takes them up, no save is displaced by them."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from training_cases import model, training

from lcc.core.errors import DivergedError
from lcc.engine.generations import generations, load_state, newest_state, step_of
from lcc.engine.stepping import Stepper
from lcc.engine.training import Training

Amount = Callable[[int, int], int]
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


PLACES = {"batch": in_batch, "loss": in_loss, "gradient": in_gradient, "norm": in_norm}


@dataclass
class Watched:
    """A training, poisoned at some steps, whose every step and save is looked at."""

    run: Training
    place: str
    steps: set[int]
    dice: random.Random
    wrong: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.step, self.run._step = self.run._step, self._poisoned  # type: ignore[method-assign]
        write = self.run.generations.write
        look = partial(self._looked_at, write)
        object.__setattr__(self.run.generations, "write", look)  # frozen

    def _poisoned(self, epoch: int, batch: list[int]) -> None:
        number = self.run.counters.step + 1
        is_bad = number in self.steps
        before = self._numbers()
        value = self.dice.choice(VALUES)
        undo = PLACES[self.place](self.run.stepper, value, self.dice) if is_bad else lambda: None
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
        after = [step_of(path) for path in generations(self.run.state)]
        if self.run.counters.nonfinite_in_row and before and after != before:
            self.wrong.append(f"states {before} gave way to {after} in a row of bad steps")
        if self.steps & set(after):
            self.wrong.append(f"states {after} are of bad steps {self.steps}")
        saved = load_state(self.run.state / f"step-{after[0]:09d}")
        tensors = [*saved.tensors["trainable"].values(), *saved.tensors["optimizer"].values()]
        if not all(bool(t.isfinite().all()) for t in tensors):
            self.wrong.append(f"state {after[0]} is not finite")


@pytest.mark.parametrize("place", PLACES)
def test_no_poisoned_step_changes_or_displaces_anything(
    tmp_path: Path, place: str, amount: Amount, note: Callable[..., None]
) -> None:
    torch.set_num_threads(1)
    dice, num_done, wrong = random.Random(f"poison {place}"), 0, list[str]()
    while num_done < amount(75, 5):
        # Alone or several in a row, from the second step on: Adam has no moments before.
        first = dice.randint(2, 8)
        steps = {first + i for i in range(dice.randint(1, 4))}
        folder = tmp_path / str(num_done)
        run = training(folder, model(), save_every=1, epochs=3, max_steps=13, max_nonfinite=9,
                       eval_every=5)  # fmt: skip
        watched = Watched(run, place, steps, dice)
        counters = run.run()
        num_done += len(steps)
        wrong += watched.wrong
        if counters.nonfinite_steps != len(steps):
            wrong.append(f"{counters.nonfinite_steps} of {len(steps)} were counted")
    note(f"poisoned steps ({place})", injections=num_done, taken_up=len(wrong))
    assert wrong == []


def test_an_update_that_is_not_finite_is_found_at_the_next_save(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    run = training(tmp_path, model(), save_every=2)

    def overflow(*_: Any) -> None:
        if run.counters.step == 3:
            run.stepper.trainable[0].data[0] = math.inf

    run.optimizer.register_step_post_hook(overflow)
    with pytest.raises(DivergedError, match=r"is not finite after step 4; that state is not kept"):
        run.run()
    newest = newest_state(tmp_path / "state", pytest.fail)
    assert newest is not None and step_of(newest) == 2
