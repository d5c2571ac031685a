"""Sparsify the linear layers of the blocks: prune single weights, unstructured or N:M, by a criterion."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from lcc.calibration.calibrate import Calibration, InputGroup, stored_groups
from lcc.calibration.statistics import StoredStats
from lcc.compression.obs_solver import layer_error
from lcc.compression.sparsity import Pattern, Shares, by_depth, by_outliers, outlier_share, uniform
from lcc.config.cards import Choice, card, decode_card, name_of
from lcc.core.errors import GateError, RecipeError
from lcc.core.lazy import torch
from lcc.core.progress import Measure
from lcc.distributed.dist import Distributed
from lcc.methods.criteria import Pruner
from lcc.methods.criteria.wanda import Wanda
from lcc.models.blocks import as_linear, block_linears
from lcc.pipeline.stage import Outcome
from lcc.stages._input_groups import Needs, few_tokens, input_groups, opened, processes, reads

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Linear

    from lcc.calibration.statistics import LayerStats
    from lcc.core.types import Form
    from lcc.models.bundle import Bundle
    from lcc.pipeline.stage import Context, Noun

SAMPLE_BYTES = 1 << 22  # enough to measure how well zeros compress


def facts(dense: Tensor, layer: Linear, stats: LayerStats | None, pattern: Pattern) -> dict[str, Any]:
    """Facts of one sparse layer; GateError when its sparsity was missed."""
    weight = layer.weight.detach()
    zeros, asked = int((weight == 0).sum()), pattern.num_zeros(layer.in_features)
    if zeros < asked * layer.out_features:
        raise GateError(f"sparsify: a layer has {zeros} zeros, {asked} in every row were asked.")
    layer_facts: dict[str, Any] = {"zeros": zeros, "size": weight.numel(), "asked": pattern.sparsity}
    change = weight - dense
    if stats is not None and stats.gram is not None:
        layer_facts["layer_error"] = layer_error(change, dense, stats.gram)
    elif stats is not None:
        lost, whole = ((w.float().square() @ stats.diagonal).sum() for w in (change, dense))
        layer_facts["diagonal_error"] = float(lost / whole.clamp(min=torch.finfo(torch.float32).tiny))
    return layer_facts


def block_of(name: str) -> str:
    """`model.layers.3` of `model.layers.3.mlp.up_proj`: up to the first number."""
    parts = name.split(".")
    number = next(i for i, part in enumerate(parts) if part.isdigit())
    return ".".join(parts[: number + 1])


def stacks(blocks: Mapping[str, int]) -> list[list[str]]:
    """Blocks of one list of modules belong together."""
    stacks: dict[str, list[str]] = {}
    for block in blocks:
        stacks.setdefault(block.rpartition(".")[0], []).append(block)
    return list(stacks.values())


def zipped(dense: Tensor, layer: Linear, *, dtype: str) -> dict[str, float]:
    """Bytes after zlib over bytes before, of a layer as it is stored now and as it was."""
    return {"zipped": _zipped(layer.weight, dtype), "zipped_dense": _zipped(dense, dtype)}


def _zipped(weight: Tensor, dtype: str) -> float:
    stored = weight.detach().to("cpu", getattr(torch, dtype)).contiguous()
    raw = stored.view(torch.uint8).numpy().tobytes()[:SAMPLE_BYTES]
    return len(zlib.compress(raw, 6)) / len(raw)


# Set the least important weights of every layer in the blocks to zero.

# SmolLM2 by SparseGPT: perplexity 28, at 0.5 it is 40, at 0.7 already 147.
MOST_IN_ONE_SHOT, MOST_BY_SIZE = 0.6, 0.5
MOST_IN_BLOCKS = 0.2  # SmolLM2's perplexity goes from 28 to 171 at 0.3, to 1,189 at 0.5


def _wanda() -> Any:
    return decode_card(Wanda, {})


@card
class Sparsify:
    """Zeros per row, N of every M neighbours, or runs of inputs; the shapes stay as they are.

    `allocation`: every block alike, `owl` (blocks with outliers keep more, within `owl_bound`; an
    outlier is a Wanda score above `owl_factor` times the mean), or `atp` (every block goes
    `atp_beta` more than the one before). All keep the total sparsity.
    """

    reads: ClassVar[tuple[Noun, ...]] = ()  # of an instance: see below
    accepts: ClassVar[tuple[Form, ...]] = ("dense",)
    changes_model: ClassVar[bool] = True
    word: ClassVar[str] = "sparsify"
    revision: ClassVar[int] = 3

    criterion: Annotated[Any, Choice("criteria")] = Field(default_factory=_wanda)
    sparsity: Annotated[float, Field(gt=0, lt=1)] = 0.5
    pattern: Literal["unstructured", "2:4", "4:8", "block8", "block16"] = "unstructured"
    allocation: Literal["uniform", "owl", "atp"] = "uniform"
    owl_bound: Annotated[float, Field(ge=0, le=0.5)] = 0.08
    owl_factor: Annotated[float, Field(gt=1)] = 5.0
    atp_beta: Annotated[float, Field(ge=0, le=0.5)] = 0.005
    accept_damage: bool = False
    calibration: Calibration = Field(default_factory=Calibration)
    distributed: Distributed = Field(default_factory=Distributed)

    def __post_init__(self) -> None:
        if ":" in self.pattern and self.sparsity != 0.5:
            raise ValueError(f"pattern {self.pattern} is a sparsity of 0.5, got {self.sparsity}")
        if ":" in self.pattern and self.allocation != "uniform":
            raise ValueError(
                f"pattern {self.pattern} leaves no choice to allocation {self.allocation}; use"
                " pattern unstructured"
            )
        object.__setattr__(self, "reads", reads(self.needs, self.calibration))
        object.__setattr__(self, "distributed", processes(self.distributed, self.needs))

    @property
    def needs(self) -> Needs:
        needs: Needs = self.criterion.needs
        return needs or ("diagonal" if self.allocation == "owl" else None)

    def check(self, config: dict[str, Any]) -> None:
        """Refuse, before any work, what is known to ruin models, or cannot be done in one pass."""
        word = name_of(self.criterion)
        if hasattr(self.criterion, "score_by_gradient"):
            raise RecipeError(
                f"sparsify.criterion: {word} reads gradients, which only width takes; use sparsegpt or wanda."
            )
        most = MOST_BY_SIZE if word == "magnitude" else MOST_IN_ONE_SHOT
        what = word
        if self.pattern.startswith("block"):
            most, what = MOST_IN_BLOCKS, f"{word} in {self.pattern}"
        if self.sparsity > most and not self.accept_damage:
            raise RecipeError(
                f"sparsify.sparsity: {self.sparsity:g} by {what} in one shot usually ruins a model"
                f" (above {most:g} its perplexity explodes); ask for less, or set"
                " accept_damage=true and heal."
            )
        if self.allocation == "owl" and "sequential" in self.calibration.mode:
            raise RecipeError(
                "sparsify.allocation: owl looks at every block before it changes the first; set"
                " calibration.mode=dense, or take allocation=atp."
            )

    def run(self, bundle: Bundle, context: Context) -> Outcome:
        model = opened(bundle, context, needs=self.needs)
        self.check(model.config.to_dict())
        with as_linear(model):
            layers = block_linears(model)
            self._refuse(layers, model)
            patterns = self._patterns(context, layers)
            sample, warnings = next(iter(layers)), list[str]()
            groups = input_groups(bundle, context, layers, self.calibration, needs=self.needs)
            for group in groups:
                warnings = warnings or self._warnings(group.stats)
                dense = {name: layer.weight.detach().clone() for name, layer in group.layers.items()}
                self._prune(group, patterns)
                for name, layer in group.layers.items():
                    groups.facts[name] = facts(dense[name], layer, group.stats, patterns[name])
                if sample in dense:
                    dtype = bundle.card.dtype
                    groups.facts[sample] |= zipped(dense[sample], group.layers[sample], dtype=dtype)
        bundle.module = model
        bundle.with_card(sparse=self._word())
        by_layer = {name: groups.facts[name] for name in layers}
        return replace(self._outcome(by_layer, warnings), bundle=bundle)

    def _refuse(self, layers: dict[str, Linear], model: Any) -> None:
        if not layers:
            raise RecipeError(
                f"sparsify: {type(model).__name__} has no linear layers in blocks; leave it out."
            )
        unit = Pattern(self.pattern, self.sparsity).unit
        odd = next((n for n, layer in layers.items() if layer.in_features % unit), None)
        if odd is not None:
            raise RecipeError(
                f"sparsify.pattern: layer {odd!r} has {layers[odd].in_features} inputs, not a"
                f" multiple of {unit}; use pattern=unstructured."
            )

    def _patterns(self, context: Context, layers: Mapping[str, Linear]) -> dict[str, Pattern]:
        """The pattern of each layer: its block's share."""
        owners = {name: block_of(name) for name in layers}
        sizes: dict[str, int] = {}
        for name, layer in layers.items():
            sizes[owners[name]] = sizes.get(owners[name], 0) + layer.weight.numel()
        if self.allocation == "owl":
            outliers = self._outliers(context, layers, owners)
            shares = by_outliers(outliers, sizes, self.sparsity, bound=self.owl_bound)
        elif self.allocation == "atp":
            shares = by_depth(stacks(sizes), sizes, self.sparsity, beta=self.atp_beta)
        else:
            shares = uniform(sizes, self.sparsity)
        return {name: Pattern(self.pattern, shares[owners[name]]) for name in layers}

    def _outliers(self, context: Context, layers: Mapping[str, Linear], owners: Mapping[str, str]) -> Shares:
        assert "stats" in context.inputs, "check() lets owl pass with stored statistics only"
        stats = StoredStats(context.inputs["stats"] / "stats", device=context.device)
        scores: dict[str, list[Tensor]] = {}
        for group in stored_groups(stats, layers):  # Every process looks at all of them.
            for name, layer in group.layers.items():
                score = _wanda().score(layer.weight.detach(), group.stats)
                scores.setdefault(owners[name], []).append(score)
        return {b: outlier_share(block_scores, factor=self.owl_factor) for b, block_scores in scores.items()}

    def _prune(self, group: InputGroup, patterns: Mapping[str, Pattern]) -> None:
        """Make the zeros of these layers, in place."""
        if isinstance(self.criterion, Pruner):
            assert group.stats is not None
            sizes = [layer.out_features for layer in group.layers.values()]
            asked = [patterns[name] for name in group.layers]
            pruned = group.split(self.criterion.prune(group.weight(), group.stats, asked, sizes))
            for name, layer in group.layers.items():
                layer.weight.data.copy_(pruned[name])
            return
        for name, layer in group.layers.items():
            weight = layer.weight.detach()
            weight.mul_(patterns[name].mask(self.criterion.score(weight, group.stats)))

    def _warnings(self, stats: LayerStats | None) -> list[str]:
        if stats is None or stats.gram is None:
            return []
        return few_tokens(stats.num_tokens, len(stats.diagonal), self.calibration)

    def _outcome(self, by_layer: Mapping[str, dict[str, Any]], warnings: list[str]) -> Outcome:
        achieved = sum(f["zeros"] for f in by_layer.values()) / sum(f["size"] for f in by_layer.values())
        table = [
            {"layer": name, "asked": fact["asked"], "sparsity": fact["zeros"] / fact["size"]}
            | {key: fact[key] for key in ("layer_error", "diagonal_error") if key in fact}
            for name, fact in by_layer.items()
        ]
        measures = {"sparsity": Measure(achieved, "share"), "bytes_saved": Measure(0, "bytes")}
        errors = [row["layer_error"] for row in table if "layer_error" in row]
        if errors:
            measures["layer_error"] = Measure(sum(errors) / len(errors), "share")
        sample = next(fact for fact in by_layer.values() if "zipped" in fact)
        note = (
            "0 bytes saved, no speed: zeros are stored and multiplied like any weight. Zipped"
            f" (zlib), a sparse layer takes {sample['zipped']:.0%} of its bytes; the dense one took"
            f" {sample['zipped_dense']:.0%}."
        )
        return Outcome(measures=measures, tables={"layers": table}, notes=[note], warnings=warnings)

    def _word(self) -> str:
        fixed = ":" in self.pattern
        return self.pattern if fixed else f"{self.sparsity:.0%} {self.pattern}"
