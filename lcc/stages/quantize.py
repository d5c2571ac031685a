"""Store the linear layers of the blocks with 8 or 4 bits in a format that loads elsewhere."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from lcc.core.catalog import Choice, name_of
from lcc.core.decode import card, decode_card
from lcc.core.errors import RecipeError
from lcc.core.lazy import torch
from lcc.engine.blocks import block_linears
from lcc.engine.calibration import Calibration
from lcc.engine.packing import Replaced, write_packed
from lcc.methods.quantizers import Grid
from lcc.methods.quantizers.nearest import Nearest
from lcc.stage import Measure, Outcome
from lcc.stages._calibrated import Needs, input_groups, reads

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Linear

    from lcc.parts.checkpoint import Form
    from lcc.parts.model import Bundle
    from lcc.stage import Context, Noun

GROUPS = (128, 64, 32, 16, 8)
BITSANDBYTES_BLOCK = 64  # its CPU kernel reads whole blocks per row
# Their initialisation looks for dense weights even when every packed tensor is there.
UNREADABLE = ("t5", "mt5", "umt5", "longt5")
NO_GAIN = "Fewer bytes, no faster: this format has no fast kernel here; it is read dequantized."


def _nearest() -> Any:
    return decode_card(Nearest, {})


@card
class Quantize:
    """Weights onto a grid; the model in memory then holds exactly what the file does."""

    reads: ClassVar[tuple[Noun, ...]] = ()  # of an instance: see below
    accepts: ClassVar[tuple[Form, ...]] = ("dense",)
    produces: ClassVar[Form] = "packed"
    changes_model: ClassVar[bool] = True
    revision: ClassVar[int] = 1

    quantizer: Annotated[Any, Choice("quantizers")] = Field(default_factory=_nearest)
    bits: Literal[4, 8] = 8
    group_size: Annotated[int, Field(ge=8)] | Literal["auto", "channel"] = "auto"
    symmetric: bool = True
    include_embeddings: bool = False
    include_head: bool = False
    calibration: Calibration = Field(default_factory=Calibration)

    def __post_init__(self) -> None:
        object.__setattr__(self, "reads", reads(self.needs, self.calibration))

    @property
    def needs(self) -> Needs:
        needs: Needs = self.quantizer.needs
        return needs

    def check(self, config: dict[str, Any]) -> None:
        """Refuse, before any work, what no reader could load."""
        word = name_of(self.quantizer)
        if self.bits not in self.quantizer.bits:
            allowed = " or ".join(map(str, self.quantizer.bits))
            raise RecipeError(f"quantize.bits: {word} stores {allowed} bits, not {self.bits}.")
        if self.quantizer.format == "bitsandbytes" and self.group_size != "auto":
            raise RecipeError(f"quantize.group_size: {word} has blocks of its own; leave it out.")
        if self.quantizer.format == "compressed-tensors" and config.get("model_type") in UNREADABLE:
            raise RecipeError(
                f"quantize: transformers cannot load a packed {config['model_type']} in"
                " compressed-tensors' format; use quantizer=nf4 bits=4."
            )
        width = config.get("hidden_size") or config.get("d_model")
        if isinstance(self.group_size, int) and width and width % self.group_size:
            fitting = [str(group) for group in GROUPS if width % group == 0]
            raise RecipeError(
                f"quantize.group_size: {self.group_size} does not divide all inputs (one has"
                f" {width}); what does: {', '.join([*fitting, 'channel'])}."
            )
        if not self.symmetric:
            raise RecipeError(
                "quantize.symmetric: transformers cannot load packed zero points; leave it true."
            )
        if self.include_embeddings:
            raise RecipeError(
                "quantize.include_embeddings: transformers cannot load packed embeddings; leave it"
                " false and cut the vocabulary instead (stage vocab)."
            )
        if self.include_head and config.get("tie_word_embeddings", True):
            raise RecipeError(
                "quantize.include_head: the head is tied to the embedding and stays with it;"
                " leave it false."
            )

    def run(self, bundle: Bundle, context: Context) -> Outcome:
        model = bundle.load(device=context.device)
        self.check(model.config.to_dict())
        layers = self._layers(model)
        grid = Grid(self.bits, self._group_size(layers), bundle.card.dtype)
        replaced: Replaced = {}
        errors: list[float] = []
        with context.progress.track("quantize", len(layers), "layer") as bar:
            for group in input_groups(bundle, context, layers, self.calibration, needs=self.needs):
                quantized = self.quantizer.quantize(group.weight(), group.stats, grid)
                sizes = [layer.out_features for layer in group.layers.values()]
                for (name, layer), part in zip(
                    group.layers.items(), quantized.split(sizes), strict=True
                ):
                    errors.append(_put(layer, part.dense()))
                    replaced[name] = part.tensors()
                    bar.advance()
        self._seal(bundle, model, replaced, grid=grid)
        table = _bytes_by_part(model, replaced, dtype=bundle.card.dtype)
        return Outcome(
            bundle=bundle,
            measures={
                "num_quantized_layers": Measure(len(layers), "count"),
                "weight_error": Measure(sum(errors) / len(errors), "share"),
                "bytes_before": Measure(sum(row["before"] for row in table), "bytes"),
                "bytes_after": Measure(sum(row["after"] for row in table), "bytes"),
            },
            tables={"bytes": table},
            notes=[NO_GAIN],
        )

    def _layers(self, model: Any) -> dict[str, Linear]:
        # bitsandbytes leaves what transformers keeps in float32 (T5's wo) as it is.
        kept = set(model._keep_in_fp32_modules or ()) | set(
            model._keep_in_fp32_modules_strict or ()
        )
        layers = {n: m for n, m in block_linears(model).items() if not kept & set(n.split("."))}
        if not layers:
            raise RecipeError(
                f"quantize: {type(model).__name__} holds no linear layers that"
                f" {self.quantizer.format} can store; leave the step out."
            )
        head = model.get_output_embeddings() if self.include_head else None
        if head is not None:
            layers |= {name: module for name, module in model.named_modules() if module is head}
        return layers

    def _group_size(self, layers: dict[str, Linear]) -> int | None:
        """Inputs that share a scale; None for one scale per output channel."""
        widths = sorted({layer.in_features for layer in layers.values()})
        if self.quantizer.format == "bitsandbytes":
            odd = next((width for width in widths if width % BITSANDBYTES_BLOCK), None)
            if odd is not None:
                raise RecipeError(
                    f"quantize.quantizer: {name_of(self.quantizer)} takes inputs that are multiples"
                    f" of {BITSANDBYTES_BLOCK}, not {odd}; use quantizer=nearest."
                )
            return None
        if self.group_size == "channel":
            return None
        common = math.gcd(*widths)
        fitting = [group for group in GROUPS if common % group == 0]
        if self.group_size == "auto" and fitting:
            return fitting[0]
        if self.group_size != "auto" and common % self.group_size == 0:
            return self.group_size
        wide = next(w for w in widths if self.group_size == "auto" or w % self.group_size)
        raise RecipeError(
            f"quantize.group_size: {self.group_size} does not divide all inputs (one has {wide});"
            f" what does: {', '.join(map(str, [*fitting, 'channel']))}."
        )

    def _seal(self, bundle: Bundle, model: Any, replaced: Replaced, *, grid: Grid) -> None:
        """From here on the bundle writes itself packed."""
        linear = {n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
        config = self.quantizer.config(grid, skipped=sorted(linear - set(replaced)))
        bundle.module = model
        bundle.write = partial(write_packed, replaced=replaced, quantization_config=config)
        kind = self.quantizer.format
        bundle.with_card(form="packed", format=kind, requires=(kind,))


def _put(layer: Linear, dense: Tensor) -> float:
    """Set the layer to its grid values, in place; returns ‖W − Q‖² / ‖W‖²."""
    before = layer.weight.detach().float()
    layer.weight.data = dense.to(layer.weight.dtype)
    change = (before - layer.weight.detach().float()).square().sum()
    whole = before.square().sum().clamp(min=torch.finfo(torch.float32).tiny)
    return float(change / whole)


def _bytes_by_part(model: Any, replaced: Replaced, *, dtype: str) -> list[dict[str, Any]]:
    """Bytes of blocks' layers, embedding, head and the rest, stored dense and now."""
    width = torch.finfo(getattr(torch, dtype)).bits // 8
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = head is not None and head.weight is embedding.weight
    names = {embedding.weight: "embedding and tied head" if tied else "embedding"}
    if head is not None and not tied:
        names[head.weight] = "head"
    rows: dict[str, dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        packed = replaced.get(name.removesuffix(".weight")) if name.endswith(".weight") else None
        part = names.get(parameter, "other" if packed is None else "quantized layers")
        row = rows.setdefault(part, {"part": part, "before": 0, "after": 0})
        plain = parameter.numel() * width
        row["before"] += plain
        row["after"] += sum(t.nbytes for t in packed.values()) if packed else plain
    return list(rows.values())
