"""The loop: one large batch's numbers, whatever is split, killed, short of memory or not finite."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import training_cases as cases
from parallel_cases import Hungry
from training_cases import Signalling, dropout_run, examples, model, stepper, training

from lcc.config.cards import find_card, names
from lcc.core.errors import DivergedError, PreemptedError, ResourceError
from lcc.methods.clipping.none import NONE
from lcc.methods.clipping.norm import Norm
from lcc.methods.clipping.quantile import Quantile
from lcc.methods.clipping.value import Value
from lcc.methods.trackers.none import NoneTracker
from lcc.training.checkpoint import read_state
from lcc.training.ema import EMA


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "curves.jsonl").read_text().splitlines()]


def untimed(folder: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows_of(folder)]


def gradients(trained: Any) -> list[torch.Tensor]:
    return [p.grad.clone() for p in trained.parameters()]


@pytest.mark.parametrize("micro_tokens", [1, 20, 48])
def test_micro_batches_give_one_large_batchs_gradient(micro_tokens: int) -> None:
    trained, data = model().double(), examples(16)
    whole = stepper(trained, micro_tokens=10_000).accumulate(data, range(16), step=0)
    expected = gradients(trained)
    split = stepper(trained, micro_tokens=micro_tokens).accumulate(data, range(16), step=0)
    assert split == pytest.approx(whole, abs=1e-9)
    for got, wanted in zip(gradients(trained), expected, strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-9, rtol=0)


def test_the_loss_is_the_models_own_mean_over_all_targets() -> None:
    trained, data = model(), examples(8)
    loss = stepper(trained, micro_tokens=20).accumulate(data, range(8), step=0)
    total = 0.0
    for row in data.rows:
        ids, labels = torch.tensor([row.input_ids]), torch.tensor([row.labels])
        with torch.no_grad():
            logits = trained(input_ids=ids).logits[0, :-1]
        total += float(torch.nn.functional.cross_entropy(logits, labels[0, 1:], reduction="sum"))
    assert loss == pytest.approx(total / sum(data.targets), abs=1e-6)


def test_a_killed_run_continues_to_the_same_bytes(tmp_path: Path) -> None:
    # Step 7 lies between a save and an evaluation.
    command = [sys.executable, cases.__file__, str(tmp_path / "killed"), "7"]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert read_state(tmp_path / "killed" / "state", pytest.fail) is not None
    resumed = dropout_run(tmp_path / "killed", NoneTracker())
    whole = dropout_run(tmp_path / "whole", NoneTracker())
    for name, expected in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], expected), name
    assert untimed(tmp_path / "killed") == untimed(tmp_path / "whole")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_request_to_stop_saves_the_state_and_says_so(tmp_path: Path, number: int) -> None:
    with pytest.raises(PreemptedError, match="after step 4"):
        training(tmp_path, model(), tracker=Signalling(4, number)).run()
    saved = read_state(tmp_path / "state", pytest.fail)
    assert saved is not None and saved.facts["counters"]["step"] == 4


def test_a_state_that_another_training_loads_is_its_own(tmp_path: Path) -> None:
    one, other = (training(tmp_path / name, model(dropout=0.2), ema=EMA()) for name in "ab")
    one.run()
    state = one.state_dict()
    other.load_state_dict(state)
    again = other.state_dict()
    assert again.facts == state.facts and again.tensors.keys() == state.tensors.keys()
    for group, tensors in state.tensors.items():
        assert tensors.keys() == again.tensors[group].keys()
        for name, tensor in tensors.items():
            assert torch.equal(again.tensors[group][name], tensor), name


def ask_in_evaluation(trained: Any) -> None:
    """Ask this very process to stop in the middle of the first evaluation after training began."""
    seen: list[str] = []

    def look(module: torch.nn.Module, _inputs: Any) -> None:
        seen.append("train" if module.training else "evaluate")
        if seen[-2:] == ["train", "evaluate"] and seen.count("ask") == 0:
            seen.append("ask")
            signal.raise_signal(signal.SIGUSR1)

    trained.model.layers[0].mlp.register_forward_pre_hook(look)


def test_an_evaluation_is_broken_off_and_made_up_for(tmp_path: Path) -> None:
    asked, resumed, whole = model(), model(), model()
    ask_in_evaluation(asked)
    with pytest.raises(PreemptedError, match="after step 4"):
        training(tmp_path / "a", asked, eval_every=4).run()
    assert [row["step"] for row in rows_of(tmp_path / "a")] == [1, 2, 3]
    training(tmp_path / "a", resumed, eval_every=4).run()
    training(tmp_path / "b", whole, eval_every=4).run()
    assert untimed(tmp_path / "a") == untimed(tmp_path / "b")
    for name, expected in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], expected), name


@pytest.mark.parametrize("name", names("optimizers"))
def test_every_optimizer_continues_bit_for_bit(tmp_path: Path, name: str) -> None:
    optimizer = find_card("optimizers", name)()
    stopped, whole, resumed = (model(width=64) for _ in range(3))
    stop = Signalling(4, signal.SIGTERM)
    with pytest.raises(PreemptedError):
        training(tmp_path / "a", stopped, optimizer=optimizer, tracker=stop).run()
    training(tmp_path / "a", resumed, optimizer=optimizer).run()
    training(tmp_path / "b", whole, optimizer=optimizer).run()
    for name, expected in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], expected), name


def test_a_running_quantile_continues_bit_for_bit(tmp_path: Path) -> None:
    clip = Quantile(quantile=0.3, window=5)
    with pytest.raises(PreemptedError):
        stop = Signalling(7, signal.SIGTERM)
        training(tmp_path / "a", model(), clip=clip, tracker=stop).run()
    resumed = training(tmp_path / "a", model(), clip=clip)
    assert resumed.run().past_norms == training(tmp_path / "b", model(), clip=clip).run().past_norms
    assert untimed(tmp_path / "a") == untimed(tmp_path / "b")
    assert len({row["clip_threshold"] for row in rows_of(tmp_path / "a")}) > 7


def test_too_little_memory_halves_the_micro_batch(tmp_path: Path) -> None:
    trained = model()
    plain = model()
    trained.model.layers[1].mlp = Hungry(trained.model.layers[1].mlp, limit=30)
    hungry = training(tmp_path / "hungry", trained, max_steps=3)
    hungry.run()
    training(tmp_path / "plain", plain, max_steps=3).run()
    assert hungry.stepper.micro_tokens <= 30
    losses = [[r["loss"] for r in rows_of(tmp_path / name)] for name in ("hungry", "plain")]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_no_memory_for_a_single_example_is_said(tmp_path: Path) -> None:
    trained = model()
    trained.model.layers[1].mlp = Hungry(trained.model.layers[1].mlp, limit=5)
    with pytest.raises(ResourceError, match=r"single example of .* tokens; lower max_length"):
        training(tmp_path, trained, max_steps=3).run()


class Poisoned(torch.nn.Module):
    """Gives NaN in the chosen training forwards."""

    def __init__(self, inner: torch.nn.Module, calls: set[int]) -> None:
        super().__init__()
        self.inner, self.calls, self.seen = inner, calls, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen += self.training
        return self.inner(x) * (float("nan") if self.training and self.seen in self.calls else 1)


def test_a_nan_never_reaches_the_weights(tmp_path: Path) -> None:
    trained = model()
    trained.model.layers[0].mlp = Poisoned(trained.model.layers[0].mlp, {2, 7})
    counters = training(tmp_path, trained, clip=Quantile()).run()
    assert counters.nonfinite_steps == 2
    assert [row["clipped_share"] for row in rows_of(tmp_path) if row["loss"] is None] == [0.0, 0.0]
    assert all(math.isfinite(norm) for norm in counters.past_norms)
    assert all(bool(p.isfinite().all()) for p in trained.parameters())


def test_too_many_nans_in_a_row_stop_with_the_last_good_state(tmp_path: Path) -> None:
    trained = model()
    trained.model.layers[0].mlp = Poisoned(trained.model.layers[0].mlp, set(range(9, 999)))
    with pytest.raises(DivergedError, match="3 steps in a row") as caught:
        training(tmp_path, trained, max_nonfinite=3).run()
    assert caught.value.exit_code == 7
    saved = read_state(tmp_path / "state", pytest.fail)
    assert saved is not None
    good = saved.facts["counters"]["step"]
    assert good >= 1 and f"after step {good} is kept" in str(caught.value)
    assert all(bool(t.isfinite().all()) for t in saved.tensors["trainable"].values())


def test_the_best_weights_are_kept(tmp_path: Path) -> None:
    trained = model()
    run = training(tmp_path, trained, eval_every=1, schedule="constant", epochs=8)
    counters = run.run()
    losses = [row["validation_loss"] for row in rows_of(tmp_path)]
    assert counters.best_step == losses.index(min(losses)) + 1 < len(losses)
    assert run.stepper.validate(run.validation) == pytest.approx(min(losses), abs=1e-6)


def test_training_stops_when_validation_stops_gaining(tmp_path: Path) -> None:
    counters = training(tmp_path, model(), eval_every=1, patience=2, epochs=20).run()
    assert counters.best_step == counters.step - 2


class Recording(NoneTracker):
    """Keeps what it is sent."""

    def __init__(self) -> None:
        self.rows: list[Any] = []

    def log(self, step: int, values: Any) -> None:
        self.rows.append(values)


def test_the_tracker_sees_threshold_norm_and_clipped_share(tmp_path: Path) -> None:
    tracker = Recording()
    training(tmp_path, model(), tracker=tracker, clip=Norm(max_norm=0.5), max_steps=4).run()
    clipped = [float(row["grad_norm"] > 0.5) for row in tracker.rows]
    assert [row["clipped_share"] for row in tracker.rows] == clipped and sum(clipped) > 0
    assert [row["clip_threshold"] for row in tracker.rows] == [0.5] * 4


@pytest.mark.parametrize("clip", [Norm(max_norm=0.1), Value(max_value=1e-3), NONE()])
def test_clipping_reports_what_it_found(clip: Any) -> None:
    trained, data = model(), examples(8)
    stepper(trained).accumulate(data, range(8), step=0)
    parameters = list(trained.parameters())
    flat = torch.cat([p.grad.flatten() for p in parameters])
    found = clip.apply(dict(trained.named_parameters()), ())
    after = torch.cat([p.grad.flatten() for p in parameters])
    assert found.norm_before == pytest.approx(float(flat.norm()), rel=1e-5)
    assert (found.clipped_share > 0) == (not isinstance(clip, NONE))
    if isinstance(clip, Norm):
        assert float(after.norm()) == pytest.approx(0.1, rel=1e-3)
    if isinstance(clip, Value):
        assert float(after.abs().max()) <= 1.0001e-3
