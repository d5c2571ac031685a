"""Narrower models say what the wide one says with the cut parts masked, in memory and reloaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import compressing as tiny
import pytest
import torch
import torch_pruning
import transformers

from lcc.compression.prune_groups import (
    STREAMS,
    PruningGroup,
    example,
    feed_forwards,
    key_value_groups,
    query_heads,
    refuse_heads,
    refuse_hidden,
    streams,
)
from lcc.compression.prune_width import Plan, keep_scales, rebuilt, restate
from lcc.core.errors import GateError, RecipeError
from lcc.models.blocks import as_linear

FAMILIES: dict[str, Callable[..., Any]] = {
    "llama": tiny.llama, "qwen3": tiny.qwen3, "gemma3": tiny.gemma3, "gpt2": tiny.gpt2,
    "bert": tiny.bert, "t5": tiny.t5, "marian": tiny.marian, "whisper": tiny.whisper,
    "vit": tiny.vit,
}  # fmt: skip
FIND: dict[str, Callable[[Any], list[PruningGroup]]] = {
    "ffn": feed_forwards,
    "heads": query_heads,
    "kv_groups": key_value_groups,
    "hidden": streams,
}
REFUSED = {("heads", f) for f in ("gpt2", "bert", "marian", "whisper")}
REFUSED |= {("kv_groups", f) for f in ("gpt2", "bert", "marian", "whisper")}
REFUSED |= {("hidden", "marian")}
CASES = [(d, f) for d in FIND for f in FAMILIES if (d, f) not in REFUSED]


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        output = model.eval()(**tiny.inputs(model))
        found: torch.Tensor = output.logits if "logits" in output else output.last_hidden_state
    return found


def chosen(units: list[PruningGroup], plan: Plan) -> dict[str, list[int]]:
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
                    parameter.data.index_fill_(dim % parameter.dim(), torch.tensor(sorted(gone)), 0.0)
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
    if model.can_generate():
        given = {k: v for k, v in tiny.inputs(model).items() if k != "decoder_input_ids"}
        cached, plain = (
            reloaded.generate(**given, max_new_tokens=3, do_sample=False, use_cache=use_cache)
            for use_cache in (True, False)
        )
        assert torch.equal(cached, plain)


@pytest.mark.parametrize(("dims", "family"), sorted(REFUSED))
def test_what_a_config_cannot_say_is_refused_in_a_sentence(dims: str, family: str) -> None:
    refuse = refuse_hidden if dims == "hidden" else refuse_heads
    with pytest.raises(RecipeError, match=r"^width.dims: [^.]+use dims=[^.]+\.$"):
        refuse(FAMILIES[family]().config.model_type)


@pytest.mark.parametrize("family", ["llama", "qwen3", "bert"])
def test_the_stream_is_what_torch_prunings_graph_finds_where_that_is_right(family: str) -> None:
    model = FAMILIES[family]()
    graph = torch_pruning.DependencyGraph().build_dependency(
        model, example_inputs=example(model), output_transform=lambda output: output[0]
    )
    names = {module: name for name, module in model.named_modules()}
    group = graph.get_pruning_group(
        model.get_input_embeddings(), torch_pruning.prune_embedding_out_channels, list(range(32))
    )
    found = {
        (names[item.dep.target.module], graph.is_in_channel_pruning_fn(item.dep.handler))
        for item in group
        if isinstance(item.dep.target.module, torch.nn.Linear)
    }
    stream = {
        (m.name, m.axis == "in") for m in streams(model)[0].members if isinstance(m.layer, torch.nn.Linear)
    }
    assert stream == found


VARIANTS: dict[str, Callable[[], Any]] = {
    "untied llama": lambda: tiny.llama(tie_word_embeddings=False),
    "llama with biases": lambda: tiny.llama(attention_bias=True, mlp_bias=True),
    "llama without groups": lambda: tiny.llama(num_key_value_heads=4),
    "untied gemma3": lambda: tiny.gemma3(tie_word_embeddings=False),
    "gated t5": lambda: tiny.t5("gated-gelu"),
    "untied t5": lambda: tiny.t5(tie_word_embeddings=False),
    "whisper that scales": lambda: tiny.whisper(scale_embedding=True),
    "masked-language bert": lambda: tiny.bert(transformers.BertForMaskedLM),
    "bare bert": lambda: tiny.bert(transformers.BertModel),
    "mistral": lambda: tiny._seeded(
        transformers.MistralForCausalLM, transformers.MistralConfig(**tiny.DECODER)
    ),
    "qwen2": lambda: tiny._seeded(transformers.Qwen2ForCausalLM, transformers.Qwen2Config(**tiny.DECODER)),
}
EXPRESSIBLE = [
    (d, v)
    for d in FIND
    for v in VARIANTS
    if d in ("ffn", "hidden") or not any(f in v for f in ("bert", "whisper"))
]


@pytest.mark.parametrize(("dims", "variant"), EXPRESSIBLE)
def test_variants_of_the_families_are_cut_exactly_too(dims: str, variant: str, tmp_path: Path) -> None:
    make = VARIANTS[variant]
    model, kept = narrowed(make(), dims)
    expected = logits(masked(make(), dims, kept))
    assert expected.std() > 1e-4
    found = logits(model)
    if variant == "bare bert" and dims == "hidden":
        expected = expected[..., kept["hidden"]]
    assert torch.allclose(found, expected, atol=1e-5)
    model.save_pretrained(tmp_path)
    reloaded = type(model).from_pretrained(tmp_path, attn_implementation="eager")
    assert torch.allclose(logits(reloaded), found, atol=1e-5)


def test_config_and_weights_that_disagree_are_an_error() -> None:
    model = tiny.llama()
    model.config.intermediate_size = 60
    with pytest.raises(GateError, match="config and weights disagree"):
        rebuilt(model)


def test_a_width_that_no_config_field_holds_is_an_error() -> None:
    model = tiny.llama()
    model.config.intermediate_size = 60
    with pytest.raises(GateError, match="no field of LlamaConfig holds the width 64"):
        Plan(model.config, feed_forwards(model), dims="ffn")
