"""Integer grids for weights: scales and zero points per group of inputs, and the search for them.

A weight w in a group with scale s and zero point z is stored as the code q = round(w/s) + z, within
the signed range of the bits, and read as (q − z)·s. Scales are rounded to the dtype in which they
are stored before any code is chosen, so that the codes suit what a reader will multiply with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lcc.core.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

Options = tuple["Tensor", "Tensor | None"]  # (out, groups, options) scales, zero points
SHRINKS = tuple(1 - i / 50 for i in range(36))  # of the widest range: 1.00, 0.98, … 0.30


@dataclass(frozen=True)
class IntGrid:
    """Options of a grid: `group_size` None is one scale per output channel."""

    bits: int
    group_size: int | None
    dtype: str  # of the stored scales, e.g. "bfloat16"
    symmetric: bool = True

    @property
    def lowest(self) -> int:
        """The smallest code; codes are signed, as they are stored."""
        return -(1 << (self.bits - 1))

    @property
    def highest(self) -> int:
        return (1 << (self.bits - 1)) - 1

    def groups(self, weight: Tensor) -> Tensor:
        """(out, in) → (out, groups, inputs of a group), float32."""
        num_outputs, num_inputs = weight.shape
        return weight.float().reshape(num_outputs, -1, self.group_size or num_inputs)

    def encode(self, weight: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
        """The nearest codes, (out, in) int8."""
        return self._codes(self.groups(weight), scale, zero).to(torch.int8).view(weight.shape)

    def round(self, weight: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
        """The nearest points of the grid, (out, in) float32."""
        return self._rounded(self.groups(weight), scale, zero).view(weight.shape)

    def _codes(self, groups: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
        codes = (groups / scale.float()[..., None]).round_()
        if zero is not None:
            codes += zero.float()[..., None]
        return codes.clamp_(self.lowest, self.highest)

    def _rounded(self, groups: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
        codes = self._codes(groups, scale, zero)
        if zero is not None:
            codes -= zero.float()[..., None]
        return codes.mul_(scale.float()[..., None])


def widest_scales(weight: Tensor, grid: IntGrid, *, shrink: float = 1.0) -> tuple[Tensor, Tensor | None]:
    """Scales (out, groups) and zero points that span every group from its least to its largest.

    `shrink` below 1 spans that share of the range and cuts off what lies outside. A group of zeros
    gets a scale above zero, and stays zeros. The zero points of a symmetric grid are None.
    """
    return _spanning(*_ends(grid.groups(weight)), grid, shrink=shrink)


def _ends(groups: Tensor) -> tuple[Tensor, Tensor]:
    # Zero must be a point of the grid: a pruned weight stays pruned.
    return groups.amin(dim=-1).clamp(max=0), groups.amax(dim=-1).clamp(min=0)


def _spanning(
    low: Tensor, high: Tensor, grid: IntGrid, *, shrink: float | Tensor
) -> tuple[Tensor, Tensor | None]:
    num_steps = grid.highest - grid.lowest
    span = 2 * torch.maximum(-low, high) if grid.symmetric else high - low
    scale = _stored(shrink * span / num_steps, grid)
    if grid.symmetric:
        return scale, None
    zero = (grid.lowest - shrink * low / scale.float()).round()
    return scale, zero.clamp(grid.lowest, grid.highest).to(torch.int8)


def shrunk_scales(groups: Tensor, grid: IntGrid) -> Options:
    """The widest scales and zero points times every share of SHRINKS."""
    low, high = _ends(groups)
    shrinks = torch.tensor(SHRINKS, device=groups.device)
    return _spanning(low[..., None], high[..., None], grid, shrink=shrinks)


def _stored(scale: Tensor, grid: IntGrid) -> Tensor:
    """As a file keeps it, and never zero: float16's smallest normal number fits every dtype."""
    return scale.clamp(min=torch.finfo(torch.float16).tiny).to(getattr(torch, grid.dtype))


