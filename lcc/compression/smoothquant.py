"""Smoothing scales moved from the inputs of layers into their weights (SmoothQuant, AWQ).

y = W·x = (W·s)·(x/s): the division goes into the norm or the linear layer before, where that leaves
the model as it is. Whether it does is tried, not looked up: a norm that feeds a residual stream
too, a bent activation or shared key–value heads between the two show in the logits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from lcc.core.errors import GateError
from lcc.core.lazy import torch
from lcc.models.blocks import blocks
from lcc.models.reload_check import probe_logits

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    from lcc.calibration.calibrate import InputGroup
    from lcc.calibration.statistics import LayerStats

Law = Literal["norm", "norm above one", "rows"]
SAME = 1e-2  # of the change of logits without the division: what rounding to float32 may leave
SMALLEST = 1e-5
LEAST_SHOWN = 1e-6  # of the largest logit; what shows less cannot be told from rounding


@dataclass(frozen=True)
class ScaleFold:
    """Who divides: a norm (whose factor may be 1 + weight), or the rows of a linear layer."""

    producer: str  # below the block
    law: Law


class Folds:
    """Finds what makes an input; blocks of one type are alike, so each kind is tried once."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.blocks = blocks(model)
        self.known: dict[tuple[Any, ...], ScaleFold | None] = {}

    def of(self, group: InputGroup) -> tuple[Module, Law] | None:
        """The module that can divide the input of these layers, and how; None: there is none."""
        name = next(iter(group.layers))
        block = next((b for b in self.blocks if name.startswith(f"{b}.")), None)
        if block is None:
            return None
        module = self.blocks[block]
        own = tuple(layer.removeprefix(f"{block}.") for layer in group.layers)
        if (type(module), own) not in self.known:
            self.known[type(module), own] = self._found(module, group)
        fold = self.known[type(module), own]
        return None if fold is None else (module.get_submodule(fold.producer), fold.law)

    def _found(self, block: Module, group: InputGroup) -> ScaleFold | None:
        """Multiply the layers by random numbers, and see who can undo it."""
        width = next(iter(group.layers.values())).in_features
        draws = torch.rand(width, generator=torch.Generator().manual_seed(0))
        scale = torch.exp2(2 * draws - 1).to(group.weight().device)  # 0.5 to 2
        before = self._logits()
        with _restored(group.layers.values()):
            _multiply(group, scale)
            broken = float((self._logits() - before).abs().max())
            if broken <= LEAST_SHOWN * float(before.abs().max()):
                return None
            for fold in _candidates(block, group, width):
                producer = block.get_submodule(fold.producer)
                with _restored([producer]):
                    divide(producer, scale, law=fold.law)
                    if float((self._logits() - before).abs().max()) < SAME * broken:
                        return fold
        return None

    def _logits(self) -> Tensor:
        return probe_logits(self.model)


def _candidates(block: Module, group: InputGroup, width: int) -> Iterator[ScaleFold]:
    readers = set(group.layers.values())
    for name, module in block.named_modules():
        weight: Any = getattr(module, "weight", None)
        if weight is None or module in readers or next(module.children(), None) is not None:
            continue
        if weight.dim() == 1 and len(weight) == width:
            yield ScaleFold(name, "norm")
            yield ScaleFold(name, "norm above one")
        elif isinstance(module, torch.nn.Linear) and module.out_features == width:
            yield ScaleFold(name, "rows")


def divide(producer: Any, scale: Tensor, *, law: Law, dtype: str | None = None) -> Tensor:
    """Divide what `producer` puts out, in place; returns by what it was really divided.

    A norm is rounded to the `dtype` in which it will be stored, so that its readers can make up
    for the rounding.
    """
    bias = getattr(producer, "bias", None)
    if law == "rows":
        producer.weight.data = producer.weight.data / scale[:, None]
    else:
        above = 1.0 if law == "norm above one" else 0.0
        factor = producer.weight.data.float() + above
        divided = factor / scale - above
        divided = divided.to(getattr(torch, dtype)).float() if dtype else divided
        scale = torch.where(divided + above == 0, torch.ones_like(scale), factor / (divided + above))
        producer.weight.data = divided.to(producer.weight.dtype)
    if bias is not None:
        bias.data = bias.data / scale
    return scale


def _multiply(group: InputGroup, scale: Tensor) -> None:
    for layer in group.layers.values():
        layer.weight.data = layer.weight.data * scale


class _restored:
    """While open, the parameters of these modules may be replaced; then they are as before."""

    def __init__(self, modules: Iterable[Module]) -> None:
        self.before = [(p, p.data) for module in modules for p in module.parameters()]

    def __enter__(self) -> None: ...

    def __exit__(self, *error: object) -> None:
        for parameter, values in self.before:
            parameter.data = values


def smooth(
    model: Any, groups: Iterable[InputGroup], choose: Callable[[InputGroup], Tensor], *, dtype: str
) -> dict[str, Tensor]:
    """Move the scales (in,) that `choose` gives wherever that is possible, in place.

    Returns them by the first layer that reads the input. Raises GateError should the model's
    logits change, which would be our fault.
    """
    folds, moved = Folds(model), dict[str, "Tensor"]()
    before = folds._logits()
    for group in groups:
        fold = folds.of(group)
        if fold is None:
            continue
        producer, law = fold
        scale = divide(producer, choose(group).clamp(min=SMALLEST), law=law, dtype=dtype)
        _multiply(group, scale)
        moved[next(iter(group.layers))] = scale
    change = float((folds._logits() - before).abs().max())
    # Written so that a NaN fails too.
    if not change <= 1e-3 * max(1.0, float(before.abs().max())):
        raise GateError(
            f"quantize: moving scales into other layers changed the logits by {change:.3g}; use"
            " quantizer=scale_search and report this model."
        )
    return moved


def smoothed(stats: LayerStats, scale: Tensor) -> LayerStats:
    """What an input looks like after its division by `scale`."""
    gram = None if stats.gram is None else stats.gram / scale / scale[:, None]
    return replace(
        stats,
        mean=stats.mean / scale,
        mean_abs=stats.mean_abs / scale,
        max_abs=stats.max_abs / scale,
        diagonal=stats.diagonal / scale.square(),
        gram=gram,
    )
