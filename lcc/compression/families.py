"""Attention layers by family, and what a family's config can and cannot say about its widths."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lcc.compression.units import Member, Unit
from lcc.core.errors import RecipeError

if TYPE_CHECKING:
    from torch.nn import Module

# Query, key, value and output of an attention module, as its children are called.
PROJECTIONS = (("q_proj", "k_proj", "v_proj", "o_proj"), ("q_proj", "k_proj", "v_proj", "out_proj"),
               ("q", "k", "v", "o"))  # fmt: skip
# Their config states the width of a head, so fewer heads load as a plain config.
HEADS_STATED = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "granite",
                "smollm3", "helium", "t5", "mt5", "vit")  # fmt: skip
# The width of their heads is hidden width / heads: a smaller hidden width takes heads along.
HEADS_IN_HIDDEN = ("gpt2", "bert", "whisper")
HIDDEN_KNOWN = ("llama", "mistral", "qwen2", "qwen3", "gemma3_text", "t5", "mt5", "vit",
                *HEADS_IN_HIDDEN)  # fmt: skip
# Every layer of a stack adds the same position bias, head by head.
POSITION_BIASED = ("t5", "mt5")
# The consumers of their feed-forward and attention layers have no bias.
UNBIASED = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "smollm3", "t5",
            "mt5")  # fmt: skip


def refuse_heads(model_type: str) -> None:
    """Raise RecipeError, in one sentence, where removing heads would be wrong or silent."""
    if model_type in HEADS_STATED:
        return
    instead = "dims=hidden, which takes whole heads along, or dims=ffn"
    raise RecipeError(
        f"width.dims: a config of {model_type} cannot say that heads are gone while the hidden"
        f" width stays; use {instead if model_type in HEADS_IN_HIDDEN else 'dims=ffn'}."
    )


def refuse_hidden(model_type: str) -> None:
    """Raise RecipeError, in one sentence, where a narrower stream would load as another model."""
    if model_type in HIDDEN_KNOWN:
        return
    if model_type == "marian":
        raise RecipeError(
            "width.dims: positions of marian are sinusoids that are computed from the hidden width"
            " at every load, so a narrower model would load with other positions; use dims=ffn."
        )
    raise RecipeError(
        f"width.dims: where the hidden width of {model_type} enters is not known here; use dims=ffn"
        f" (hidden works for {', '.join(HIDDEN_KNOWN)})."
    )


def refuse_bias(config: Mapping[str, Any], *, attention: bool) -> None:
    """Raise RecipeError where the layers to be repaired are known to have no bias."""
    states = config.get("attention_bias" if attention else "mlp_bias")
    if config.get("model_type") in UNBIASED and not states:
        raise RecipeError(
            f"width.repair: {config['model_type']} has no biases to repair; use ridge or none."
        )


@dataclass(frozen=True)
class Attention:
    """The layers of one attention module; a fused one is query, key and value in one."""

    name: str
    query: tuple[str, Module]
    key: tuple[str, Module]
    value: tuple[str, Module]
    output: tuple[str, Module]

    @property
    def is_fused(self) -> bool:
        return self.query[1] is self.key[1]

    def heads(self, head_dim: int) -> tuple[int, int]:
        """How many query heads, and how many key-value heads."""
        keys: Any = self.key[1]
        consumer: Any = self.output[1]
        num = consumer.in_features // head_dim
        return num, num if self.is_fused else keys.out_features // head_dim


def attentions(model: Any) -> Iterator[Attention]:
    """Every attention module of the model, found by what its children are called."""
    for name, module in model.named_modules():
        children = dict(module.named_children())
        for names in PROJECTIONS:
            if set(names) <= set(children):
                query, key, value, output = ((f"{name}.{n}", children[n]) for n in names)
                yield Attention(name, query, key, value, output)
        if {"query", "key", "value"} <= set(children):
            parent = name.rpartition(".")[0]
            output = (f"{parent}.output.dense", model.get_submodule(f"{parent}.output.dense"))
            query, key, value = ((f"{name}.{n}", children[n]) for n in ("query", "key", "value"))
            yield Attention(name, query, key, value, output)
        if {"c_attn", "c_proj"} <= set(children) and "q_attn" not in children:
            fused = (f"{name}.c_attn", children["c_attn"])
            yield Attention(name, fused, fused, fused, (f"{name}.c_proj", children["c_proj"]))


def head_dim(config: Any) -> int:
    explicit = getattr(config, "head_dim", None) or getattr(config, "d_kv", None)
    return int(explicit or config.hidden_size // config.num_attention_heads)


def key_value_groups(model: Any) -> list[Unit]:
    """Each attention layer by key-value heads; one goes with the query heads that share it."""
    width = head_dim(model.config)
    units = []
    for found in attentions(model):
        num_heads, num = found.heads(width)
        wide = num_heads // num * width
        members: tuple[Member, ...] = (
            Member(found.query[0], found.query[1], "out", wide),
            Member(found.key[0], found.key[1], "out", width),
            Member(found.value[0], found.value[1], "out", width),
            Member(found.output[0], found.output[1], "in", wide),
        )
        if found.is_fused:
            members = (Member(found.query[0], found.query[1], "out", width, copies=3), members[3])
        units.append(Unit(found.output[0], num, members))
    return _joined(model, units)


def query_heads(model: Any) -> list[Unit]:
    """Each attention layer by query heads; where every head has keys of its own, these go too."""
    width = head_dim(model.config)
    units = []
    for found in attentions(model):
        num_heads, num = found.heads(width)
        if num_heads == num:
            return key_value_groups(model)
        members = (
            Member(found.query[0], found.query[1], "out", width),
            Member(found.output[0], found.output[1], "in", width),
        )
        units.append(Unit(found.output[0], num_heads, members, runs=num))
    return units


def _joined(model: Any, units: list[Unit]) -> list[Unit]:
    """Layers that add one position bias lose the same heads."""
    if model.config.model_type not in POSITION_BIASED:
        return units
    stacks: dict[str, list[Unit]] = {}
    for unit in units:
        is_biased = ".SelfAttention." in unit.name
        stacks.setdefault(unit.name.split(".block.")[0] if is_biased else unit.name, []).append(
            unit
        )
    biases = [(n, m) for n, m in model.named_modules() if n.endswith("relative_attention_bias")]
    joined = []
    for stack, found in stacks.items():
        own = [Member(n, m, "out") for n, m in biases if n.startswith(f"{stack}.block.")]
        members = (*(member for unit in found for member in unit.members), *own)
        joined.append(Unit(stack, found[0].num, members))
    return joined
