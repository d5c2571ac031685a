"""Compiled blocks give the eager model's numbers, and stay compiled only while training."""

from __future__ import annotations

import pytest
import torch
from training_cases import examples, model, stepper

from lcc.models.blocks import blocks, compiled_blocks
from lcc.training.packing import allow_packing


@pytest.mark.slow
@pytest.mark.parametrize("packing", [False, True])
def test_compiled_blocks_give_the_eager_loss_and_gradients(packing: bool) -> None:
    trained, data = model(), examples(12)
    if packing:
        allow_packing(trained)
    step = stepper(trained, micro_tokens=60, packing=packing)
    loss = step.accumulate(data, range(12), step=0)
    expected = [p.grad.clone() for p in trained.parameters()]
    with compiled_blocks(trained):
        assert step.accumulate(data, range(12), step=0) == pytest.approx(loss, abs=1e-5)
    for parameter, wanted in zip(trained.parameters(), expected, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, wanted, atol=1e-5, rtol=1e-4)


def test_blocks_are_eager_again_afterwards() -> None:
    trained = model()
    with compiled_blocks(trained):
        assert all(b._compiled_call_impl is not None for b in blocks(trained).values())
    assert all(b._compiled_call_impl is None for b in blocks(trained).values())
