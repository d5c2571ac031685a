"""Pruning groups: the axes of layers that lose the same channels, heads or hidden width together."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from lcc.core.errors import RecipeError
from lcc.core.lazy import torch, torch_pruning
from lcc.models.blocks import blocks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor
    from torch.nn import Linear, Module, Parameter

# What is cut as one: an axis of several layers whose entries stand for the same thing.

Axis = Literal["in", "out"]


@dataclass(frozen=True)
class GroupMember:
    """One axis of one layer: `size` neighbouring entries stand for each thing that may go.

    The axis may be `copies` such runs, one behind the other (GPT-2's q, k and v in one layer).
    A bare parameter is a member of the module it hangs on; its last dimension is cut.
    """

    name: str
    layer: Module
    axis: Axis
    size: int = 1
    copies: int = 1
    parameter: str = ""  # of a bare one

    @property
    def length(self) -> int:
        return next(int(p.shape[dim]) for p, dim in self.parameters())

    def parameters(self) -> list[tuple[Parameter, int]]:
        """Each parameter of the layer that has this axis, and which of its dimensions it is."""
        if self.parameter:
            return [(getattr(self.layer, self.parameter), -1)]
        weight: Any = self.layer.weight
        if isinstance(self.layer, torch.nn.Embedding):
            return [(weight, 1)]
        if self.axis == "in":
            return [(weight, 1)]
        bias: Any = getattr(self.layer, "bias", None)
        return [(weight, 0)] if bias is None else [(weight, 0), (bias, 0)]

    def entries(self, kept: Sequence[int]) -> list[int]:
        """Where on the axis the things with these numbers are."""
        run = self.length // self.copies
        return [
            copy * run + thing * self.size + i
            for copy in range(self.copies)
            for thing in kept
            for i in range(self.size)
        ]

    def totals(self, score: Tensor, dim: int) -> Tensor:
        """The sum of the scores of a parameter for each thing: (num,)."""
        others = [d for d in range(score.dim()) if d != dim % score.dim()]
        along = score.sum(dim=others) if others else score
        return along.view(self.copies, -1, self.size).sum(dim=(0, 2))


@dataclass(frozen=True)
class PruningGroup:
    """`num` channels or heads of which the same stay in every member.

    Of each of `runs` equal runs of neighbours the same number stays: the query heads of every
    key-value head. `field` says where the config states the number.
    """

    name: str
    num: int
    members: tuple[GroupMember, ...]
    field: str = ""
    runs: int = 1

    @property
    def consumers(self) -> dict[str, Linear]:
        """The linear layers that read what is cut, by name: these are ranked by and repaired."""
        layers: dict[str, Any] = {m.name: m.layer for m in self.members if m.axis == "in"}
        return {n: layer for n, layer in layers.items() if isinstance(layer, torch.nn.Linear)}

    def consumer(self, name: str) -> GroupMember:
        return next(m for m in self.members if m.axis == "in" and m.name == name)

    def columns(self, name: str, kept: Sequence[int]) -> list[int]:
        """Which inputs of a consumer belong to these channels or heads."""
        return self.consumer(name).entries(kept)

    def best(self, importance: Tensor, num_kept: int) -> list[int]:
        """The most important ones, the same number of every run, in their old order."""
        assert num_kept % self.runs == 0, (num_kept, self.runs)
        each, length = num_kept // self.runs, self.num // self.runs
        ranked = importance.view(self.runs, length).topk(each).indices
        starts = torch.arange(self.runs, device=ranked.device).unsqueeze(1) * length
        return sorted((ranked + starts).flatten().tolist())

    def keep(self, kept: Sequence[int]) -> None:
        """Cut everything else away, in place; parameters that are one stay one."""
        # All entries first: a tied matrix shrinks for the second member as soon as for the first.
        plans = [(member, member.entries(kept), member.parameters()) for member in self.members]
        done: set[tuple[int, int]] = set()
        for _, entries, parameters in plans:
            for parameter, dim in parameters:
                if (id(parameter), dim) not in done:
                    _keep(parameter, dim, entries)
                    done.add((id(parameter), dim))
        for member in self.members:
            _restate(member.layer)


def _keep(parameter: Parameter, dim: int, entries: list[int]) -> None:
    index = torch.tensor(entries, device=parameter.device)
    parameter.data = parameter.data.index_select(dim % parameter.dim(), index)
    parameter.grad = None


def _restate(layer: Any) -> None:
    """Make the layer say the shape it has."""
    if isinstance(layer, torch.nn.Linear):
        layer.out_features, layer.in_features = layer.weight.shape
    elif isinstance(layer, torch.nn.Embedding):
        layer.embedding_dim = layer.weight.shape[1]
    elif isinstance(layer, torch.nn.LayerNorm):
        layer.normalized_shape = tuple(layer.weight.shape)
    elif isinstance(layer, torch.nn.Conv1d | torch.nn.Conv2d):
        layer.out_channels, layer.in_channels = layer.weight.shape[:2]


# Query, key, value and output of an attention module, as its children are called.
PROJECTIONS = (
    ("q_proj", "k_proj", "v_proj", "o_proj"),
    ("q_proj", "k_proj", "v_proj", "out_proj"),
    ("q", "k", "v", "o"),
)
# Their config states the width of a head, so fewer heads load as a plain config.
HEADS_STATED = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "granite",
                "smollm3", "helium", "t5", "mt5", "vit")  # fmt: skip
# The width of their heads is hidden width / heads: a smaller hidden width takes heads along.
HEADS_IN_HIDDEN = ("gpt2", "bert", "whisper")
HIDDEN_KNOWN = ("llama", "mistral", "qwen2", "qwen3", "gemma3_text", "t5", "mt5", "vit", *HEADS_IN_HIDDEN)
# Every layer of a stack adds the same position bias, head by head.
POSITION_BIASED = ("t5", "mt5")
# The consumers of their feed-forward and attention layers have no bias.
UNBIASED = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "smollm3", "t5", "mt5")


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
        raise RecipeError(f"width.repair: {config['model_type']} has no biases to repair; use ridge or none.")


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


def key_value_groups(model: Any) -> list[PruningGroup]:
    """Each attention layer by key-value heads; one goes with the query heads that share it."""
    width = head_dim(model.config)
    units = []
    for attention in attentions(model):
        num_heads, num = attention.heads(width)
        wide = num_heads // num * width
        members: tuple[GroupMember, ...] = (
            GroupMember(attention.query[0], attention.query[1], "out", wide),
            GroupMember(attention.key[0], attention.key[1], "out", width),
            GroupMember(attention.value[0], attention.value[1], "out", width),
            GroupMember(attention.output[0], attention.output[1], "in", wide),
        )
        if attention.is_fused:
            members = (
                GroupMember(attention.query[0], attention.query[1], "out", width, copies=3),
                members[3],
            )
        units.append(PruningGroup(attention.output[0], num, members))
    return _joined(model, units)


def query_heads(model: Any) -> list[PruningGroup]:
    """Each attention layer by query heads; where every head has keys of its own, these go too."""
    width = head_dim(model.config)
    units = []
    for attention in attentions(model):
        num_heads, num = attention.heads(width)
        if num_heads == num:
            return key_value_groups(model)
        members = (
            GroupMember(attention.query[0], attention.query[1], "out", width),
            GroupMember(attention.output[0], attention.output[1], "in", width),
        )
        units.append(PruningGroup(attention.output[0], num_heads, members, runs=num))
    return units


def _joined(model: Any, units: list[PruningGroup]) -> list[PruningGroup]:
    """Layers that add one position bias lose the same heads."""
    if model.config.model_type not in POSITION_BIASED:
        return units
    stacks: dict[str, list[PruningGroup]] = {}
    for unit in units:
        is_biased = ".SelfAttention." in unit.name
        stacks.setdefault(unit.name.split(".block.")[0] if is_biased else unit.name, []).append(unit)
    biases = [(n, m) for n, m in model.named_modules() if n.endswith("relative_attention_bias")]
    joined = []
    for stack, together in stacks.items():
        own = [GroupMember(n, m, "out") for n, m in biases if n.startswith(f"{stack}.block.")]
        members = (*(member for unit in together for member in unit.members), *own)
        joined.append(PruningGroup(stack, together[0].num, members))
    return joined


# Feed-forward channels that go as one, found through the dependency graph of torch-pruning.
#
# The graph says what is coupled (DepGraph; Fang et al., 2023). Heads and the hidden width are found
# by layout (`families`, `streams`): the graph skips heads behind q/k norms without a word, never
# cuts key-value heads, and unties embeddings where encoder and decoder share them.

# Where the graph of the whole model cannot be built: GPT-2 splits one projection into q, k and v.
TRACED_ALONE = {"gpt2": "mlp"}


def feed_forwards(model: Any) -> list[PruningGroup]:
    """The feed-forward layers inside the blocks.

    A group of linear layers that touches nothing else and ends in one consumer is one: anything
    on the residual stream would drag norms and embeddings along.
    """
    names = {module: name for name, module in model.named_modules()}
    alone = TRACED_ALONE.get(model.config.model_type)
    graph = None if alone else _graph(model, example_inputs=example(model))
    units: dict[str, PruningGroup] = {}
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


def _unit(graph: Any, layer: Linear, names: dict[Module, str]) -> PruningGroup | None:
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
    members = [GroupMember(names[producer], producer, "out") for producer in producers]
    consumer = GroupMember(names[consumers[0]], consumers[0], "in")
    return PruningGroup(consumer.name, consumers[0].in_features, (*members, consumer))


# The hidden width: every layer that writes to or reads from a residual stream, cut as one.
#
# Inside the blocks a linear layer reads the stream unless it reads feed-forward channels or heads,
# and writes to it if it reads those. What has the hidden width beside them are embeddings, norms,
# bare parameters and heads.

STREAMS = ("hidden", "encoder", "decoder")  # a shared one, or one each
# One size per head or per position: a width only by chance.
NO_WIDTH = ("relative_attention_bias", "q_norm", "k_norm")


def streams(model: Any) -> list[PruningGroup]:
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
    by_stream = _split(members) if _has_two_streams(model) else {"hidden": members}
    units = [PruningGroup(name, width, tuple(m)) for name, m in by_stream.items()]
    if model.config.model_type in HEADS_IN_HIDDEN:
        units += key_value_groups(model)
    return units if pooler is None else [*units, pooler]


def _inner(model: Any) -> dict[str, Axis]:
    """Which axis of each layer in the blocks is not on a stream."""
    axes: dict[str, Axis] = {}
    for unit in feed_forwards(model):
        axes |= {m.name: m.axis for m in unit.members}
    for attention in attentions(model):
        for name, _ in (attention.query, attention.key, attention.value):
            axes[name] = "out"
        axes[attention.output[0]] = "in"
    return axes


def _members(
    model: Any, width: int, inner: dict[str, Axis], pooler: PruningGroup | None
) -> Iterator[GroupMember]:
    within, vocabulary = tuple(f"{b}." for b in blocks(model)), model.get_output_embeddings()
    pooled = {m.name for m in pooler.members} if pooler else set()
    for name, module in model.named_modules():
        if name.endswith(NO_WIDTH):
            continue
        if isinstance(module, torch.nn.Linear) and name.startswith(within):
            assert name in inner, f"{name} is neither feed-forward nor attention"
            yield GroupMember(name, module, "in" if inner[name] == "out" else "out")
        elif isinstance(module, torch.nn.Linear | torch.nn.Conv1d | torch.nn.Conv2d):
            out_width, in_width = module.weight.shape[:2]
            if in_width == width:
                yield GroupMember(name, module, "in")
            if out_width == width and name not in pooled and module is not vocabulary:
                yield GroupMember(name, module, "out")
        else:
            yield from _others(name, module, width)


def _others(name: str, module: Any, width: int) -> Iterator[GroupMember]:
    """Embeddings, norms, and parameters that hang on the module itself."""
    own = dict(module.named_parameters(recurse=False))
    if isinstance(module, torch.nn.Embedding):
        if module.embedding_dim == width:
            yield GroupMember(name, module, "out")
    elif set(own) <= {"weight", "bias"} and "weight" in own:
        if tuple(own["weight"].shape) == (width,):
            yield GroupMember(name, module, "out")
    else:
        for key, parameter in own.items():
            if parameter.shape[-1] == width:
                yield GroupMember(f"{name}.{key}", module, "out", parameter=key)


def _has_two_streams(model: Any) -> bool:
    """An encoder that reads no tokens of the decoder's embeddings has a stream of its own."""
    if not model.config.is_encoder_decoder:
        return False
    encoder, decoder = model.get_encoder(), model.get_decoder()
    ids = {id(p) for p in encoder.parameters()}
    return not any(id(p) in ids for p in decoder.parameters())


def _split(members: list[GroupMember]) -> dict[str, list[GroupMember]]:
    """By stack; the keys and values of cross-attention read the encoder's stream."""
    by_stack: dict[str, list[GroupMember]] = {"encoder": [], "decoder": []}
    for member in members:
        crosses = member.name.endswith(("encoder_attn.k_proj", "encoder_attn.v_proj"))
        in_encoder = ".encoder." in f".{member.name}"
        is_read = crosses and member.axis == "in"
        by_stack["encoder" if in_encoder or is_read else "decoder"].append(member)
    return by_stack


def _pooler(model: Any, width: int) -> PruningGroup | None:
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
    members = (GroupMember(*square, "out"), *(GroupMember(n, m, "in") for n, m in readers))
    return PruningGroup(square[0], width, members)


def _is_square_reader(model: Any, name: str, module: Module, width: int) -> bool:
    inside = name.startswith(tuple(f"{block}." for block in blocks(model)))
    return isinstance(module, torch.nn.Linear) and not inside and module.in_features == width