def search_scales(weight: Tensor, grid: IntGrid, importance: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Scales and zero points, as stored, whose rounding errs least where the input is large.

    Each group tries every share of SHRINKS of its range. `importance` (in,) weighs the squared
    error of each input, e.g. the diagonal of the Gram (as llama.cpp's imatrix); None weighs all
    alike. `importance` (in, in) is a whole Gram: see `_descend`.
    """
    if importance is not None and importance.dim() == 2:
        return _descend(weight, grid, importance)
    groups = grid.groups(weight)
    ones = torch.ones(weight.shape[1], device=weight.device)
    weighing = grid.groups((ones if importance is None else importance)[None])
    scales, zeros = shrunk_scales(groups, grid)
    best = _best_options(groups, weighing[0], (scales, zeros), grid)[..., None]
    scale = scales.gather(2, best)[..., 0]
    return scale, None if zeros is None else zeros.gather(2, best)[..., 0]


def _best_options(groups: Tensor, weighing: Tensor, options: Options, grid: IntGrid) -> Tensor:
    """Which option errs least in every group, (out, groups) int64; of equals the first."""
    if groups.device.type != "cpu":
        return best_options_in_torch(groups, weighing, options, grid)
    from lcc.kernels.search import best_options

    scales, zeros = options
    points = scales.new_empty((0, 0, 0)) if zeros is None else zeros
    limits = (grid.lowest, grid.highest)
    return best_options(groups, weighing, scales.float(), points.float(), limits=limits)


def best_options_in_torch(groups: Tensor, weighing: Tensor, options: Options, grid: IntGrid) -> Tensor:
    """The same on any device."""
    best = torch.zeros(groups.shape[:2], dtype=torch.int64, device=groups.device)
    least = groups.new_full(best.shape, torch.inf)
    for option in range(options[0].shape[2]):
        scale, zero = _option(options, option)
        error = grid._rounded(groups, scale, zero).sub_(groups).square_().mul_(weighing).sum(dim=-1)
        better = error < least
        least = torch.where(better, error, least)
        best.masked_fill_(better, option)
    return best


def _option(options: Options, index: int) -> tuple[Tensor, Tensor | None]:
    scales, zeros = options
    return scales[..., index], None if zeros is None else zeros[..., index]


def _descend(weight: Tensor, grid: IntGrid, gram: Tensor) -> tuple[Tensor, Tensor | None]:
    """Group after group takes the share that lowers the layer's error tr(ΔW·G·ΔWᵀ) most.

    It starts from `widest_scales`, whose error it therefore never exceeds.
    """
    scale, zero = widest_scales(weight, grid)
    groups = grid.groups(weight)
    options, size = shrunk_scales(groups, grid), groups.shape[-1]
    error = grid.round(weight, scale, zero) - weight.float()  # (out, in)
    gram = gram.float()
    for index in range(groups.shape[1]):
        columns = slice(index * size, (index + 1) * size)
        own = gram[columns, columns]
        old = error[:, columns]
        # What the rest of the row already does to these inputs' error.
        pull = 2 * (error @ gram[:, columns] - old @ own)
        least = ((old @ own + pull) * old).sum(dim=1)
        chosen = old.clone()
        for option in range(1, len(SHRINKS)):
            new_scale, new_zero = _option(options, option)
            one = slice(index, index + 1)
            part_zero = None if new_zero is None else new_zero[:, one]
            new = grid._rounded(groups[:, one], new_scale[:, one], part_zero)[:, 0]
            new -= groups[:, index]
            loss = ((new @ own + pull) * new).sum(dim=1)
            better = loss < least
            least = torch.where(better, loss, least)
            chosen = torch.where(better[:, None], new, chosen)
            scale[:, index] = torch.where(better, new_scale[:, index], scale[:, index])
            if zero is not None and new_zero is not None:
                zero[:, index] = torch.where(better, new_zero[:, index], zero[:, index])
        error[:, columns] = chosen
    return scale, zero


def output_error(change: Tensor, gram: Tensor) -> Tensor:
    """Squared change of the layer's outputs over the calibration tokens, per row: (out,)."""
    return ((change.float() @ gram.float()) * change.float()).sum(dim=1)
