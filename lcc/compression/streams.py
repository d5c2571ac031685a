"""The hidden width: every layer that writes to or reads from a residual stream, cut as one.

Inside the blocks a linear layer reads the stream unless it reads feed-forward channels or heads,
and writes to it if it reads those. What has the hidden width beside them are embeddings, norms,
bare parameters and heads.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from lcc.compression.families import HEADS_IN_HIDDEN, attentions, key_value_groups
from lcc.compression.pruning import feed_forwards
from lcc.compression.units import Axis, Member, Unit
from lcc.core.errors import RecipeError
from lcc.core.lazy import torch
from lcc.engine.blocks import blocks

if TYPE_CHECKING:
    from torch.nn import Module

STREAMS = ("hidden", "encoder", "decoder")  # a shared one, or one each
# One size per head or per position: a width only by chance.
NO_WIDTH = ("relative_attention_bias", "q_norm", "k_norm")


def streams(model: Any) -> list[Unit]:
    """The model's streams, then what the config ties to their width: heads, and a pooler's outputs.

    Encoder and decoder share one stream where they share embeddings.
    """
    config = model.config.get_text_config()
    width, heads = int(config.hidden_size), "_attention_heads"
    if len({getattr(config, f"{stack}{heads}", 0) for stack in ("encoder", "decoder")}) > 1:
        raise RecipeError(
            "width.dims: encoder and decoder have heads of different width here, so that no hidden"
            " width takes whole heads along in both; use dims=ffn."
        )
    inner = _inner(model)
    pooler = _pooler(model, width)
    own = {m.name for m in pooler.members if m.axis == "in"} if pooler else set()
    members = [m for m in _members(model, width, inner, pooler) if m.name not in own]
    found = _split(members) if _has_two_streams(model) else {"hidden": members}
    units = [Unit(name, width, tuple(m)) for name, m in found.items()]
    if model.config.model_type in HEADS_IN_HIDDEN:
        units += key_value_groups(model)
    return units if pooler is None else [*units, pooler]


def _inner(model: Any) -> dict[str, Axis]:
    """Which axis of each layer in the blocks is not on a stream."""
    found: dict[str, Axis] = {}
    for unit in feed_forwards(model):
        found |= {m.name: m.axis for m in unit.members}
    for attention in attentions(model):
        for name, _ in (attention.query, attention.key, attention.value):
            found[name] = "out"
        found[attention.output[0]] = "in"
    return found


def _members(
    model: Any, width: int, inner: dict[str, Axis], pooler: Unit | None
) -> Iterator[Member]:
    within, vocabulary = tuple(f"{b}." for b in blocks(model)), model.get_output_embeddings()
    pooled = {m.name for m in pooler.members} if pooler else set()
    for name, module in model.named_modules():
        if name.endswith(NO_WIDTH):
            continue
        if isinstance(module, torch.nn.Linear) and name.startswith(within):
            assert name in inner, f"{name} is neither feed-forward nor attention"
            yield Member(name, module, "in" if inner[name] == "out" else "out")
        elif isinstance(module, torch.nn.Linear | torch.nn.Conv1d | torch.nn.Conv2d):
            out_width, in_width = module.weight.shape[:2]
            if in_width == width:
                yield Member(name, module, "in")
            if out_width == width and name not in pooled and module is not vocabulary:
                yield Member(name, module, "out")
        else:
            yield from _others(name, module, width)


def _others(name: str, module: Any, width: int) -> Iterator[Member]:
    """Embeddings, norms, and parameters that hang on the module itself."""
    own = dict(module.named_parameters(recurse=False))
    if isinstance(module, torch.nn.Embedding):
        if module.embedding_dim == width:
            yield Member(name, module, "out")
    elif set(own) <= {"weight", "bias"} and "weight" in own:
        if tuple(own["weight"].shape) == (width,):
            yield Member(name, module, "out")
    else:
        for key, parameter in own.items():
            if parameter.shape[-1] == width:
                yield Member(f"{name}.{key}", module, "out", parameter=key)


def _has_two_streams(model: Any) -> bool:
    """An encoder that reads no tokens of the decoder's embeddings has a stream of its own."""
    if not model.config.is_encoder_decoder:
        return False
    encoder, decoder = model.get_encoder(), model.get_decoder()
    ids = {id(p) for p in encoder.parameters()}
    return not any(id(p) in ids for p in decoder.parameters())


def _split(members: list[Member]) -> dict[str, list[Member]]:
    """By stack; the keys and values of cross-attention read the encoder's stream."""
    found: dict[str, list[Member]] = {"encoder": [], "decoder": []}
    for member in members:
        crosses = member.name.endswith(("encoder_attn.k_proj", "encoder_attn.v_proj"))
        in_encoder = ".encoder." in f".{member.name}"
        is_read = crosses and member.axis == "in"
        found["encoder" if in_encoder or is_read else "decoder"].append(member)
    return found


def _pooler(model: Any, width: int) -> Unit | None:
    """A layer from hidden width to hidden width over the blocks, with the layers that read it.

    Its outputs are no stream, but configs have no other word for their number. Where its reader
    is tied to the embeddings they are the stream's.
    """
    embeddings = model.get_input_embeddings()
    outside = [(n, m) for n, m in model.named_modules() if _is_square_reader(model, n, m, width)]
    square = next(((n, m) for n, m in outside if m.out_features == width), None)
    if square is None:
        return None
    readers = [(n, m) for n, m in outside if m is not square[1]]
    if any(m.weight is embeddings.weight for _, m in readers):
        return None
    members = (Member(*square, "out"), *(Member(n, m, "in") for n, m in readers))
    return Unit(square[0], width, members)


def _is_square_reader(model: Any, name: str, module: Module, width: int) -> bool:
    inside = name.startswith(tuple(f"{block}." for block in blocks(model)))
    return isinstance(module, torch.nn.Linear) and not inside and module.in_features == width
