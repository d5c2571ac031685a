"""No step takes up NaN or Inf, and no save is displaced by them, wherever they come from."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from poison import PLACES, Watched
from training_cases import model, training

from lcc.core.errors import DivergedError
from lcc.training.checkpoint import newest_state, step_of

Amount = Callable[[int, int], int]


@pytest.mark.parametrize("place", PLACES)
def test_no_poisoned_step_changes_or_displaces_anything(
    tmp_path: Path, place: str, amount: Amount, note: Callable[..., None]
) -> None:
    torch.set_num_threads(1)
    dice, num_done, wrong = random.Random(f"poison {place}"), 0, list[str]()
    while num_done < amount(60, 5):
        # Alone or several in a row, from the second step on: Adam has no moments before.
        first = dice.randint(2, 8)
        steps = {first + i for i in range(dice.randint(1, 4))}
        folder = tmp_path / str(num_done)
        run = training(folder, model(), save_every=1, epochs=3, max_steps=13, max_nonfinite=9, eval_every=5)
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
