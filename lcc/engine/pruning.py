"""Remove feed-forward channels and attention head groups, coupled layers together.

torch-pruning's dependency graph says what is coupled (DepGraph; Fang et al., 2023). Its graph
skips heads behind q/k norms without a word, so heads are removed here only where the family's
layout is known and its config can say the new shape.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lcc.core.errors import GateError, RecipeError
from lcc.core.lazy import torch, torch_pruning
from lcc.engine.blocks import blocks

if TYPE_CHECKING:
    from torch.nn import Linear, Module

FFN_FIELDS = ("intermediate_size", "d_ff", "encoder_ffn_dim", "decoder_ffn_dim", "ffn_dim",
              "n_inner", "hidden_dim")  # fmt: skip
# Their config states the width of a head, so fewer heads load as a plain config.
HEAD_FAMILIES = ("llama", "mistral", "qwen2", "gemma", "granite", "smollm3", "helium", "phi3")
# Where the graph of the whole model cannot be built: GPT-2 splits one projection into q, k and v.
TRACED_ALONE = {"gpt2": "mlp"}
NORMED_FAMILIES = ("gemma3", "gemma3_text", "gemma3n", "gemma4", "qwen3", "qwen3_moe", "olmo2")


@dataclass(frozen=True)
class Unit:
    """What is cut as one: rows of the producers and columns of the one consumer.

    `size` neighbouring consumer columns go together (1 channel, or the heads of one group);
    each producer gives `rows[i]` rows for them.
    """

    name: str  # of the consumer
    consumer: Linear
    producers: tuple[Linear, ...]
    rows: tuple[int, ...]
    size: int = 1

    @property
    def width(self) -> int:
        return int(self.consumer.in_features) // self.size

    def keep(self, kept: list[int]) -> None:
        """Keep these channels or groups, in this order, in place."""
        for producer, rows in zip(self.producers, self.rows, strict=True):
            _keep_outputs(producer, _spread(kept, rows))
        _keep_inputs(self.consumer, self.columns(kept))

    def columns(self, kept: list[int]) -> list[int]:
        """The consumer's columns of these channels or groups."""
        return _spread(kept, self.size)


def _spread(kept: list[int], size: int) -> list[int]:
    return [group * size + i for group in kept for i in range(size)]


def _keep_outputs(layer: Linear, rows: list[int]) -> None:
    gone = sorted(set(range(layer.out_features)) - set(rows))
    torch_pruning.prune_linear_out_channels(layer, gone)


def _keep_inputs(layer: Linear, columns: list[int]) -> None:
    gone = sorted(set(range(layer.in_features)) - set(columns))
    torch_pruning.prune_linear_in_channels(layer, gone)


def feed_forwards(model: Any) -> list[Unit]:
    """The feed-forward layers inside the blocks, found through the dependency graph.

    A group of linear layers that touches nothing else and ends in one consumer is one: anything
    on the residual stream would drag norms and embeddings along.
    """
    names = {module: name for name, module in model.named_modules()}
    alone = TRACED_ALONE.get(model.config.model_type)
    example = _example(model)
    graph = None if alone else _graph(model, example_inputs=example)
    units: dict[str, Unit] = {}
    for block_name, block in blocks(model).items():
        if alone:
            part = block.get_submodule(alone)
            hidden = torch.zeros(1, 4, model.config.hidden_size, device=model.device)
            graph = _graph(part, example_inputs=hidden)
        for name, layer in block.named_modules():
            if isinstance(layer, torch.nn.Linear) and not _is_attention(f"{block_name}.{name}"):
                unit = _unit(graph, layer, names)
                if unit is not None:
                    units[unit.name] = unit
    return list(units.values())


def _example(model: Any) -> dict[str, Any]:
    """The shortest text that goes through the whole model."""
    ids = torch.ones(1, 4, dtype=torch.long, device=model.device)
    example = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return {**example, "decoder_input_ids": ids} if model.config.is_encoder_decoder else example


