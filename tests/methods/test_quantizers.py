"""A quantizer's grid is its revision: when one of these changes, raise `revision`."""

from __future__ import annotations

import pytest
import torch

from lcc.core.catalog import card, names
from lcc.core.decode import decode
from lcc.engine.statistics import Sums
from lcc.methods.quantizers import Grid

WEIGHT = torch.linspace(-1, 1, 128).view(2, 64) ** 3
GOLDEN = {  # (name, revision): (squared error of the grid × 1e4, first row's first value)
    ("nearest", 1): (7.77695, -0.933333),
    ("nf4", 1): (13.9373, -1.0),
    ("scale_search", 1): (6.91640, -0.981333),
    ("gptq", 1): (8.07301, -0.981333),
}


def grid_of(name: str) -> tuple[int, torch.Tensor]:
    quantizer = decode(card("quantizers", name), {})
    grid = Grid(bits=4 if 4 in quantizer.bits else 8, group_size=32, dtype="float32")
    sums = Sums(gram=True)
    sums.add(torch.sin(torch.arange(256 * 64).view(256, 64) ** 1.5))
    return quantizer.revision, quantizer.quantize(WEIGHT, sums.stats(), grid).dense()


@pytest.mark.parametrize("name", names("quantizers"))
def test_the_grid_is_that_of_this_revision(name: str) -> None:
    revision, dense = grid_of(name)
    error = 1e4 * float((WEIGHT - dense).square().mean())
    assert (error, float(dense[0, 0])) == pytest.approx(GOLDEN[name, revision], rel=1e-3)
