"""Quantize the linear layers of the blocks to 8, 4, 3 or 2 bits in a format that loads elsewhere."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from lcc.calibration.calibrate import Calibration, InputGroup
from lcc.compression.packed_format import input_rounding, part_table, write_packed
from lcc.compression.quantization_grid import IntGrid
from lcc.compression.quantize import Rounding, mixed_grids, note_changes
from lcc.compression.smoothquant import smooth, smoothed
from lcc.config.cards import Choice, card, decode_card, name_of
from lcc.core.errors import RecipeError, did_you_mean
from lcc.core.lazy import torch, transformers
from lcc.core.progress import Measure
from lcc.distributed.dist import Distributed
from lcc.methods.quantizers import Smoother
from lcc.methods.quantizers.nearest import Nearest
from lcc.models.blocks import as_linear, block_linears
from lcc.models.formats import round_inputs
from lcc.pipeline.stage import Outcome
from lcc.stages._input_groups import Needs, input_groups, opened, processes, reads

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Linear

    from lcc.core.types import Form
    from lcc.models.bundle import Bundle
    from lcc.pipeline.stage import Context, Noun

Bits = Literal[2, 3, 4, 8]
GROUPS = (128, 64, 32, 16, 8)
# transformers initialises them by their dense weights, so it cannot keep them packed.
UNREADABLE = ("t5", "mt5", "umt5", "longt5")
NO_GAIN = "Fewer bytes, no faster: this format has no fast kernel here; it is read dequantized."
AS_STORED = (
    "Fewer bytes: lcc's own engine multiplies these codes as they are stored where that is faster;"
    " transformers itself makes dense weights of them first."
)
INTEGERS = "Inputs are rounded to 8 bits too; GPU engines multiply in integers, this one in floats."
FEW_READERS = (
    "transformers reads this; vLLM's kernels take symmetric grids of 4 and 8 bits, and no packed embeddings."
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
        """Every number of bits in the options, by its key."""
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
        grid = IntGrid(self.bits, size, bundle.card.dtype, self.symmetric)
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
        self, bundle: Bundle, context: Context, layers: dict[str, Linear], grids: dict[str, IntGrid]
    ) -> dict[str, Tensor]:
        """What was moved into the weights, by the first layer of each input."""
        if not isinstance(self.quantizer, Smoother):
            return {}
        if "stats" not in context.inputs:
            raise RecipeError(
                f"quantize.quantizer: {name_of(self.quantizer)} moves scales between layers before"
                " the first is rounded, and needs statistics on disk; set calibration.mode=dense."
            )
        groups = input_groups(bundle, context, layers, self.calibration, needs=self.needs, everybody=True)

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
        self, bundle: Bundle, context: Context, layers: dict[str, Linear], grid: IntGrid
    ) -> dict[str, IntGrid]:
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
        kept = set(model._keep_in_fp32_modules or ()) | set(model._keep_in_fp32_modules_strict or ())
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
        notes = [
            INTEGERS
            if getattr(self.quantizer, "rounds_inputs", False)
            else AS_STORED
            if writes and is_grid
            else NO_GAIN
        ]
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
        {"layer": name, "bits": grid.bits, **rounding.facts[name]} for name, grid in rounding.grids.items()
    ]


# Which layer of a model gets which grid, and what no format or reader takes.


def refuse(stage: Quantize, config: dict[str, Any]) -> None:
    """Raise RecipeError, in one sentence, for what this model's family or format does not allow."""
    word = name_of(stage.quantizer)
    for key, bits in stage.all_bits().items():
        if bits not in stage.quantizer.bits:
            allowed = " or ".join(map(str, stage.quantizer.bits))
            raise RecipeError(f"quantize.{key}: {word} stores {allowed} bits, not {bits}.")
        if not stage.accept_damage and is_damaging(word, bits):
            raise RecipeError(
                f"quantize.{key}: {bits} bits with {word} usually ruin a model"
                f" ({1 << bits} values for a weight); take {_next_bits(word, bits)} bits, or set"
                " accept_damage=true."
            )
    _refuse_budget(stage, word)
    if isinstance(stage.quantizer, Smoother) and "sequential" in stage.calibration.mode:
        raise RecipeError(
            f"quantize.quantizer: {word} moves scales between layers before the first is rounded;"
            " set calibration.mode=dense."
        )
    if stage.quantizer.format == "bitsandbytes":
        _refuse_for_bitsandbytes(stage, word)
    if getattr(stage.quantizer, "rounds_inputs", False):
        _refuse_for_inputs(stage, word, config)
    if stage.is_mixed:
        _refuse_mixture(stage, config)
    if stage.bits_for and config.get("architectures"):
        refuse_patterns(stage, linear_names(config))
    width = config.get("hidden_size") or config.get("d_model") or config.get("n_embd")
    if isinstance(stage.group_size, int) and width and width % stage.group_size:
        raise RecipeError(_indivisible(stage.group_size, width, common=width))
    if stage.include_head and config.get("tie_word_embeddings", True):
        raise RecipeError(
            "quantize.include_head: the head is tied to the embedding; set"
            " include_embeddings=true, which quantizes both as one."
        )


def is_damaging(quantizer: str, bits: int) -> bool:
    """Whether so few bits are known to ruin models."""
    return bits == 2 or (bits == 3 and quantizer == "nearest")


def _next_bits(word: str, bits: int) -> str:
    return "3 or 4" if bits == 2 and word != "nearest" else "4"


