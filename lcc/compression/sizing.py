"""How many channels, heads or hidden dimensions may stay, given what a config accepts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from lcc.compression.families import HEADS_IN_HIDDEN
from lcc.compression.ranking import nearest, rounded

Dims = Literal["ffn", "heads", "kv_groups", "hidden"]
RoundTo = int | Literal["auto"]
FFN_FIELDS = ("intermediate_size", "d_ff", "encoder_ffn_dim", "decoder_ffn_dim", "ffn_dim",
              "n_inner", "hidden_dim")  # fmt: skip
HIDDEN_FIELDS = ("hidden_size", "d_model", "n_embd")
HEAD_FIELDS = ("num_attention_heads", "num_heads", "n_head", "encoder_attention_heads")
# Their config refuses a hidden width that is no multiple of the number of heads.
DIVIDED = ("llama", "gemma2", "gemma3_text")


@dataclass(frozen=True)
class Shape:
    """What of a model's shape decides which sizes its narrower forms may have."""

    family: str
    hidden: int
    heads: int
    head_dim: int

    def stays(self, num: int, ratio: float, *, dims: Dims, round_to: RoundTo, runs: int = 1) -> int:
        """What stays of `num` things, of which each of `runs` runs must keep as many.

        Raises RecipeError when nothing would go.
        """
        if dims == "ffn":
            return rounded(num, ratio, round_to=round_to)
        if dims != "hidden":
            return nearest(num, ratio, allowed=self._numbers_of_heads(num, runs))
        step = self._hidden_step()
        if step == 1:
            return rounded(num, ratio, round_to=round_to)
        step = step if round_to == "auto" else math.lcm(step, round_to)
        return nearest(num, ratio, allowed=range(step, num, step))

    def _numbers_of_heads(self, num: int, runs: int) -> list[int]:
        """As many of every key-value head, and what the config takes for this hidden width."""
        found = range(runs, num, runs)
        if self.family not in DIVIDED:
            return list(found)
        return [kept for kept in found if self.hidden % (self.heads * kept // num) == 0]

    def _hidden_step(self) -> int:
        """What the hidden width must be a multiple of."""
        if self.family in HEADS_IN_HIDDEN:
            return self.head_dim
        return self.heads if self.family in DIVIDED else 1


def foreseen(
    config: Mapping[str, Any], ratio: float, *, dims: Dims, round_to: RoundTo
) -> float | None:
    """The share that a cut will take, as far as a config.json tells.

    Raises RecipeError when nothing would go.
    """
    hidden, heads = _first(config, HIDDEN_FIELDS), _first(config, HEAD_FIELDS)
    if hidden is None or heads is None:
        return None
    head_dim = config.get("head_dim") or config.get("d_kv") or hidden // heads
    shape = Shape(str(config.get("model_type")), hidden, heads, head_dim)
    groups = config.get("num_key_value_heads") or heads
    sizes = {"heads": heads, "kv_groups": groups, "hidden": hidden}
    num = sizes.get(dims) or _first(config, FFN_FIELDS)
    if num is None:
        return None
    runs = groups if dims == "heads" and groups < heads else 1
    return 1 - shape.stays(num, ratio, dims=dims, round_to=round_to, runs=runs) / num


def _first(config: Mapping[str, Any], fields: tuple[str, ...]) -> int | None:
    return next((config[field] for field in fields if config.get(field)), None)
