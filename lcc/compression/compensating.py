"""A quantized layer and the low-rank change that makes up for its error, stored as a peft adapter.

QERA (arXiv 2410.06040) has the best change in closed form; LoftQ (arXiv 2310.08659) quantizes what
the change leaves, and so on in turns.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lcc.compression.lowrank import Whitening, decompose, output_share, whitening
from lcc.compression.rounding import Rounding, by_grid
from lcc.core.lazy import peft, safetensors_torch, torch
from lcc.engine.calibration import InputGroup
from lcc.parts.folder import read_json

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Linear

Change = tuple["Tensor", "Tensor"]  # up (out, rank), down (rank, in), as they are stored
# A classifier without a type of its own: peft would look for a head beside the adapter.
TASK_TYPES = {"causal": "CAUSAL_LM", "seq2seq": "SEQ_2_SEQ_LM"}


@dataclass(frozen=True)
class _Turn:
    """A layer's quantized base with the change beside it, and what of its outputs is lost."""

    quantized: Any
    change: Change
    alone: float
    left: float

    def added(self) -> Tensor:
        up, down = self.change
        return up.float() @ down.float()


@dataclass
class Compensation:
    """Makes up with changes of `rank` for what `rounding` loses; the best of `num_turns` stays."""

    rounding: Rounding
    rank: int
    num_turns: int
    damping: float
    dtype: str  # of the stored changes
    changes: dict[str, Change] = field(default_factory=dict)
    errors: dict[str, tuple[float, float]] = field(default_factory=dict)  # of outputs: alone, with

    def add(self, group: InputGroup) -> None:
        """Quantize the layers of one input; in memory each is then its base and its change."""
        assert group.stats is not None and group.stats.gram is not None
        whitened = whitening(group.stats.gram, damping=self.damping)
        for part, grid in by_grid(group, self.rounding.grids):
            # What needs no statistics (NF4) may keep a state of its own for every layer.
            alone = self.rounding.quantizer.needs is None
            for layers in [{n: m} for n, m in part.layers.items()] if alone else [part.layers]:
                self._add(InputGroup(layers, part.stats), grid, whitened, group.stats.gram)

    def _add(self, part: InputGroup, grid: Any, whitened: Whitening, gram: Tensor) -> None:
        sizes = [layer.out_features for layer in part.layers.values()]
        best: dict[str, _Turn] = {}
        added = torch.zeros_like(part.weight())
        alone: dict[str, float] = {}
        for _ in range(self.num_turns):
            rest = self.rounding.quantizer.quantize(part.weight() - added, part.stats, grid)
            turns = {}
            for (name, layer), own in zip(part.layers.items(), rest.split(sizes), strict=True):
                turns[name] = turn = self._turn(layer, own, whitened, gram)
                alone.setdefault(name, turn.alone)
                if turn.left < (best[name].left if name in best else math.inf):
                    best[name] = turn
            added = torch.cat([turn.added() for turn in turns.values()]).to(added.dtype)
        for name, layer in part.layers.items():
            self.rounding.put(name, layer, best[name].quantized, gram=gram)
            layer.weight.data += best[name].added().to(layer.weight.dtype)
            self.changes[name] = best[name].change
            self.errors[name] = (alone[name], best[name].left)

    def _turn(self, layer: Linear, quantized: Any, whitened: Whitening, gram: Tensor) -> _Turn:
        weight = layer.weight.detach().float()
        missing = weight - quantized.dense().float()
        up, down = decompose(missing, whitened).factors(self.rank)
        kind = getattr(torch, self.dtype)
        change = up.to(kind).contiguous(), down.to(kind).contiguous()
        turn = _Turn(quantized, change, output_share(missing, weight, gram), 0.0)
        left = output_share(missing - turn.added(), weight, gram)
        return _Turn(quantized, change, turn.alone, left)


def write_adapter(changes: Mapping[str, Change], folder: Path, *, head: str, base: str) -> None:
    """The changes as peft reads them; nothing in it names this machine."""
    folder.mkdir(parents=True, exist_ok=True)
    ranks = {name: down.shape[0] for name, (_, down) in changes.items()}
    rank = max(ranks.values())
    narrow = {name: r for name, r in ranks.items() if r < rank}  # of a layer with fewer outputs
    config = peft.LoraConfig(
        r=rank, lora_alpha=rank, target_modules=sorted(changes), bias="none", inference_mode=True,
        rank_pattern=narrow, alpha_pattern=narrow,
        task_type=TASK_TYPES.get(head), base_model_name_or_path=base,
    )  # fmt: skip
    config.save_pretrained(str(folder))
    file = folder / "adapter_config.json"
    # A set in peft: its order changes between processes.
    facts = read_json(file) | {"target_modules": sorted(changes)}
    file.write_text(json.dumps(facts, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    tensors: dict[str, Tensor] = {}
    for name, (up, down) in changes.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = down.cpu()
        tensors[f"base_model.model.{name}.lora_B.weight"] = up.cpu()
    safetensors_torch.save_file(
        tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"}
    )
