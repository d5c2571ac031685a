"""Bits for every layer under an average: the least error of the outputs that the budget allows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lcc.compression.grids import output_error, search_scales
from lcc.core.errors import RecipeError
from lcc.core.lazy import torch

if TYPE_CHECKING:
    from lcc.compression.grids import Grid
    from lcc.engine.calibration import InputGroup
    from lcc.engine.keeping import Facts

MAX_STATES = 20_000  # of the table; more layers' sizes are rounded up to this fineness


def note_changes(groups: Any, grid: Grid, *, offered: Sequence[int]) -> None:
    """Put into `groups.facts`, by the first layer of each input, what each number of bits costs."""
    for group in groups:
        groups.facts[next(iter(group.layers))] = {
            "layers": list(group.layers),
            "size": int(group.weight().numel()),
            "errors": [output_change(group, replace(grid, bits=bits)) for bits in offered],
        }


def mixed_grids(
    facts: Facts, grid: Grid, *, offered: Sequence[int], average: float
) -> dict[str, Grid]:
    """Each layer's grid: layers that read one input get equal bits, as fused kernels need them.

    Their error is the share of their outputs that rounding changes on the calibration text, with
    searched scales, whatever the quantizer; `average` counts codes, not scales. Layers of one input
    count once: on SmolLM2 at 4.5 bits, perplexity 31.7; 32.0 when each counts; 32.8 at 4 bits.
    """
    known = [facts[name] for name in sorted(facts)]
    errors, sizes = [fact["errors"] for fact in known], [fact["size"] for fact in known]
    chosen = cheapest(errors, sizes, offered, average=average)
    return {
        name: replace(grid, bits=bits)
        for fact, bits in zip(known, chosen, strict=True)
        for name in fact["layers"]
    }


def output_change(group: InputGroup, grid: Grid) -> float:
    """tr(ΔW·G·ΔWᵀ) / tr(W·G·Wᵀ) of the stacked layers, rounding with searched scales."""
    assert group.stats is not None and group.stats.gram is not None, "mixing bits reads the Gram"
    weight, gram = group.weight().float(), group.stats.gram
    change = grid.round(weight, *search_scales(weight, grid, group.stats.diagonal)) - weight
    lost, whole = output_error(change, gram).sum(), output_error(weight, gram).sum()
    return float(lost / whole.clamp(min=torch.finfo(torch.float32).tiny))


def cheapest(
    errors: Sequence[Sequence[float]],
    sizes: Sequence[int],
    offered: Sequence[int],
    *,
    average: float,
) -> list[int]:
    """The bits of each layer with the least sum of errors within `average` bits per weight.

    `errors[i][k]` is layer i's with `offered[k]` bits. A knapsack, solved exactly by dynamic
    programming over the budget; where sizes have no large common divisor they are rounded up, so
    that the budget holds and the rest is not lost by more than one part in MAX_STATES per layer.
    """
    limit = average * sum(sizes) * (1 + 1e-12)
    unit = max(math.gcd(*(n * b for n in sizes for b in offered)), math.ceil(limit / MAX_STATES))
    budget = int(limit // unit)
    costs = [[-(-n * b // unit) for b in offered] for n in sizes]
    # The least error of the layers so far at this cost or less.
    least = torch.zeros(budget + 1, dtype=torch.float64)
    picks = []
    for row, cost in zip(errors, costs, strict=True):
        options = least.new_full((len(offered), budget + 1), torch.inf)
        for k, (error, price) in enumerate(zip(row, cost, strict=True)):
            if price <= budget:
                options[k, price:] = least[: budget + 1 - price] + error
        least, pick = options.min(dim=0)
        picks.append(pick.to(torch.int8))
    if not bool(least[budget].isfinite()):
        raise RecipeError(
            f"quantize.average_bits: {average:g} is less than the layers can be mixed to; raise it"
            " a little."
        )
    left, chosen = budget, []
    for pick, cost in zip(reversed(picks), reversed(costs), strict=True):
        best = int(pick[left])
        chosen.append(offered[best])
        left -= cost[best]
    return chosen[::-1]