def _graph(model: Any, *, example_inputs: Any) -> Any:
    frozen = [p for p in model.parameters() if not p.requires_grad]
    model.requires_grad_(True)  # The graph is read off autograd's.
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")
        graph = torch_pruning.DependencyGraph().build_dependency(
            model,
            example_inputs=example_inputs,
            output_transform=lambda output: output if torch.is_tensor(output) else output[0],
        )
    for parameter in frozen:
        parameter.requires_grad_(False)
    return graph


def _is_attention(name: str) -> bool:
    return "attn" in name.lower() or "attention" in name.lower()


def _unit(graph: Any, layer: Linear, names: dict[Module, str]) -> Unit | None:
    whole = list(range(layer.out_features))
    group = graph.get_pruning_group(layer, torch_pruning.prune_linear_out_channels, whole)
    producers: list[Any] = []
    consumers: list[Any] = []
    for item in group:
        module = item.dep.target.module
        if isinstance(module, torch.nn.Module) and not list(module.parameters()):
            continue  # An activation or a product.
        if not isinstance(module, torch.nn.Linear):
            return None  # A norm, an embedding, or a bare parameter.
        is_input = graph.is_in_channel_pruning_fn(item.dep.handler)
        (consumers if is_input else producers).append(module)
    if len(consumers) != 1 or consumers[0] not in names:
        return None
    return Unit(names[consumers[0]], consumers[0], tuple(producers), (1,) * len(producers))


def set_ffn_width(model: Any, before: int, after: int) -> list[str]:
    """Write the new width into the config and the modules that repeat it; returns the fields.

    Raises GateError for a family whose config does not say it.
    """
    config = model.config.get_text_config()
    fields = [f for f in FFN_FIELDS if getattr(config, f, None) == before]
    if not fields and hasattr(config, "n_inner") and config.n_inner is None:
        fields = ["n_inner"]  # GPT-2: unset means four times the hidden width.
    if not fields:
        raise GateError(f"width: no field of {type(config).__name__} holds the width {before}.")
    for field in fields:
        setattr(config, field, after)
    for module in model.modules():
        if getattr(module, "intermediate_size", None) == before:
            module.intermediate_size = after
    return fields


def refuse_heads(model_type: str) -> None:
    """Raise RecipeError, in one sentence, where removing heads would be wrong or silent."""
    if model_type in NORMED_FAMILIES:
        raise RecipeError(
            f"width.dims: heads of {model_type} stand behind q/k norms, which the dependency graph"
            " skips without a word; use dims=ffn."
        )
    if model_type not in HEAD_FAMILIES:
        raise RecipeError(
            f"width.dims: a config of {model_type} cannot say that heads are gone; use dims=ffn"
            f" (heads work for {', '.join(HEAD_FAMILIES)})."
        )


def head_groups(model: Any) -> list[Unit]:
    """Each attention layer as groups: one key-value head with the query heads that share it."""
    config = model.config
    refuse_heads(config.model_type)
    shared = config.num_attention_heads // config.num_key_value_heads
    width = _head_dim(config)
    units = []
    for name, module in model.named_modules():
        if not all(hasattr(module, f"{p}_proj") for p in "qkvo"):
            continue
        producers = (module.q_proj, module.k_proj, module.v_proj)
        rows, consumer = (shared * width, width, width), module.o_proj
        units.append(Unit(f"{name}.o_proj", consumer, producers, rows, size=shared * width))
    return units


def set_num_groups(model: Any, before: int, after: int) -> None:
    """Write the new numbers of heads into the config; heads keep their width."""
    config = model.config
    shared = config.num_attention_heads // config.num_key_value_heads
    assert config.num_key_value_heads == before, (config.num_key_value_heads, before)
    config.head_dim = _head_dim(config)
    config.num_key_value_heads, config.num_attention_heads = after, after * shared
    for module in model.modules():
        if hasattr(module, "num_heads") and hasattr(module, "q_proj"):
            module.num_heads = after * shared


def _head_dim(config: Any) -> int:
    explicit = getattr(config, "head_dim", None)
    return int(explicit or config.hidden_size // config.num_attention_heads)
