"""Every optimizer takes the steps that its paper writes down."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lcc.config.cards import Mistakes, decode, find_card, names
from lcc.methods.optimizers.adafactor import Adafactor
from lcc.methods.optimizers.adam import Adam, AdamW
from lcc.methods.optimizers.adamw8bit import AdamW8bit
from lcc.methods.optimizers.muon import Muon
from lcc.methods.optimizers.sgd import SGD

LR, DECAY, STEPS = 0.01, 0.1, 3
Update = Callable[[Tensor, Tensor, dict[str, Any], int], Tensor]
"""(weights, gradient, state, step from 1) → the weights after it."""


def gradient(shape: tuple[int, ...], step: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(step))


def stepped(optimizer: Any, shape: tuple[int, ...], *, is_hidden: bool = True) -> Tensor:
    parameter = torch.nn.Parameter(gradient(shape, 0))
    group = {"params": [parameter], "weight_decay": DECAY, "is_hidden": is_hidden}
    built = optimizer.build([group], LR)
    for step in range(1, STEPS + 1):
        parameter.grad = gradient(shape, step)
        built.step()
    return parameter.detach()


def by_hand(update: Update, shape: tuple[int, ...]) -> Tensor:
    weights, state = gradient(shape, 0).double(), dict[str, Any]()
    for step in range(1, STEPS + 1):
        weights = update(weights, gradient(shape, step).double(), state, step)
    return weights.float()


def adam_direction(g: Tensor, state: dict[str, Any], t: int) -> Tensor:
    state["m"] = 0.9 * state.get("m", 0) + 0.1 * g
    state["v"] = 0.999 * state.get("v", 0) + 0.001 * g * g
    m, v = state["m"] / (1 - 0.9**t), state["v"] / (1 - 0.999**t)
    return m / (v.sqrt() + 1e-8)


def adamw(w: Tensor, g: Tensor, state: dict[str, Any], t: int) -> Tensor:
    return w * (1 - LR * DECAY) - LR * adam_direction(g, state, t)


def adam(w: Tensor, g: Tensor, state: dict[str, Any], t: int) -> Tensor:
    return w - LR * adam_direction(g + DECAY * w, state, t)


def nesterov(w: Tensor, g: Tensor, state: dict[str, Any], t: int) -> Tensor:
    g = g + DECAY * w
    state["m"] = 0.9 * state.get("m", 0) + g
    return w - LR * (g + 0.9 * state["m"])


def heavy_ball(w: Tensor, g: Tensor, state: dict[str, Any], t: int) -> Tensor:
    state["m"] = 0.9 * state.get("m", 0) + g + DECAY * w
    return w - LR * state["m"]


def plain(w: Tensor, g: Tensor, state: dict[str, Any], t: int) -> Tensor:
    return w - LR * (g + DECAY * w)


def adafactor(w: Tensor, g: Tensor, state: dict[str, Any], t: int) -> Tensor:
    beta = 1 - t**-0.8
    scale = max(1e-3, float(w.square().mean().sqrt())) * min(LR, t**-0.5)
    if w.ndim == 2:
        for name, axis in (("rows", 1), ("columns", 0)):
            mean = g.square().mean(axis, keepdim=True)
            state[name] = beta * state.get(name, 0) + (1 - beta) * mean
        second = state["rows"] * state["columns"] / state["rows"].mean()
    else:
        second = state["v"] = beta * state.get("v", 0) + (1 - beta) * g.square()
    step = g / second.sqrt()
    step = step / max(1.0, float(step.square().mean().sqrt()))
    return w * (1 - LR * DECAY) - scale * step


def muon(w: Tensor, g: Tensor, state: dict[str, Any], t: int) -> Tensor:
    state["m"] = 0.95 * state.get("m", 0) + 0.05 * g
    x = 0.05 * g + 0.95 * state["m"]
    x = x / x.norm()
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return w * (1 - LR * DECAY) - LR * 0.2 * math.sqrt(max(w.shape)) * x


@pytest.mark.parametrize("shape", [(4, 8), (8,)])
@pytest.mark.parametrize(
    "optimizer, update",
    [
        (AdamW(), adamw),
        (Adam(), adam),
        (AdamW8bit(), adamw),
        (SGD(), nesterov),
        (SGD(nesterov=False), heavy_ball),
        (SGD(momentum=0.0, nesterov=False), plain),
        (Adafactor(), adafactor),
    ],
)
def test_steps_are_the_papers(optimizer: Any, update: Update, shape: tuple[int, ...]) -> None:
    torch.testing.assert_close(stepped(optimizer, shape), by_hand(update, shape), atol=2e-6, rtol=1e-5)


def test_muon_orthogonalises_hidden_matrices() -> None:
    got, expected = stepped(Muon(), (4, 8)), by_hand(muon, (4, 8))
    # torch iterates in bfloat16: two to three digits of a step.
    torch.testing.assert_close(got, expected, atol=0.02 * LR, rtol=0)
    moved = (gradient((4, 8), 0) - got).norm()
    assert moved > 100 * (got - expected).abs().max()


def test_muon_leaves_the_rest_to_adamw() -> None:
    got = stepped(Muon(), (4, 8), is_hidden=False)
    torch.testing.assert_close(got, by_hand(adamw, (4, 8)), atol=2e-6, rtol=1e-5)


def test_eight_bit_moments_stay_near_those_of_adamw() -> None:
    shape = (64, 128)  # from 4,096 elements on moments have 8 bits
    start = gradient(shape, 0)
    exact, rough = (stepped(o, shape) - start for o in (AdamW(), AdamW8bit()))
    assert 0 < float((rough - exact).norm() / exact.norm()) < 0.02


@pytest.mark.parametrize("name", names("optimizers"))
def test_a_schedule_reaches_every_parameter(name: str) -> None:
    shapes = {True: (64, 64), False: (8,)}
    parameters = {h: torch.nn.Parameter(torch.ones(shape)) for h, shape in shapes.items()}
    groups = [{"params": [p], "weight_decay": 0.0, "is_hidden": h} for h, p in parameters.items()]
    optimizer = find_card("optimizers", name)().build(groups, LR)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: float(step > 0))
    for moves in (False, True):
        for hidden, parameter in parameters.items():
            parameter.grad = gradient(shapes[hidden], 1)
        before = [p.detach().clone() for p in parameters.values()]
        optimizer.step()
        schedule.step()
        for p, old in zip(parameters.values(), before, strict=True):
            assert torch.equal(p, old) != moves


def test_nesterov_without_momentum_is_refused() -> None:
    with pytest.raises(Mistakes, match="nesterov needs momentum; set nesterov: false"):
        decode(SGD, {"momentum": 0.0})
