"""Low-rank decompositions of weights (SVD-LLM), and low-rank changes after quantization (QERA, LoftQ).

QERA (arXiv 2410.06040) has the best change in closed form; LoftQ (arXiv 2310.08659) quantizes what
the change leaves, and so on in turns.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lcc.calibration.calibrate import InputGroup
from lcc.compression.quantize import Rounding, by_grid
from lcc.core.lazy import peft, safetensors_torch, torch
from lcc.models.card import read_json, write_config

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Linear

# Low-rank changes of a layer that keep its outputs, by what its inputs look like.
#
# The error of a change Δ of the weight is tr(Δ H Δᵀ) with the Gram H = Σ x xᵀ = R Rᵀ, and that is
# the squared Frobenius norm of Δ R: the best change of rank k is the truncated SVD of Δ R times R⁻¹
# (Eckart–Young). SVD-LLM v2 (arXiv 2503.12340) and QERA (arXiv 2410.06040) both rest on it.

LEAST = 1e-10  # of the largest eigenvalue: directions that no input ever took
LEAST_SHARE = 0.25  # of the uniform rank, for a layer that others outbid


@dataclass(frozen=True)
class Whitening:
    """R and R⁻¹ of a Gram, float64: inputs times R⁻ᵀ are uncorrelated."""

    root: Tensor  # (in, in)
    inverse: Tensor  # (in, in)


def whitening(gram: Tensor, *, damping: float = 0.0) -> Whitening:
    """From the eigenvalues, which a Gram without full rank has too; `damping` of their mean."""
    h = gram.double()
    h = h + damping * h.diagonal().mean() * torch.eye(len(h), dtype=h.dtype, device=h.device)
    values, vectors = torch.linalg.eigh(h)
    scale = values.clamp(min=LEAST * float(values[-1].clamp(min=1e-300))).sqrt()
    return Whitening(vectors * scale, (vectors / scale).T)


@dataclass(frozen=True)
class Decomposition:
    """A matrix as `left` (out, k) · diag(`values`) · `right` (k, in), the largest values first."""

    left: Tensor
    values: Tensor
    right: Tensor

    def factors(self, rank: int) -> tuple[Tensor, Tensor]:
        """(up (out, rank), down (rank, in)), each carrying half of every value."""
        half = self.values[:rank].sqrt()
        return self.left[:, :rank] * half, half[:, None] * self.right[:rank]

    @property
    def energy(self) -> Tensor:
        """Squared error that each further rank takes away."""
        return self.values.square()


def decompose(matrix: Tensor, whitened: Whitening) -> Decomposition:
    """The matrix in order of what its parts give on the inputs: every truncation is optimal.

    From the eigenvectors of the smaller square, a few times faster than an SVD; each part is the
    matrix's own projection on one of them, so that squaring costs nothing but the order of parts
    below 1e-8 of the largest.
    """
    white = matrix.double() @ whitened.root
    is_tall = white.shape[0] >= white.shape[1]
    square = white.T @ white if is_tall else white @ white.T
    energies, vectors = torch.linalg.eigh(square)
    values, vectors = energies.flip(0).clamp(min=0).sqrt(), vectors.flip(1)
    divisor = values.clamp(min=1e-12 * float(values[0]) + 1e-300)
    if is_tall:
        return Decomposition(white @ vectors / divisor, values, vectors.T @ whitened.inverse)
    right = vectors.T @ white / divisor[:, None]
    return Decomposition(vectors, values, right @ whitened.inverse)


def break_even(num_outputs: int, num_inputs: int) -> int:
    """From this rank on the factors are no smaller than the matrix."""
    return -(-num_outputs * num_inputs // (num_outputs + num_inputs))


def uniform_ranks(shapes: Mapping[str, tuple[int, int]], ratio: float) -> dict[str, int]:
    """Each layer loses the same share of its parameters."""
    return {n: max(1, int((1 - ratio) * o * i / (o + i))) for n, (o, i) in shapes.items()}


def ranks_by_loss(
    energies: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, int]], ratio: float
) -> dict[str, int]:
    """Ranks of the least summed relative output error for the parameters that are left.

    A further rank of any layer takes less away than the one before, so taking the ranks with the
    most error per parameter first is optimal. A layer that reaches the size of its matrix stays
    whole (rank = `break_even`); none falls below a quarter of its uniform rank.
    """
    uniform = uniform_ranks(shapes, ratio)
    ranks = {n: max(1, int(LEAST_SHARE * rank)) for n, rank in uniform.items()}
    left = (1 - ratio) * sum(o * i for o, i in shapes.values())
    left -= sum(rank * sum(shapes[n]) for n, rank in ranks.items())
    for _, name in sorted(_offers(energies, shapes, ranks), reverse=True):
        cost = sum(shapes[name])
        if cost <= left and ranks[name] < break_even(*shapes[name]):
            ranks[name] += 1
            left -= cost
    return ranks


def _offers(
    energies: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, int]], ranks: Mapping[str, int]
) -> list[tuple[float, str]]:
    offers = []
    for name, energy in energies.items():
        gains = energy / energy.sum().clamp(min=1e-300) / sum(shapes[name])
        offers += [(float(gain), name) for gain in gains[ranks[name] :]]
    return offers


def output_share(change: Tensor, weight: Tensor, gram: Tensor) -> float:
    """Mean squared output of `change` over that of `weight`."""
    h = gram.double()
    lost, whole = (((m.double() @ h) * m.double()).sum() for m in (change, weight))
    return float(lost / whole.clamp(min=1e-300))


Change = tuple["Tensor", "Tensor"]  # up (out, rank), down (rank, in), as they are stored
# A classifier without a type of its own: peft would look for a head beside the adapter.
TASK_TYPES = {"causal": "CAUSAL_LM", "seq2seq": "SEQ_2_SEQ_LM"}


@dataclass(frozen=True)
class _CompensationStep:
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
        best: dict[str, _CompensationStep] = {}
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

    def _turn(self, layer: Linear, quantized: Any, whitened: Whitening, gram: Tensor) -> _CompensationStep:
        weight = layer.weight.detach().float()
        missing = weight - quantized.dense().float()
        up, down = decompose(missing, whitened).factors(self.rank)
        kind = getattr(torch, self.dtype)
        change = up.to(kind).contiguous(), down.to(kind).contiguous()
        turn = _CompensationStep(quantized, change, output_share(missing, weight, gram), 0.0)
        left = output_share(missing - turn.added(), weight, gram)
        return _CompensationStep(quantized, change, turn.alone, left)


def write_adapter(changes: Mapping[str, Change], folder: Path, *, head: str, base: str) -> None:
    """The changes as peft reads them; nothing in it names this machine."""
    folder.mkdir(parents=True, exist_ok=True)
    ranks = {name: down.shape[0] for name, (_, down) in changes.items()}
    rank = max(ranks.values())
    narrow = {name: r for name, r in ranks.items() if r < rank}  # of a layer with fewer outputs
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=sorted(changes),
        bias="none",
        inference_mode=True,
        rank_pattern=narrow,
        alpha_pattern=narrow,
        task_type=TASK_TYPES.get(head),
        base_model_name_or_path=base,
    )
    config.save_pretrained(str(folder))
    file = folder / "adapter_config.json"
    # A set in peft: its order changes between processes.
    facts = read_json(file) | {"target_modules": sorted(changes)}
    write_config(file, facts)
    tensors: dict[str, Tensor] = {}
    for name, (up, down) in changes.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = down.cpu()
        tensors[f"base_model.model.{name}.lora_B.weight"] = up.cpu()
    safetensors_torch.save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
