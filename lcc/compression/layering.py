"""Taking layers out of a model: which may go, and a config that says what is left."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any, Literal

from lcc.compression.skipping import Part
from lcc.core.errors import RecipeError
from lcc.core.lazy import torch
from lcc.engine.blocks import as_linear, blocks

if TYPE_CHECKING:
    from torch.nn import Module

PartKind = Literal["layer", "attention", "mlp"]
COUNT_FIELDS = ("num_hidden_layers",)
ENCODER_FIELDS = ("encoder_layers", "num_layers", "num_hidden_layers")
DECODER_FIELDS = ("decoder_layers", "num_decoder_layers")
CROSS_ATTENTION = ("cross", "encdec", "encoder_attn")
# Config fields that tie a layer to its number, or to other layers.
TIES = ("num_kv_shared_layers", "scale_attn_by_inverse_layer_idx", "first_k_dense_replace")


def layer_stops(model: Any) -> dict[str, Module]:
    """Every block by name, in forward order; GPT-2's too, whose layers are Conv1D."""
    with as_linear(model):
        return blocks(model)


def stack_of(block: str) -> str:
    """The list that a block stands in."""
    return block.rpartition(".")[0]


def removable(model: Any, kind: PartKind) -> list[Part]:
    """Parts that may go, in forward order: no block that has what no other of its stack has.

    (T5's first blocks hold the relative positions of all.) Raises RecipeError for a family whose
    layers are tied to their numbers.
    """
    config = model.config.get_text_config()
    tied = next((field for field in TIES if getattr(config, field, None)), None)
    if tied is not None:
        raise RecipeError(
            f"depth: {config.model_type} ties layers to their numbers ({tied}), so that none can"
            " go without changing others; use the stage width."
        )
    stops = layer_stops(model)
    if kind != "layer":
        halves = [(name, _output(name, block, kind)) for name, block in stops.items()]
        return [Part(name, output) for name, output in halves if output]
    shapes = {name: _shapes(block) for name, block in stops.items()}
    return [
        Part(name)
        for name in stops
        if not any(shapes[name] > s for n, s in shapes.items() if stack_of(n) == stack_of(name))
    ]


def _shapes(block: Module) -> frozenset[tuple[str, tuple[int, ...]]]:
    return frozenset((name, tuple(t.shape)) for name, t in block.state_dict().items())


def _output(block_name: str, block: Module, kind: PartKind) -> str:
    """The last layer of a block's own attention, or of its feed-forward; empty without one."""
    matrices = [
        name
        for name, module in block.named_modules()
        if getattr(module, "weight", None) is not None and module.weight.dim() == 2
        and not isinstance(module, torch.nn.Embedding)
    ]  # fmt: skip
    attention = [n for n in matrices if "attn" in n.lower() or "attention" in n.lower()]
    own = [n for n in attention if not any(word in n.lower() for word in CROSS_ATTENTION)]
    chosen = own if kind == "attention" else [n for n in matrices if n not in attention]
    return f"{block_name}.{chosen[-1]}" if chosen else ""


def remove_blocks(model: Any, removed: Collection[str]) -> dict[str, tuple[int, int]]:
    """Take the named blocks out, in place; returns how many each stack had and has.

    The config says so afterwards, lists of one entry a layer included, and the layers are numbered
    anew. Raises RecipeError where a plain model of that config would be another one.
    """
    counts: dict[str, tuple[int, int]] = {}
    for stack, names in _stacks(model).items():
        kept = [number for number, name in enumerate(names) if name not in removed]
        counts[stack] = (len(names), len(kept))
        if len(kept) == len(names):
            continue
        for config, fields in _configs(model, stack):
            _rewrite(config, fields, before=len(names), kept=kept)
        _put(model, stack, kept)
    _require_plain(model)
    return counts


def _stacks(model: Any) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in layer_stops(model):
        found.setdefault(stack_of(name), []).append(name)
    return found


def _put(model: Any, stack: str, kept: list[int]) -> None:
    parent, _, leaf = stack.rpartition(".")
    layers = model.get_submodule(stack)
    setattr(model.get_submodule(parent), leaf, torch.nn.ModuleList([layers[i] for i in kept]))
    for new, old in enumerate(kept):
        for module in layers[old].modules():
            if getattr(module, "layer_idx", None) == old:
                module.layer_idx = new  # Where its keys and values lie in the cache.


def _configs(model: Any, stack: str) -> Iterator[tuple[Any, tuple[str, ...]]]:
    """The configs that count the layers of a stack, and the fields that may."""
    fields: tuple[str, ...] = COUNT_FIELDS
    if model.config.is_encoder_decoder:
        encoder = model.get_encoder()
        inside = any(module is model.get_submodule(stack) for module in encoder.modules())
        fields = ENCODER_FIELDS if inside else DECODER_FIELDS
    seen = [model.config]
    yield model.config, fields
    prefixes = [stack[:i] for i, letter in enumerate(stack) if letter == "."]
    for owner in map(model.get_submodule, prefixes):
        config = getattr(owner, "config", None)
        if config is not None and not any(config is other for other in seen):
            seen.append(config)  # T5's stacks and models of several kinds of input have their own.
            yield config, COUNT_FIELDS


def _rewrite(config: Any, fields: tuple[str, ...], *, before: int, kept: list[int]) -> None:
    for field in fields:
        if getattr(config, field, None) == before:
            setattr(config, field, len(kept))
            break
    else:
        return
    for name, value in config.to_dict().items():
        if "layer" in name and isinstance(value, list | tuple) and len(value) == before:
            setattr(config, name, [value[number] for number in kept])


def _require_plain(model: Any) -> None:
    with torch.device("meta"):
        plain = type(model)(copy.deepcopy(model.config))
    expected = {name: tensor.shape for name, tensor in plain.state_dict().items()}
    found = {name: tensor.shape for name, tensor in model.state_dict().items()}
    odd = sorted(set(expected.items()) ^ set(found.items()))
    if odd:
        raise RecipeError(
            f"depth: a config of {model.config.model_type} cannot say which layers are gone"
            f" ({odd[0][0]}); use the stage width."
        )


def silence(model: Any, parts: Collection[Part]) -> None:
    """Zero the layers that these halves speak through, in place: they add nothing any more."""
    for part in parts:
        layer = model.get_submodule(part.output)
        layer.weight.data.zero_()
        if layer.bias is not None:
            layer.bias.data.zero_()
