"""Store the linear layers of the blocks with 8, 4, 3 or 2 bits in a format that loads elsewhere."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from lcc.compression.grids import Grid
from lcc.compression.mixing import mixed_grids, note_changes
from lcc.compression.packing import input_rounding, part_table, write_packed
from lcc.compression.rounding import Rounding
from lcc.compression.smoothing import smooth, smoothed
from lcc.core.catalog import Choice, name_of
from lcc.core.decode import card, decode_card
from lcc.core.errors import RecipeError
from lcc.core.lazy import torch
from lcc.engine.blocks import as_linear, block_linears
from lcc.engine.calibration import Calibration, InputGroup
from lcc.methods.quantizers import Smoother
from lcc.methods.quantizers.nearest import Nearest
from lcc.parts.dist import Distributed
from lcc.parts.packed import round_inputs
from lcc.stage import Measure, Outcome
from lcc.stages._calibrated import Needs, input_groups, opened, processes, reads
from lcc.stages._grids import common_group_size, is_damaging, layer_bits, refuse

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor
    from torch.nn import Linear

    from lcc.parts.checkpoint import Form
    from lcc.parts.model import Bundle
    from lcc.stage import Context, Noun

Bits = Literal[2, 3, 4, 8]
NO_GAIN = "Fewer bytes, no faster: this format has no fast kernel here; it is read dequantized."
AS_STORED = (
    "Fewer bytes: lcc's own engine multiplies these codes as they are stored where that is faster;"
    " transformers itself makes dense weights of them first."
)
INTEGERS = "Inputs are rounded to 8 bits too; GPU engines multiply in integers, this one in floats."
FEW_READERS = (
    "transformers reads this; vLLM's kernels take symmetric grids of 4 and 8 bits, and no packed"
    " embeddings."
)


def _nearest() -> Any:
    return decode_card(Nearest, {})


@card
class Quantize:
    """Weights onto a grid; the model in memory then holds exactly what the file does.

    `bits_for` maps patterns of layer names to bits of their own; `average_bits` chooses the bits
    of every layer by its error. Embedding and head have no calibration: their scales are searched
    for the least change of the weight.
    """

    reads: ClassVar[tuple[Noun, ...]] = ()  # of an instance: see below
    accepts: ClassVar[tuple[Form, ...]] = ("dense",)
    produces: ClassVar[Form] = "packed"
    changes_model: ClassVar[bool] = True
    word: ClassVar[str] = "quantize"
    revision: ClassVar[int] = 3

    quantizer: Annotated[Any, Choice("quantizers")] = Field(default_factory=_nearest)
    bits: Bits = 8
    group_size: Annotated[int, Field(ge=8)] | Literal["auto", "channel"] = "auto"
    symmetric: bool = True
    include_embeddings: bool = False
    include_head: bool = False
    bits_for: dict[str, Bits] = Field(default_factory=dict)
    average_bits: Annotated[float, Field(gt=0)] | None = None
    accept_damage: bool = False
    calibration: Calibration = Field(default_factory=Calibration)
    distributed: Distributed = Field(default_factory=Distributed)

    def __post_init__(self) -> None:
        object.__setattr__(self, "reads", reads(self.needs, self.calibration))
        object.__setattr__(self, "distributed", processes(self.distributed, self.needs))

    @property
    def needs(self) -> Needs:
        needs: Needs = self.quantizer.needs
        return needs if self.average_bits is None else "gram"

    @property
    def is_mixed(self) -> bool:
        """Whether layers may get several numbers of bits."""
        several = any(bits != self.bits for bits in self.bits_for.values())
        return several or self.average_bits is not None

    def all_bits(self) -> Mapping[str, int]:
        """Every number of bits that was asked for, by the key that asks."""
        if self.average_bits is not None:
            return {}
        return {"bits": self.bits} | {f"bits_for.{p}": bits for p, bits in self.bits_for.items()}

    def offered_bits(self) -> list[int]:
        """What a budget may choose from."""
        word = name_of(self.quantizer)
        safe = [b for b in self.quantizer.bits if self.accept_damage or not is_damaging(word, b)]
        return sorted(safe)

    def check(self, config: dict[str, Any]) -> None:
        """Refuse, before any work, what no reader could load."""
        refuse(self, config)

    def run(self, bundle: Bundle, context: Context) -> Outcome:
        model = self._open(bundle, context)
        self.check(model.config.to_dict())
        # Readers of bitsandbytes know GPT-2's Conv1D; those of compressed-tensors do not.
        with as_linear(model) if self.quantizer.format == "bitsandbytes" else nullcontext():
            return self._run(bundle, context, model)

    def _run(self, bundle: Bundle, context: Context, model: Any) -> Outcome:
        layers, others = self._targets(model)
        size = common_group_size(self, {**layers, **others})
        grid = Grid(self.bits, size, bundle.card.dtype, self.symmetric)
        bits = layer_bits(self, {**layers, **others})
        grids = {name: replace(grid, bits=number) for name, number in bits.items()}
        if self.average_bits is not None:
            grids |= self._mixed(bundle, context, layers, grid)
        moved = self._smooth(bundle, context, layers, grids)
        groups = input_groups(bundle, context, layers, self.calibration, needs=self.needs)
        rounding = Rounding(self.quantizer, grids, facts=groups.facts, packed=groups.packed)
        with context.progress.track("quantize", len(grids), "layer") as bar:
            for name, layer in others.items():  # First, so that the blocks see it where they can.
                rounding.add_alone(name, layer)
                bar.advance()
            for group in groups:
                rounding.add(_after(group, moved))
                bar.advance(len(group.layers))
        self._seal(bundle, model, rounding)
        outcome = self._outcome(bundle, rounding)
        if isinstance(self.quantizer, Smoother):
            outcome.measures["num_smoothed_inputs"] = Measure(len(moved), "count")
        return outcome

    def _smooth(
        self, bundle: Bundle, context: Context, layers: dict[str, Linear], grids: dict[str, Grid]
    ) -> dict[str, Tensor]:
        """What was moved into the weights, by the first layer of each input."""
        if not isinstance(self.quantizer, Smoother):
            return {}
        if "stats" not in context.inputs:
            raise RecipeError(
                f"quantize.quantizer: {name_of(self.quantizer)} moves scales between layers before"
                " the first is rounded, and needs statistics on disk; set calibration.mode=dense."
            )
        groups = input_groups(
            bundle, context, layers, self.calibration, needs=self.needs, everybody=True
        )

        def choose(group: InputGroup) -> Tensor:
            assert group.stats is not None
            grid = min((grids[name] for name in group.layers), key=lambda grid: grid.bits)
            scale: Tensor = self.quantizer.smoothing(group.weight().float(), group.stats, grid)
            return scale

        return smooth(bundle.module, groups, choose, dtype=bundle.card.dtype)

    def _open(self, bundle: Bundle, context: Context) -> Any:
        whole = self.include_embeddings or self.include_head or isinstance(self.quantizer, Smoother)
        if whole:
            return bundle.load(device=context.device)  # Of a streamed model, only blocks are there.
        return opened(bundle, context, needs=self.needs)

    def _mixed(
        self, bundle: Bundle, context: Context, layers: dict[str, Linear], grid: Grid
    ) -> dict[str, Grid]:
        assert self.average_bits is not None
        if "stats" not in context.inputs:
            raise RecipeError(
                "quantize.average_bits: weighing all layers against each other needs statistics on"
                " disk; set calibration.mode=dense, or take bits_for."
            )
        groups = input_groups(bundle, context, layers, self.calibration, needs="gram")
        offered = self.offered_bits()
        note_changes(groups, grid, offered=offered)
        return mixed_grids(groups.facts, grid, offered=offered, average=self.average_bits)

    def _targets(self, model: Any) -> tuple[dict[str, Linear], dict[str, Any]]:
        """The linear layers of the blocks, and embedding and head where asked."""
        # bitsandbytes leaves what transformers keeps in float32 (T5's wo) as it is.
        kept = set(model._keep_in_fp32_modules or ()) | set(
            model._keep_in_fp32_modules_strict or ()
        )
        layers = {n: m for n, m in block_linears(model).items() if not kept & set(n.split("."))}
        if not layers:
            raise RecipeError(
                f"quantize: {type(model).__name__} holds no linear layers that"
                f" {self.quantizer.format} can store; use quantizer=bnb_int8, or leave it out."
            )
        head = model.get_output_embeddings() if self.include_head else None
        embedding = model.get_input_embeddings() if self.include_embeddings else None
        outside = [module for module in (embedding, head) if module is not None]
        return layers, {n: m for n, m in model.named_modules() if any(m is o for o in outside)}

    def _seal(self, bundle: Bundle, model: Any, rounding: Rounding) -> None:
        """From here on the bundle writes itself packed."""
        grids = rounding.grids
        kinds = {type(model.get_submodule(name)) for name in grids}
        embeds = any(issubclass(kind, torch.nn.Embedding) for kind in kinds)
        stored = (torch.nn.Linear, torch.nn.Embedding) if embeds else (torch.nn.Linear,)
        dense = {n for n, m in model.named_modules() if isinstance(m, stored)} - set(grids)
        targets = [kind.__name__ for kind in stored]
        config = self.quantizer.config(grids, targets=targets, skipped=sorted(dense))
        for name in grids:
            if activations := input_rounding(config):
                round_inputs(model.get_submodule(name), activations)
        bundle.module = model
        bundle.write = partial(write_packed, replaced=rounding.packed, quantization_config=config)
        kind = self.quantizer.format
        bundle.with_card(form="packed", format=kind, requires=(kind,))

    def _outcome(self, bundle: Bundle, rounding: Rounding) -> Outcome:
        facts = {name: rounding.facts[name] for name in rounding.grids}
        errors = [fact["weight_error"] for fact in facts.values()]
        outputs = [f["output_error"] for f in facts.values() if "output_error" in f]
        packed_bytes = {name: fact["bytes"] for name, fact in facts.items()}
        table = part_table(bundle.module, packed_bytes, dtype=bundle.card.dtype)
        measures = {
            "num_quantized_layers": Measure(len(errors), "count"),
            "weight_error": Measure(sum(errors) / len(errors), "share"),
            "bytes_before": Measure(sum(row["before"] for row in table), "bytes"),
            "bytes_after": Measure(sum(row["after"] for row in table), "bytes"),
        }
        if outputs:
            measures["output_error"] = Measure(sum(outputs) / len(outputs), "share")
        bits = {grid.bits for grid in rounding.grids.values()}
        tables = {"bytes": table, **({"bits": bits_table(rounding)} if len(bits) > 1 else {})}
        writes = bundle.card.head in ("causal", "seq2seq")
        is_grid = self.quantizer.format == "compressed-tensors"
        notes = [INTEGERS if getattr(self.quantizer, "rounds_inputs", False)
                 else AS_STORED if writes and is_grid else NO_GAIN]  # fmt: skip
        if min(bits) < 4 or not self.symmetric or self.include_embeddings:
            notes.append(FEW_READERS)
        if is_grid:
            share = self.bits / torch.finfo(getattr(torch, bundle.card.dtype)).bits
            notes += kept_parts(table, f"{share:.0%}")
        return Outcome(bundle=bundle, measures=measures, tables=tables, notes=notes)


def kept_parts(table: list[dict[str, Any]], share: str) -> list[str]:
    """What embedding and head cost as they are, and would cost in the bits of the layers."""
    whole = sum(row["after"] for row in table)
    return [
        f"The {row['part']} stays as it is, {row['after'] / whole:.0%} of all bytes;"
        f" {'include_head' if row['part'] == 'head' else 'include_embeddings'}=true would store it"
        f" in about {share} of its own."
        for row in table
        if row["part"] not in ("quantized layers", "other") and row["after"] == row["before"]
    ]


def _after(group: InputGroup, moved: Mapping[str, Tensor]) -> InputGroup:
    """The group as it is after smoothing."""
    scale = moved.get(next(iter(group.layers)))
    if scale is None or group.stats is None:
        return group
    return InputGroup(group.layers, smoothed(group.stats, scale))


def bits_table(rounding: Rounding) -> list[dict[str, Any]]:
    """One row per layer: its bits, and what they cost."""
    return [
        {"layer": name, "bits": grid.bits, **rounding.facts[name]}
        for name, grid in rounding.grids.items()
    ]