def _refuse_budget(stage: Quantize, word: str) -> None:
    if stage.average_bits is None:
        return
    if stage.bits_for:
        raise RecipeError("quantize.average_bits: bits_for says the bits of layers already; leave one out.")
    least, most = min(stage.offered_bits()), max(stage.offered_bits())
    if not least <= stage.average_bits <= most:
        raise RecipeError(
            f"quantize.average_bits: {word} mixes {least} to {most} bits, got"
            f" {stage.average_bits:g}; stay between them."
        )
    if stage.calibration.mode in ("sequential", "true_sequential"):
        raise RecipeError(
            "quantize.average_bits: weighing all layers against each other needs calibration.mode=dense."
        )


def _refuse_for_bitsandbytes(stage: Quantize, word: str) -> None:
    mine = {
        "group_size": stage.group_size != "auto",
        "symmetric": not stage.symmetric,
        "bits_for": bool(stage.bits_for),
        "average_bits": stage.average_bits is not None,
        "include_embeddings": stage.include_embeddings,
    }
    key = next((key for key, is_set in mine.items() if is_set), None)
    if key is not None:
        raise RecipeError(
            f"quantize.{key}: {word} has blocks of its own, the same for every layer; leave it"
            " out, or use quantizer=scale_search."
        )


def _refuse_for_inputs(stage: Quantize, word: str, config: dict[str, Any]) -> None:
    if stage.group_size not in ("auto", "channel") or not stage.symmetric:
        key = "symmetric" if not stage.symmetric else "group_size"
        raise RecipeError(
            f"quantize.{key}: integer kernels take one symmetric scale per channel; leave it out with {word}."
        )
    if stage.include_embeddings:
        raise RecipeError(
            f"quantize.include_embeddings: {word} rounds the inputs of layers, and an embedding"
            " has none; leave it false."
        )
    _refuse_unreadable(config, f"quantize.quantizer: {word}", "quantizer=nearest bits=8")


def _refuse_mixture(stage: Quantize, config: dict[str, Any]) -> None:
    key = "bits_for" if stage.bits_for else "average_bits"
    if not stage.symmetric or stage.include_embeddings:
        other = "include_embeddings" if stage.include_embeddings else "symmetric"
        raise RecipeError(
            f"quantize.{key}: transformers reads layers of several bits only packed, and cannot"
            f" keep {'embeddings' if stage.include_embeddings else 'zero points'} so; leave"
            f" {other} as it is by default, or take one number of bits."
        )
    _refuse_unreadable(config, f"quantize.{key}: layers of several bits", "one number of bits")


def _refuse_unreadable(config: dict[str, Any], what: str, way_out: str) -> None:
    if config.get("model_type") in UNREADABLE:
        raise RecipeError(f"{what}: transformers cannot keep a {config['model_type']} packed; use {way_out}.")


def layer_bits(stage: Quantize, layers: Iterable[str]) -> dict[str, int]:
    """The bits of each layer; of the patterns in `bits_for`, the first that matches."""
    refuse_patterns(stage, layers)
    return {
        name: next((b for p, b in stage.bits_for.items() if fnmatchcase(name, p)), stage.bits)
        for name in layers
    }


def refuse_patterns(stage: Quantize, layers: Iterable[str]) -> None:
    """Raise RecipeError for a pattern that matches none of these names."""
    for pattern in stage.bits_for:
        if not any(fnmatchcase(name, pattern) for name in layers):
            stem = pattern.strip("*").strip(".").rpartition(".")[2]
            hint = did_you_mean(stem, {name.rpartition(".")[2] for name in layers})
            raise RecipeError(f"quantize.bits_for: no layer matches {pattern!r}{hint}")


def linear_names(config: dict[str, Any]) -> list[str]:
    """The linear layers that a model of this config has, read off a skeleton without weights."""
    known = transformers.AutoConfig.for_model(**config)
    with torch.device("meta"):
        model = getattr(transformers, config["architectures"][0])._from_config(known)
    return [name for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)]


def common_group_size(stage: Quantize, layers: Mapping[str, Linear]) -> int | None:
    """Inputs that share a scale, in every layer; None for one scale per output channel."""
    widths = sorted({_width(layer) for layer in layers.values()})
    if stage.quantizer.format == "bitsandbytes":
        block = getattr(stage.quantizer, "block", 1)
        odd = next((width for width in widths if width % block), None)
        if odd is not None:
            raise RecipeError(
                f"quantize.quantizer: {name_of(stage.quantizer)} takes inputs that are multiples"
                f" of {block}, not {odd}; use quantizer=scale_search."
            )
        return None
    if stage.group_size == "channel" or getattr(stage.quantizer, "rounds_inputs", False):
        return None
    common = math.gcd(*widths)
    if stage.group_size == "auto":
        fitting = [group for group in GROUPS if common % group == 0]
        if fitting:
            return fitting[0]
        odd = next(width for width in widths if width % GROUPS[-1])
        raise RecipeError(_indivisible("auto", odd, common=common))
    if common % stage.group_size == 0:
        return stage.group_size
    odd = next(width for width in widths if width % stage.group_size)
    raise RecipeError(_indivisible(stage.group_size, odd, common=common))


def _width(layer: Any) -> int:
    return int(layer.weight.shape[1])


def _indivisible(group: int | str, width: int, *, common: int) -> str:
    fitting = [str(group) for group in GROUPS if common % group == 0]
    return (
        f"quantize.group_size: {group} does not divide all inputs (one has {width}); what does:"
        f" {', '.join([*fitting, 'channel'])}."
    )
