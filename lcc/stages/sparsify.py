"""Set the least important weights of every layer in the blocks to zero."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from lcc.core.catalog import Choice
from lcc.core.decode import card, decode_card
from lcc.core.errors import GateError, RecipeError
from lcc.core.lazy import torch
from lcc.engine.blocks import as_linear, block_linears
from lcc.engine.calibration import Calibration
from lcc.engine.patterns import groups_mask, rows_mask
from lcc.methods.criteria.wanda import Wanda
from lcc.stage import Measure, Outcome
from lcc.stages._calibrated import Needs, input_groups, reads

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Linear

    from lcc.parts.checkpoint import Form
    from lcc.parts.model import Bundle
    from lcc.stage import Context, Noun

SAMPLE_BYTES = 1 << 22  # enough to measure how well zeros compress


def _wanda() -> Any:
    return decode_card(Wanda, {})


@card
class Sparsify:
    """Zeros per output row, or N of every M neighbours; the shapes stay as they are."""

    reads: ClassVar[tuple[Noun, ...]] = ()  # of an instance: see below
    accepts: ClassVar[tuple[Form, ...]] = ("dense",)
    changes_model: ClassVar[bool] = True
    revision: ClassVar[int] = 1

    criterion: Annotated[Any, Choice("criteria")] = Field(default_factory=_wanda)
    sparsity: Annotated[float, Field(gt=0, lt=1)] = 0.5
    pattern: Literal["unstructured", "2:4", "4:8"] = "unstructured"
    calibration: Calibration = Field(default_factory=Calibration)

    def __post_init__(self) -> None:
        if self.pattern != "unstructured" and self.sparsity != 0.5:
            raise ValueError(f"pattern {self.pattern} is a sparsity of 0.5, got {self.sparsity}")
        object.__setattr__(self, "reads", reads(self.needs, self.calibration))

    @property
    def needs(self) -> Needs:
        return "diagonal" if self.criterion.calibrated else None

    def run(self, bundle: Bundle, context: Context) -> Outcome:
        model = bundle.load(device=context.device)
        with as_linear(model):
            layers = block_linears(model)
            self._refuse(layers, model)
            dense_share = _compressed_share(layers, dtype=bundle.card.dtype)
            for group in input_groups(bundle, context, layers, self.calibration, needs=self.needs):
                for layer in group.layers.values():
                    weight = layer.weight.detach()
                    weight.mul_(self._mask(self.criterion.score(weight, group.stats)))
            achieved = self._check(layers)
            share = _compressed_share(layers, dtype=bundle.card.dtype)
        bundle.module = model
        bundle.with_card(sparse=self._word())
        return Outcome(
            bundle=bundle,
            measures={"sparsity": Measure(achieved, "share"), "bytes_saved": Measure(0, "bytes")},
            notes=[
                "0 bytes saved and no faster on this engine: zeros are stored like any weight."
                f" Zipped (zlib), the sparse layers take {share:.0%} of their bytes; the dense"
                f" ones took {dense_share:.0%}."
            ],
        )

    def _refuse(self, layers: dict[str, Linear], model: Any) -> None:
        if not layers:
            raise RecipeError(
                f"sparsify: {type(model).__name__} has no linear layers in blocks; leave it out."
            )
        if self.pattern == "unstructured":
            return
        group = int(self.pattern.rpartition(":")[2])
        odd = next((n for n, layer in layers.items() if layer.in_features % group), None)
        if odd is not None:
            raise RecipeError(
                f"sparsify.pattern: layer {odd!r} has {layers[odd].in_features} inputs, not a"
                f" multiple of {group}; use pattern=unstructured."
            )

    def _mask(self, scores: Tensor) -> Tensor:
        if self.pattern == "unstructured":
            return rows_mask(scores, self.sparsity)
        keep, of = map(int, self.pattern.split(":"))
        return groups_mask(scores, keep=keep, of=of)

    def _check(self, layers: dict[str, Linear]) -> float:
        """The share of zeros over all layers; GateError when a layer missed what was asked."""
        zeros = weights = 0
        for name, layer in layers.items():
            found = int((layer.weight == 0).sum())
            asked = round(self.sparsity * layer.in_features) * layer.out_features
            if found < asked:
                raise GateError(f"sparsify: layer {name!r} has {found} zeros, {asked} were asked.")
            zeros, weights = zeros + found, weights + layer.weight.numel()
        return zeros / weights

    def _word(self) -> str:
        plain = self.pattern == "unstructured"
        return f"{self.sparsity:.0%} unstructured" if plain else self.pattern


def _compressed_share(layers: dict[str, Linear], *, dtype: str) -> float:
    """Bytes after zlib over bytes before, of a sample of the layers as they are stored."""
    first = next(iter(layers.values())).weight.detach().to("cpu", getattr(torch, dtype))
    raw = first.contiguous().view(torch.uint8).numpy().tobytes()[:SAMPLE_BYTES]
    return len(zlib.compress(raw, 6)) / len(raw)
