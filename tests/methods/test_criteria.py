"""A criterion's numbers are its revision: when one of these changes, raise `revision`."""

from __future__ import annotations

import pytest
import torch

from lcc.core.catalog import card, names
from lcc.core.decode import decode
from lcc.engine.statistics import LayerStats

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
    ("sparsegpt", 1): [[1.712128, 5.071026, 1.921626], [5.136385, 0.633878, 15.373002]],
}


@pytest.mark.parametrize("name", names("criteria"))
def test_the_scores_are_those_of_this_revision(name: str) -> None:
    criterion = decode(card("criteria", name), {})
    scores = criterion.score(WEIGHT, STATS)
    expected = torch.tensor(GOLDEN[name, criterion.revision])
    assert torch.allclose(scores, expected, rtol=1e-5), scores


@pytest.mark.parametrize("name", names("criteria"))
def test_a_criterion_without_needs_reads_no_statistics(name: str) -> None:
    criterion = decode(card("criteria", name), {})
    if criterion.needs is None:
        assert criterion.score(WEIGHT, None).shape == WEIGHT.shape
