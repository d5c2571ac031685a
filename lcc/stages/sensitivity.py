"""Sensitivity analysis: the KL that each compression action costs on each part of a model, and its bytes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from lcc.calibration.calibrate import Calibration, encoded_batches
from lcc.calibration.statistics import StoredStats
from lcc.compression.prune_depth import LayerProbe
from lcc.compression.prune_groups import feed_forwards
from lcc.compression.prune_width import ridge_repair
from lcc.compression.quantization_grid import IntGrid
from lcc.compression.sparsity import Pattern
from lcc.config.cards import card, decode_card
from lcc.core.disk import write_text
from lcc.core.errors import ResourceError
from lcc.core.lazy import torch
from lcc.core.progress import Measure
from lcc.methods.criteria.wanda import Wanda
from lcc.methods.quantizers.gptq import Gptq
from lcc.methods.quantizers.nearest import Nearest
from lcc.models.blocks import as_linear, block_linears, blocks
from lcc.pipeline.stage import Outcome
from lcc.stages._input_groups import SEQUENTIAL, Needs
from lcc.stages.quantize import GROUPS

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Linear

    from lcc.calibration.block_walker import Batch
    from lcc.calibration.statistics import LayerStats
    from lcc.compression.prune_groups import PruningGroup
    from lcc.core.types import Form
    from lcc.models.bundle import Bundle
    from lcc.pipeline.stage import Context, Noun

Action = Literal["w8", "w4", "w3", "w4_gptq", "sparse50", "sparse24", "width25"]
NEEDS: dict[str, Needs] = {"w4_gptq": "gram", "width25": "gram", "sparse50": "diagonal",
                           "sparse24": "diagonal"}  # fmt: skip
BITS = {"w8": 8, "w4": 4, "w3": 3, "w4_gptq": 4}
PATTERNS = {"sparse50": "unstructured", "sparse24": "2:4"}
DAMPING = 0.01


@dataclass(frozen=True)
class TrialWeights:
    """Other weights for some layers, and by how many bytes what is stored would grow."""

    weights: dict[Linear, Tensor]
    bytes: int


class Actions:
    """Applies actions to layers of one model, whose inputs look like `stats`."""

    def __init__(self, model: Any, stats: Mapping[str, LayerStats] | None, *, dtype: str) -> None:
        self.stats, self.dtype = stats, dtype
        self.width = torch.finfo(getattr(torch, dtype)).bits // 8
        self.model = model
        self._units: dict[str, PruningGroup] | None = None

    def change(self, action: str, layers: Mapping[str, Linear]) -> TrialWeights | None:
        """What the action makes of these layers; None where it does not apply to any."""
        if action in BITS:
            return self._rounded(action, layers)
        if action in PATTERNS:
            return self._pruned(PATTERNS[action], layers)
        return self._narrowed(layers)

    def _rounded(self, action: str, layers: Mapping[str, Linear]) -> TrialWeights:
        common = math.gcd(*(layer.in_features for layer in layers.values()))
        group = next((size for size in GROUPS if common % size == 0), None)
        grid = IntGrid(BITS[action], group, self.dtype)
        quantizer: Any = decode_card(Gptq if action.endswith("gptq") else Nearest, {})
        weights, stored = {}, 0
        for name, layer in layers.items():
            quantized = quantizer.quantize(layer.weight.detach(), self._look(name, action), grid)
            weights[layer] = quantized.dense()
            stored += sum(tensor.nbytes for tensor in quantized.tensors().values())
        return TrialWeights(weights, stored - self.width * _size(layers.values()))

    def _pruned(self, word: str, layers: Mapping[str, Linear]) -> TrialWeights | None:
        """Zeros are stored like any weight: no byte is saved."""
        pattern, wanda = Pattern(word, 0.5), Wanda()
        weights = {}
        for name, layer in layers.items():
            if layer.in_features % pattern.unit:
                return None
            weight = layer.weight.detach()
            weights[layer] = weight * pattern.mask(wanda.score(weight, self._look(name, "sparse")))
        return TrialWeights(weights, 0)

    def _narrowed(self, layers: Mapping[str, Linear]) -> TrialWeights | None:
        """A quarter of the channels fewer; what reads the rest is repaired, as `width` does."""
        weights, entries = {}, 0
        for unit in self.units.values():
            for name, layer in unit.consumers.items():
                if name not in layers:
                    continue
                weights[layer], lost = self._without_channels(name, layer)
                one = sum(p.numel() // p.shape[dim] for m in unit.members for p, dim in m.parameters())
                entries += lost * one
        return TrialWeights(weights, -self.width * entries) if weights else None

    def _without_channels(self, name: str, layer: Linear) -> tuple[Tensor, int]:
        stats = self._look(name, "width25")
        assert stats is not None and stats.gram is not None
        weight = layer.weight.detach()
        importance = Wanda().score(weight, stats).float().square().sum(dim=0)
        num_kept = round(0.75 * len(importance))
        kept = importance.topk(num_kept).indices.sort().values
        new = torch.zeros_like(weight)
        new[:, kept] = ridge_repair(weight, stats.gram, kept, damping=DAMPING)
        return new, len(importance) - num_kept

    @property
    def units(self) -> dict[str, PruningGroup]:
        if self._units is None:
            self._units = {unit.name: unit for unit in feed_forwards(self.model)}
        return self._units

    def _look(self, name: str, action: str) -> LayerStats | None:
        if action in BITS and NEEDS.get(action) is None:
            return None
        assert self.stats is not None, f"{action} reads statistics"
        return self.stats[name]


def _size(layers: Any) -> int:
    return sum(layer.weight.numel() for layer in layers)


# Try every action on every block alone: what the model would lose, and how many bytes.

DEFAULT: tuple[Action, ...] = ("w8", "w4", "sparse50", "width25")


@card
class Sensitivity:
    """Mean KL to the model as it is, on `max_tokens` tokens of the validation split.

    One part is changed at a time, so that figures of several parts do not add up exactly; they say
    where to be careful. `per: layer` tries single linear layers in place of whole blocks.
    """

    reads: ClassVar[tuple[Noun, ...]] = SEQUENTIAL
    accepts: ClassVar[tuple[Form, ...]] = ("dense",)
    changes_model: ClassVar[bool] = False
    word: ClassVar[str] = "sensitivity"
    revision: ClassVar[int] = 1

    actions: Annotated[tuple[Action, ...], Field(min_length=1)] = DEFAULT
    per: Literal["block", "layer"] = "block"
    samples: Annotated[int, Field(ge=1)] = 32
    max_tokens: Annotated[int, Field(ge=1)] = 1024
    calibration: Calibration = Field(default_factory=Calibration)

    def __post_init__(self) -> None:
        if "sequential" in self.calibration.mode:
            raise ValueError("sensitivity looks at the model as it is; leave calibration.mode out")

    @property
    def needs(self) -> Needs:
        wanted = {NEEDS.get(action) for action in self.actions}
        return "gram" if "gram" in wanted else "diagonal" if "diagonal" in wanted else None

    def run(self, bundle: Bundle, context: Context) -> Outcome:
        model = bundle.load(device=context.device)
        stats = self._statistics(context)
        batches = self._batches(model, bundle, context)
        with as_linear(model):
            parts = self._parts(model)
            actions = Actions(model, stats, dtype=bundle.card.dtype)
            probing = LayerProbe(model, blocks(model), batches)
            rows = self._try(probing, actions, parts, context)
        measured = [row for row in rows if row["kl"] is not None]
        return Outcome(
            measures={
                "num_parts": Measure(len(parts), "count"),
                "num_tokens": Measure(sum(_num_tokens(b) for b in batches), "count"),
                **_means(measured, self.actions),
            },
            tables={"sensitivity": rows},
            notes=_notes(measured),
        )

    def _statistics(self, context: Context) -> StoredStats | None:
        if self.needs is None:
            return None
        if "stats" not in context.inputs:
            raise ResourceError(
                "sensitivity: this model's Grams take more than the recipe's stats_budget; raise"
                " it, or leave width25 and w4_gptq out of stages.sensitivity.actions."
            )
        return StoredStats(context.inputs["stats"] / "stats", device=context.device)

    def _batches(self, model: Any, bundle: Bundle, context: Context) -> list[Batch]:
        """Texts that calibration did not see."""
        data = context.data
        return encoded_batches(
            list(data.rows("validation"))[: self.samples],
            context.required_task.for_data(data),
            bundle.tokenizer,
            model=model,
            batch_tokens=self.calibration.batch_tokens,
            max_length=self.calibration.max_length,
            max_tokens=self.max_tokens,
        )

    def _parts(self, model: Any) -> dict[str, tuple[str, dict[str, Linear]]]:
        """Part → its block and its linear layers, in forward order."""
        parts: dict[str, tuple[str, dict[str, Linear]]] = {}
        linears = block_linears(model)
        for block in blocks(model):
            inside = {n: layer for n, layer in linears.items() if n.startswith(f"{block}.")}
            if self.per == "block":
                parts[block] = (block, inside)
            else:
                parts |= {name: (block, {name: layer}) for name, layer in inside.items()}
        return parts

    def _try(
        self,
        probing: LayerProbe,
        actions: Actions,
        parts: dict[str, tuple[str, dict[str, Linear]]],
        context: Context,
    ) -> list[dict[str, Any]]:
        """One row for every part and action; a killed run goes on after its last one."""
        file = context.state / "rows.json"
        rows: list[dict[str, Any]] = json.loads(file.read_text()) if file.is_file() else []
        todo = [(part, action) for part in parts for action in self.actions]
        with context.progress.track("probe", len(todo), "trial", done=len(rows)) as bar:
            for part, action in todo[len(rows) :]:
                block, layers = parts[part]
                change = actions.change(action, layers)
                kl = None if change is None else probing.divergence(block, change.weights)
                rows.append(
                    {
                        "part": part,
                        "action": action,
                        "kl": kl,
                        "bytes": None if change is None else change.bytes,
                    }
                )
                write_text(file, json.dumps(rows))
                bar.advance()
        return rows


def _num_tokens(batch: Batch) -> int:
    mask = batch.get("decoder_attention_mask")
    return int((batch["attention_mask"] if mask is None else mask).sum())


def _means(rows: list[dict[str, Any]], actions: tuple[str, ...]) -> dict[str, Measure]:
    """Each action's mean over the parts that it applies to."""
    by_action = {a: [row["kl"] for row in rows if row["action"] == a] for a in actions}
    return {f"mean_kl_{a}": Measure(sum(v) / len(v), "nats") for a, v in by_action.items() if v}


def _notes(rows: list[dict[str, Any]]) -> list[str]:
    """The part that each action hurts most."""
    worst: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row["kl"] > worst.get(row["action"], {"kl": -1.0})["kl"]:
            worst[row["action"]] = row
    worst_parts = ", ".join(f"{a} at {row['part']} ({row['kl']:.3g})" for a, row in worst.items())
    return [f"What hurts most, as KL in nats: {worst_parts}."] if worst_parts else []
