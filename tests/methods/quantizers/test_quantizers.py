"""A quantizer's grid is its revision: when one of these changes, raise `revision`."""

from __future__ import annotations

import pytest
import torch

from lcc.calibration.statistics import LayerStats, Sums
from lcc.compression.quantization_grid import IntGrid
from lcc.config.cards import decode, find_card, names
from lcc.methods.quantizers import Smoother

WEIGHT = torch.linspace(-1, 1, 128).view(2, 64) ** 3
GOLDEN = {  # (name, revision): (squared error of the grid × 1e4, first row's first value)
    ("nearest", 1): (7.77695, -0.933333),
    ("nf4", 1): (13.9373, -1.0),
    ("scale_search", 2): (6.91640, -0.981333),
    ("gptq", 2): (8.07301, -0.981333),
    ("awq", 1): (6.91640, -0.981333),
    ("bnb_int8", 1): (0.0459079, -1.0),
    ("smoothquant", 1): (0.0231775, -0.996078),
}
# The first input's scale over the last one's.
SCALES = {("awq", 1): 0.402294, ("smoothquant", 1): 0.100001}


X = torch.sin(torch.arange(256 * 64).view(256, 64) ** 1.5)


def stats_of(x: torch.Tensor) -> LayerStats:
    sums = Sums(gram=True)
    sums.add(x)
    return sums.stats()


def grid_of(name: str) -> tuple[int, torch.Tensor]:
    quantizer = decode(find_card("quantizers", name), {})
    grid = IntGrid(bits=4 if 4 in quantizer.bits else 8, group_size=32, dtype="float32")
    return quantizer.revision, quantizer.quantize(WEIGHT, stats_of(X), grid).dense()


@pytest.mark.parametrize("name", names("quantizers"))
def test_the_grid_is_that_of_this_revision(name: str) -> None:
    revision, dense = grid_of(name)
    error = 1e4 * float((WEIGHT - dense).square().mean())
    assert (error, float(dense[0, 0])) == pytest.approx(GOLDEN[name, revision], rel=1e-3)


@pytest.mark.parametrize("name", names("quantizers"))
def test_the_scales_it_moves_are_those_of_this_revision(name: str) -> None:
    quantizer = decode(find_card("quantizers", name), {})
    if not isinstance(quantizer, Smoother):
        assert (name, quantizer.revision) not in SCALES
        return
    stats = stats_of(X * torch.logspace(0, 2, 64))
    scale = quantizer.smoothing(WEIGHT, stats, IntGrid(4, 32, "float32"))
    assert float(scale[0] / scale[-1]) == pytest.approx(SCALES[name, quantizer.revision], rel=1e-3)
