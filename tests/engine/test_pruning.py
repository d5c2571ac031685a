"""Narrower models say what the wide one says with the cut parts masked, in memory and reloaded."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lcc.engine.blocks import as_linear
from lcc.engine.families import key_value_groups, query_heads
from lcc.engine.pruning import feed_forwards
from lcc.engine.rescaling import keep_scales
from lcc.engine.reshaping import Plan, rebuilt, restate
from lcc.engine.streams import STREAMS, streams
from lcc.engine.units import Unit

sys.path.insert(0, str(Path(__file__).parents[1] / "stages"))
import compressing as tiny

FAMILIES: dict[str, Callable[..., Any]] = {
    "llama": tiny.llama, "qwen3": tiny.qwen3, "gemma3": tiny.gemma3, "gpt2": tiny.gpt2,
    "bert": tiny.bert, "t5": tiny.t5, "marian": tiny.marian, "whisper": tiny.whisper,
    "vit": tiny.vit,
}  # fmt: skip
FIND: dict[str, Callable[[Any], list[Unit]]] = {
    "ffn": feed_forwards, "heads": query_heads, "kv_groups": key_value_groups, "hidden": streams,
}  # fmt: skip
REFUSED = {("heads", f) for f in ("gpt2", "bert", "marian", "whisper")}
REFUSED |= {("kv_groups", f) for f in ("gpt2", "bert", "marian", "whisper")}
REFUSED |= {("hidden", "marian")}
CASES = [(d, f) for d in FIND for f in FAMILIES if (d, f) not in REFUSED]


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(**tiny.inputs(model)).logits
    return found


def chosen(units: list[Unit], plan: Plan) -> dict[str, list[int]]:
    """Something else in every layer, so that a mixed-up order shows."""
    kept = {}
    for i, unit in enumerate(units):
        draws = torch.Generator().manual_seed(i)
        kept[unit.name] = unit.best(torch.rand(unit.num, generator=draws), plan.num_kept[unit.name])
    return kept


def narrowed(model: Any, dims: str) -> tuple[Any, dict[str, list[int]]]:
    with as_linear(model):
        units = FIND[dims](model)
        plan = Plan(model.config, units, dims=dims)
        plan.decide(0.3, 2 if dims in ("ffn", "hidden") else "auto")
        kept = chosen(units, plan)
        for unit in units:
            unit.keep(kept[unit.name])
    restate(model.config, {field: after for field, (_, after) in plan.sizes.items()})
    new = rebuilt(model)
    if dims == "hidden":
        keep_scales(new, *plan.sizes["hidden_size"])
    return new, kept


class Masked(torch.nn.Module):
    """A norm over some of its channels, with zeros for the others."""

    def __init__(self, norm: Any, kept: list[int]) -> None:
        super().__init__()
        self.norm, self.kept = norm, kept

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        part = x[..., self.kept]
        eps = getattr(self.norm, "variance_epsilon", getattr(self.norm, "eps", None))
        out, weight = torch.zeros_like(x), self.norm.weight[self.kept]
        if isinstance(self.norm, torch.nn.LayerNorm):
            bias = self.norm.bias[self.kept]
            whole = torch.nn.functional.layer_norm(part, part.shape[-1:], weight, bias, eps)
        else:
            scale = torch.rsqrt(part.pow(2).mean(-1, keepdim=True) + eps)
            is_gemma = type(self.norm).__name__.startswith("Gemma")
            whole = part * scale * (1 + weight if is_gemma else weight)
        out[..., self.kept] = whole
        return out


def masked(model: Any, dims: str, kept: dict[str, list[int]]) -> Any:
    """The wide model with zeros where the narrow one has nothing."""
    with as_linear(model), torch.no_grad():
        units = FIND[dims](model)
        for unit in units:
            for member in unit.members:
                for parameter, dim in member.parameters():
                    gone = set(range(member.length)) - set(member.entries(kept[unit.name]))
                    parameter.data.index_fill_(
                        dim % parameter.dim(), torch.tensor(sorted(gone)), 0.0
                    )
        for unit in units:
            if dims == "hidden" and unit.name in STREAMS:
                for member in unit.members:
                    if "norm" in type(member.layer).__name__.lower():
                        _replace(model, member.name, Masked(member.layer, kept[unit.name]))
    return model


def _replace(model: Any, name: str, module: Any) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)


@pytest.mark.parametrize(("dims", "family"), CASES)
def test_a_cut_is_exact_and_loads_the_same(dims: str, family: str, tmp_path: Path) -> None:
    make = FAMILIES[family]
    wide_size = sum(p.numel() for p in make().parameters())
    model, kept = narrowed(make(), dims)
    size = sum(p.numel() for p in model.parameters())
    assert size < wide_size, "something is gone"
    expected = logits(masked(make(), dims, kept))
    assert torch.allclose(logits(model), expected, atol=1e-5)
    model.save_pretrained(tmp_path)
    for attention in ("eager", "sdpa"):
        reloaded = type(model).from_pretrained(tmp_path, attn_implementation=attention)
        assert sum(p.numel() for p in reloaded.parameters()) == size
        assert torch.allclose(logits(reloaded), expected, atol=1e-5)
