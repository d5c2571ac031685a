"""Loss spikes: seen against the median, undone by going back, the same after any interruption."""

from __future__ import annotations

import json
import math
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from training_cases import Signalling, model, training

from lcc.core.errors import DivergedError, PreemptedError
from lcc.training.checkpoint import generations, step_of
from lcc.training.loss_spikes import Spike
from lcc.training.trainer import Training

WATCH = Spike(factor=1.5, window=3, rollback=2)


def test_a_spike_is_a_loss_far_above_the_median_of_a_whole_window() -> None:
    spike = Spike(factor=2, window=3)
    assert spike.sees([1.0, 9.0, 1.2], 2.5)
    assert not spike.sees([1.0, 9.0, 1.2], 2.3)
    assert not spike.sees([1.0, 1.0], 50.0)
    assert spike.sees([50.0, 1.0, 1.0, 1.0], 2.5)
    assert not spike.sees([1.0, 1.0, 1.0], math.inf)


def test_the_way_back_is_long_enough_and_at_least_to_the_beginning() -> None:
    spike = Spike(rollback=10)
    assert spike.before([0, 10, 20, 30], 35) == [0, 10, 20]
    assert spike.before([0, 10], 5) == [0]
    assert spike.needed([0, 10, 20, 30], 34) == {20, 30}
    assert Spike().needed([0, 10], 34) == set()


def spiking(folder: Path, steps: set[int], **changes: Any) -> Training:
    """A training whose batches at `steps` (from 1) have five times the loss."""
    run = training(folder, model(dropout=0.1), **{"spike": WATCH, "save_every": 3, **changes})
    loss = run.stepper._loss
    run.stepper._loss = lambda batch: (  # type: ignore[method-assign]
        loss(batch) * (5 if run.counters.step + 1 in steps else 1)
    )
    return run


def rows(folder: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (folder / "curves.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in found]


def weights(run: Training) -> list[torch.Tensor]:
    return [p.detach().clone() for p in run.stepper.trainable]


def test_a_spike_takes_the_weights_back_and_its_batches_are_left_behind(tmp_path: Path) -> None:
    run = spiking(tmp_path, {7})
    seen: dict[int, list[torch.Tensor]] = {}
    step = run._step

    def watched(epoch: int, batch: list[int]) -> None:
        step(epoch, batch)
        seen[run.counters.step] = weights(run)

    run._step = watched  # type: ignore[method-assign]
    counters = run.run()
    assert (counters.spikes, counters.rollbacks) == (1, 1)
    assert all(torch.equal(a, b) for a, b in zip(seen[7], seen[4], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(seen[8], seen[7], strict=True))
    assert [row["step"] for row in rows(tmp_path)] == list(range(1, counters.step + 1))
    assert [row["step"] for row in rows(tmp_path) if row["spike"]] == [7]


def test_only_watching_changes_nothing(tmp_path: Path) -> None:
    watched = spiking(tmp_path / "a", {7}, spike=Spike(factor=1.5, window=3))
    blind = spiking(tmp_path / "b", {7}, spike=None)
    assert watched.run().spikes == 1
    blind.run()
    assert all(torch.equal(a, b) for a, b in zip(weights(watched), weights(blind), strict=True))


@pytest.mark.parametrize("stopped", [5, 7, 8, 9])
def test_a_training_with_spikes_goes_on_to_the_same_bytes(tmp_path: Path, stopped: int) -> None:
    with pytest.raises(PreemptedError):
        spiking(tmp_path / "a", {7, 10}, tracker=Signalling(stopped, signal.SIGTERM)).run()
    resumed, whole = spiking(tmp_path / "a", {7, 10}), spiking(tmp_path / "b", {7, 10})
    assert resumed.run().rollbacks == whole.run().rollbacks == 2
    assert all(torch.equal(a, b) for a, b in zip(weights(resumed), weights(whole), strict=True))
    assert rows(tmp_path / "a") == rows(tmp_path / "b")


def test_what_a_rollback_may_need_is_not_rotated_away(tmp_path: Path) -> None:
    run = spiking(tmp_path, set(), save_every=1, spike=Spike(window=3, rollback=4))
    run.run()
    last = run.counters.step
    kept = [step_of(path) for path in generations(tmp_path / "state")]
    assert kept[0] in (last - 1, last)
    assert max(step for step in kept if step <= kept[1] + 1 - 4) % 4 == 0


def test_too_many_rollbacks_stop_with_a_way_out(tmp_path: Path) -> None:
    watch = Spike(factor=1.5, window=3, rollback=2, max_rollbacks=1)
    with pytest.raises(DivergedError, match=r"1 rollbacks were enough; lower lr") as caught:
        spiking(tmp_path, {6, 8}, spike=watch).run()
    assert caught.value.exit_code == 7
