"""Feed-forward channels that go as one, found through the dependency graph of torch-pruning.

The graph says what is coupled (DepGraph; Fang et al., 2023). Heads and the hidden width are found
by layout (`families`, `streams`): the graph skips heads behind q/k norms without a word, never
cuts key-value heads, and unties embeddings where encoder and decoder share them.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from lcc.compression.units import Member, Unit
from lcc.core.lazy import torch, torch_pruning
from lcc.engine.blocks import blocks

if TYPE_CHECKING:
    from torch.nn import Linear, Module

# Where the graph of the whole model cannot be built: GPT-2 splits one projection into q, k and v.
TRACED_ALONE = {"gpt2": "mlp"}


def feed_forwards(model: Any) -> list[Unit]:
    """The feed-forward layers inside the blocks.

    A group of linear layers that touches nothing else and ends in one consumer is one: anything
    on the residual stream would drag norms and embeddings along.
    """
    names = {module: name for name, module in model.named_modules()}
    alone = TRACED_ALONE.get(model.config.model_type)
    graph = None if alone else _graph(model, example_inputs=example(model))
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


def example(model: Any) -> dict[str, Any]:
    """The least input that goes through the whole model: text, an image, or sound."""
    config, device = model.config, model.device
    ids = torch.ones(1, 4, dtype=torch.long, device=device)
    if model.main_input_name == "pixel_values":
        side = config.image_size
        return {"pixel_values": torch.zeros(1, config.num_channels, side, side, device=device)}
    if model.main_input_name == "input_features":
        # Two convolutions halve the frames to as many as there are positions.
        frames = 2 * config.max_source_positions
        features = torch.zeros(1, config.num_mel_bins, frames, device=device)
        return {"input_features": features, "decoder_input_ids": ids}
    text = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return {**text, "decoder_input_ids": ids} if config.is_encoder_decoder else text


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
    members = [Member(names[producer], producer, "out") for producer in producers]
    consumer = Member(names[consumers[0]], consumers[0], "in")
    return Unit(consumer.name, consumers[0].in_features, (*members, consumer))
