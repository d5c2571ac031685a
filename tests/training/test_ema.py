"""The average is evaluated and published; the raw weights train on as if it were not there."""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from training_cases import Signalling, model, stepper, training

from lcc.core.errors import PreemptedError
from lcc.training.ema import EMA


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


class Watching:
    """A tracker that keeps the model's weights after every step."""

    def __init__(self, trained: Any) -> None:
        self.trained = trained
        self.weights = [self.now()]

    def now(self) -> dict[str, torch.Tensor]:
        return {n: p.detach().clone() for n, p in self.trained.named_parameters()}

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        self.weights.append(self.now())

    def close(self) -> None: ...


def rows_of(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "curves.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


def test_the_published_weights_are_the_average_of_all_steps(tmp_path: Path) -> None:
    trained = model()
    tracker = Watching(trained)
    run = training(tmp_path, trained, tracker=tracker, ema=EMA(decay=0.5), max_steps=8, eval_every=8)
    run.run()
    expected = tracker.weights[0]
    for step, weights in enumerate(tracker.weights[1:], 1):
        decay = min(0.5, (1 + step) / (10 + step))
        expected = {n: decay * e + (1 - decay) * weights[n] for n, e in expected.items()}
    for name, parameter in trained.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name], atol=1e-6, rtol=1e-5)
    validated = stepper(trained).validate(run.validation)
    assert rows_of(tmp_path)[-1]["validation_loss"] == pytest.approx(validated, abs=1e-6)


def test_raw_weights_train_on_as_without_an_average(tmp_path: Path) -> None:
    training(tmp_path / "with", model(), ema=EMA(), eval_every=3).run()
    training(tmp_path / "without", model(), eval_every=3).run()
    losses = [[row["loss"] for row in rows_of(tmp_path / name)] for name in ("with", "without")]
    assert losses[0] == losses[1]


def test_the_best_average_is_published_and_not_the_last(tmp_path: Path) -> None:
    trained = model()
    run = training(tmp_path, trained, ema=EMA(), eval_every=1, schedule="constant", epochs=12)
    counters = run.run()
    losses = [row["validation_loss"] for row in rows_of(tmp_path)]
    assert counters.best_step == losses.index(min(losses)) + 1 < len(losses)
    assert stepper(trained).validate(run.validation) == pytest.approx(min(losses), abs=1e-6)


def test_an_average_continues_bit_for_bit(tmp_path: Path) -> None:
    options: dict[str, Any] = {"ema": EMA(decay=0.9), "eval_every": 3}
    stopped, whole, resumed = (model() for _ in range(3))
    with pytest.raises(PreemptedError):
        tracker = Signalling(4, signal.SIGTERM)
        training(tmp_path / "a", stopped, tracker=tracker, **options).run()
    training(tmp_path / "a", resumed, **options).run()
    training(tmp_path / "b", whole, **options).run()
    for name, expected in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], expected), name
    assert rows_of(tmp_path / "a") == rows_of(tmp_path / "b")
