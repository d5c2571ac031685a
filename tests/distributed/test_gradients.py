"""Compressed sums: torch's hooks over one bucket, feedback that survives a stop, bytes counted."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from parallel_cases import STEPS, STOP, Together, rows_of
from training_cases import model

from lcc.distributed.dist import SINGLE, Dist, Distributed
from lcc.distributed.gradients import Bucket, Reduction
from lcc.distributed.state import open_tensors
from lcc.training.checkpoint import generations

NUM_WEIGHTS = sum(p.numel() for p in model().parameters())


def losses_of(together: Together, name: str) -> list[float]:
    return [row["loss"] for row in rows_of(together[0] / name)]


def test_a_bucket_shows_the_hooks_each_gradient_inside_the_flat_sum() -> None:
    flat = torch.arange(7.0)
    first, second = Bucket(flat, [(2, 3), (1,)]).gradients()
    first.zero_()
    assert flat.tolist() == [0, 0, 0, 0, 0, 0, 6]
    assert second.tolist() == [6]


def test_bfloat16_sums_are_rounded_once_for_each_process(together: Together) -> None:
    got, exact = losses_of(together, "bf16"), losses_of(together, "one-full")
    assert got[0] == pytest.approx(exact[0], abs=1e-5)  # before any gradient was sent
    assert got != pytest.approx(exact, abs=1e-5)
    assert got == pytest.approx(exact, rel=0.02)


def test_low_rank_sums_with_feedback_train_as_well(together: Together) -> None:
    got, exact = losses_of(together, "powersgd"), losses_of(together, "one-full")
    assert got[:3] == pytest.approx(exact[:3], abs=1e-5)  # powersgd_start is 2
    assert got != pytest.approx(exact, abs=1e-5)
    assert got[-1] == pytest.approx(exact[-1], rel=0.1)


def test_the_bytes_sent_are_counted(together: Together) -> None:
    steps = len(losses_of(together, "one-full"))
    sent = {
        name: json.loads((together[0] / name / "bytes.json").read_text())
        for name in ("one-full", "ddp-full", "bf16", "powersgd")
    }
    assert sent["one-full"] == 0
    assert sent["ddp-full"] == steps * 4 * NUM_WEIGHTS
    assert sent["bf16"] == sent["ddp-full"] // 2
    assert sent["powersgd"] < 0.8 * sent["ddp-full"]


@pytest.mark.parametrize("gradients", ["bf16", "powersgd"])
def test_compressed_training_goes_on_bit_for_bit(together: Together, gradients: str) -> None:
    _, found = together
    again, whole = (losses_of(together, name) for name in (f"{gradients}-again", gradients))
    assert again == whole
    for name, expected in found[gradients].items():
        assert torch.equal(found[f"{gradients}-again"][name], expected), name


def test_what_was_never_sent_is_not_lost_when_one_process_goes_on(together: Together) -> None:
    (state,) = generations(together[0] / "powersgd-to-one" / "state")
    errors = open_tensors(state)["reduction"]["error"]
    assert errors.shape == (2, NUM_WEIGHTS) and float(errors.abs().max()) > 0
    alone = Reduction(SINGLE, Distributed())
    alone.load_state_dict(open_tensors(state)["reduction"], {"bytes_sent": 7, "iteration": 3})
    parameters = [torch.nn.Parameter(torch.zeros(p.shape)) for p in model().parameters()]
    for _ in range(2):  # the second sum finds nothing left
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        alone.sum_(parameters)
        sums = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
        torch.testing.assert_close(sums, torch.ones(NUM_WEIGHTS) + errors.sum(0))
        errors = torch.zeros_like(errors)
    assert losses_of(together, "powersgd-to-one")[: STOP + 1] == pytest.approx(
        losses_of(together, "powersgd")[: STOP + 1], abs=1e-6
    )


def test_feedback_is_dealt_to_a_group_of_another_size() -> None:
    errors = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    facts = {"bytes_sent": 0, "iteration": 9}
    dealt = []
    for rank in range(3):
        chosen = Distributed(world_size=3, gradients="powersgd")
        reduction = Reduction(Dist(rank, 3), chosen)
        reduction.load_state_dict({"error": errors}, facts)
        dealt.append(reduction._power.error_dict[0])
    torch.testing.assert_close(sum(dealt), errors.sum(0))


def test_a_gradient_that_is_not_finite_leaves_no_feedback(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = Distributed(world_size=2, gradients="powersgd")
    reduction = Reduction(Dist(0, 2), chosen)
    summed: list[Any] = []
    monkeypatch.setattr(Dist, "sum", lambda self, values, device="cpu": list(values))
    monkeypatch.setattr(Dist, "sum_", lambda self, tensors: summed.extend(tensors))
    parameter = torch.nn.Parameter(torch.zeros(4, 4))
    parameter.grad = torch.full((4, 4), float("nan"))
    reduction.sum_([parameter])
    assert len(summed) == 1 and not reduction._power.error_dict


assert STOP < STEPS
