"""The least that a method's arithmetic can take on this machine: its FLOPs at the GEMM's rate."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Floors:
    """Sums over the linear layers of the blocks: out × in, and per distinct input in² and in³."""

    weights: float  # Σ out·in
    columns: float  # Σ out·in²
    squares: float  # Σ in² over distinct inputs
    cubes: float  # Σ in³ over distinct inputs
    tokens: int
    flops: float
    bandwidth: float

    def solver(self, method: str) -> float:
        """Factor every Gram once (in³/3) and push every column's error on (out·in²)."""
        if method.startswith("wanda"):
            return 8 * self.weights / self.bandwidth  # read and write once
        return (self.cubes / 3 + self.columns) / self.flops

    def whole(self, method: str, mode: str) -> float:
        """Forward passes over the blocks (a second one behind changed blocks), Grams, solver."""
        forwards = 2 if mode == "sequential" else 1
        grams = 0.0 if method.startswith("wanda") else self.tokens * self.squares
        work = forwards * 2 * self.weights * self.tokens + grams
        return work / self.flops + self.solver(method)


def floors(model: Path, tokens: int, machine: dict[str, float]) -> Floors:
    """Of a Llama-like config: q, k, v share an input, gate and up share one."""
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    heads = config["num_attention_heads"]
    size = config.get("head_dim") or hidden // heads
    queries, keys = heads * size, config.get("num_key_value_heads", heads) * size
    layers = [(queries + 2 * keys, hidden), (hidden, queries), (2 * inner, hidden), (hidden, inner)]
    num = config["num_hidden_layers"]
    return Floors(
        weights=num * sum(o * i for o, i in layers),
        columns=num * sum(o * i * i for o, i in layers),
        squares=num * sum(i**2 for _, i in layers),
        cubes=num * sum(i**3 for _, i in layers),
        tokens=tokens,
        flops=machine["flops"],
        bandwidth=machine["bandwidth"],
    )
