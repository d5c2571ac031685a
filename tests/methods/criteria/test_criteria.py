"""A criterion's numbers are its revision: when one of these changes, raise `revision`."""

from __future__ import annotations

import pytest
import torch

from lcc.calibration.statistics import LayerStats, Sums
from lcc.compression.obs_solver import layer_error
from lcc.compression.sparsity import Pattern
from lcc.config.cards import decode, find_card, names

WEIGHT = torch.tensor([[1.0, -2.0, 0.5], [-3.0, 0.25, 4.0]])
STATS = LayerStats(
    num_tokens=4,
    mean=torch.tensor([0.5, -1.0, 0.0]),
    mean_abs=torch.tensor([0.5, 1.0, 2.0]),
    max_abs=torch.tensor([1.0, 3.0, 5.0]),
    diagonal=torch.tensor([4.0, 9.0, 16.0]),
    gram=torch.tensor([[4.0, 3.0, 1.0], [3.0, 9.0, -2.0], [1.0, -2.0, 16.0]]),
)
GOLDEN = {  # (name, revision): scores
    ("magnitude", 1): [[1.0, 2.0, 0.5], [3.0, 0.25, 4.0]],
    ("wanda", 1): [[2.0, 6.0, 2.0], [6.0, 0.75, 16.0]],
    ("activation", 1): [[0.5, 2.0, 1.0], [1.5, 0.25, 8.0]],
    ("ria", 1): [[0.757614, 2.529344, 0.507937], [1.645852, 0.252176, 2.881226]],
    ("sparsegpt", 2): [[1.712128, 5.071026, 1.921626], [5.136385, 0.633878, 15.373002]],
    ("wanda_sp", 1): [[2.0, 6.0, 2.0], [6.0, 0.75, 16.0]],
    ("flap", 1): [[0.75, 5.0, 1.0], [6.75, 0.078125, 64.0]],
    ("taylor", 1): [[2.0, 2.0, 0.25], [6.0, 0.25, 2.0]],
}
GRADIENT = torch.tensor([[2.0, -1.0, 0.5]])  # what taylor reads


@pytest.mark.parametrize("name", names("criteria"))
def test_the_scores_are_those_of_this_revision(name: str) -> None:
    criterion = decode(find_card("criteria", name), {})
    by_gradient = getattr(criterion, "score_by_gradient", None)
    scores = by_gradient(WEIGHT, GRADIENT) if by_gradient else criterion.score(WEIGHT, STATS)
    expected = torch.tensor(GOLDEN[name, criterion.revision])
    assert torch.allclose(scores, expected, rtol=1e-5), scores


@pytest.mark.parametrize("name", names("criteria"))
def test_a_criterion_without_needs_reads_no_statistics(name: str) -> None:
    criterion = decode(find_card("criteria", name), {})
    if criterion.needs is None and not hasattr(criterion, "score_by_gradient"):
        assert criterion.score(WEIGHT, None).shape == WEIGHT.shape


def correlated() -> tuple[torch.Tensor, LayerStats]:
    """A weight, and inputs of very different size that mix: condition of the Gram above 1e3."""
    torch.manual_seed(0)
    x = torch.randn(4096, 256) @ torch.randn(256, 256) * torch.logspace(0, 1.5, 256)
    sums = Sums(gram=True)
    sums.add(x)
    stats = sums.stats()
    assert stats.gram is not None and torch.linalg.cond(stats.gram.double()) > 1e3
    return torch.randn(64, 256), stats


@pytest.mark.parametrize("word", ["unstructured", "2:4", "4:8", "block8"])
def test_sparsegpt_loses_less_than_wanda_and_wanda_less_than_magnitude(word: str) -> None:
    weight, stats = correlated()
    assert stats.gram is not None
    pattern, errors = Pattern(word, 0.5), {}
    for name in ("wanda", "magnitude"):
        mask = pattern.mask(decode(find_card("criteria", name), {}).score(weight, stats))
        errors[name] = layer_error(weight * mask - weight, weight, stats.gram)
    sparsegpt = decode(find_card("criteria", "sparsegpt"), {})
    pruned = sparsegpt.prune(weight, stats, [pattern], [64])
    errors["sparsegpt"] = layer_error(pruned - weight, weight, stats.gram)
    assert errors["sparsegpt"] <= errors["wanda"] <= errors["magnitude"]


@pytest.mark.parametrize("options", [{}, {"scope": "layer"}])
def test_stacked_layers_each_get_the_share_they_were_asked(options: dict[str, str]) -> None:
    weight, stats = correlated()
    sparsegpt = decode(find_card("criteria", "sparsegpt"), options)
    patterns = [Pattern("unstructured", 0.3), Pattern("unstructured", 0.6)]
    pruned = sparsegpt.prune(weight, stats, patterns, [24, 40])
    zeros = [int((part == 0).sum()) for part in pruned.split([24, 40])]
    assert zeros == [24 * round(0.3 * 256), 40 * round(0.6 * 256)]
