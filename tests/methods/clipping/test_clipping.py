"""Every kind of clipping does to a few gradients what a hand can compute."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from lcc.config.cards import decode_card, find_card, names
from lcc.config.yaml_files import config_roots, read_yaml
from lcc.methods.clipping.agc import AGC
from lcc.methods.clipping.none import NONE
from lcc.methods.clipping.norm import Norm
from lcc.methods.clipping.per_layer import PerLayer
from lcc.methods.clipping.quantile import Quantile
from lcc.methods.clipping.value import Value
from lcc.training.optim import ClipResult

WEIGHTS = {"a.weight": [[0.0, 1.0], [60.0, 80.0]], "a.bias": [0.0, 0.0], "lm_head.weight": [[1.0]]}
GRADIENTS = {"a.weight": [[3.0, 0.0], [0.0, -4.0]], "a.bias": [12.0, 0.0]}  # joint norm 13


def parameters(**more: list[Any]) -> dict[str, torch.nn.Parameter]:
    """`WEIGHTS` with `GRADIENTS`, and `more` of them by name; one parameter has none."""
    built = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in WEIGHTS.items()}
    gradients = GRADIENTS | {name.replace("__", "."): value for name, value in more.items()}
    for name, gradient in gradients.items():
        built[name].grad = torch.tensor(gradient)
    return built


def clipped(clip: Any, past_norms: tuple[float, ...] = (), **more: list[Any]) -> Any:
    """What `clip` says, and the gradients it leaves."""
    given = parameters(**more)
    found = clip.apply(given, past_norms)
    return found, {name: p.grad.tolist() for name, p in given.items() if p.grad is not None}


def test_none_measures_and_changes_nothing() -> None:
    assert clipped(NONE()) == (ClipResult(13.0, None, 0.0), GRADIENTS)


def test_norm_scales_everything_by_threshold_over_norm() -> None:
    found, left = clipped(Norm(max_norm=6.5))
    assert found == ClipResult(13.0, 6.5, 1.0)
    assert left == {"a.weight": [[1.5, 0.0], [0.0, -2.0]], "a.bias": [6.0, 0.0]}


def test_a_norm_below_the_threshold_is_left_alone() -> None:
    assert clipped(Norm(max_norm=13.0)) == (ClipResult(13.0, 13.0, 0.0), GRADIENTS)


def test_value_cuts_elements_off_and_counts_them_among_all() -> None:
    found, left = clipped(Value(max_value=3.5))
    assert found == ClipResult(13.0, 3.5, 2 / 7)  # the one without a gradient counts too
    assert left == {"a.weight": [[3.0, 0.0], [0.0, -3.5]], "a.bias": [3.5, 0.0]}


def test_per_layer_scales_the_layer_that_is_too_large_with_its_bias() -> None:
    found, left = clipped(PerLayer(max_norm=6.5 * math.sqrt(2)), lm_head__weight=[[0.5]])
    assert found.norm_before == pytest.approx(math.sqrt(169.25))
    assert found.threshold == pytest.approx(6.5) and found.clipped_share == 0.5
    assert left["a.weight"] == [[1.5, 0.0], [0.0, -2.0]] and left["a.bias"] == [6.0, 0.0]
    assert left["lm_head.weight"] == [[0.5]]


def test_agc_bounds_every_row_by_its_weights_and_a_bias_as_a_whole() -> None:
    found, left = clipped(AGC(clipping=0.5), lm_head__weight=[[9.0]])
    assert found.norm_before == pytest.approx(math.sqrt(169 + 81))
    assert found.threshold == 0.5 and found.clipped_share == 2 / 3
    assert left["a.weight"] == [[0.5, 0.0], [0.0, -4.0]]  # weight norms 1 and 100
    assert left["a.bias"] == pytest.approx([0.5e-3, 0.0])  # epsilon stands in for zero weights
    assert left["lm_head.weight"] == [[9.0]]


def test_agc_bounds_the_last_layer_too_where_nothing_is_skipped() -> None:
    found, left = clipped(AGC(clipping=0.5, skip=()), lm_head__weight=[[9.0]])
    assert found.clipped_share == 3 / 4 and left["lm_head.weight"] == [[0.5]]


def test_quantile_scales_to_the_quantile_of_the_recent_norms() -> None:
    found, left = clipped(Quantile(quantile=0.5), (1.0, 2.0, 6.5, 20.0))
    assert found == ClipResult(13.0, 6.5, 1.0)
    assert left == {"a.weight": [[1.5, 0.0], [0.0, -2.0]], "a.bias": [6.0, 0.0]}


def test_quantile_forgets_norms_older_than_its_window() -> None:
    assert clipped(Quantile(quantile=0.5, window=3), (1.0, 1.0, 14.0, 15.0))[0].threshold == 14.0


def test_the_first_norm_is_its_own_quantile() -> None:
    assert clipped(Quantile()) == (ClipResult(13.0, 13.0, 0.0), GRADIENTS)


@pytest.mark.parametrize("name", names("clipping"))
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_norm_that_is_not_finite_is_told(name: str, bad: float) -> None:
    found, _ = clipped(find_card("clipping", name)(), (1.0, 2.0), a__bias=[bad, 0.0])
    assert not math.isfinite(found.norm_before)


@pytest.mark.parametrize("name", names("clipping"))
def test_without_any_gradient_nothing_is_clipped(name: str) -> None:
    frozen = {n: torch.nn.Parameter(torch.tensor(v)) for n, v in WEIGHTS.items()}
    found = find_card("clipping", name)().apply(frozen, ())
    assert found.norm_before == 0.0 and found.clipped_share == 0.0


@pytest.mark.parametrize("name", names("clipping"))
def test_half_precision_is_measured_in_single(name: str) -> None:
    given = {"a.weight": torch.nn.Parameter(torch.ones(64, 63, dtype=torch.bfloat16))}
    given["a.weight"].grad = torch.full((64, 63), 0.01, dtype=torch.bfloat16)
    exact = float(given["a.weight"].grad.double().norm())
    assert find_card("clipping", name)().apply(given, ()).norm_before == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize("name", names("clipping"))
def test_every_kind_has_a_card_with_its_defaults(name: str) -> None:
    (root,) = [r for r in config_roots() if (r / "clip").is_dir()]
    node = dict(read_yaml(root / "clip" / f"{name}.yaml").content)
    assert node.pop("name") == name
    assert decode_card(find_card("clipping", name), node) == find_card("clipping", name)()
