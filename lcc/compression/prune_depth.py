"""Depth pruning: how a model's outputs change with parts left out, and the removal of whole layers.

The blocks before stand still and hand on what they gave last time, so that the model's own code
around them (masks, positions, norms, heads) is run as it is and no family needs a word here.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from lcc.core import signals
from lcc.core.errors import RecipeError
from lcc.core.lazy import torch
from lcc.models.blocks import as_linear, blocks

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Linear, Module

    from lcc.calibration.block_walker import Batch

Patch = Callable[..., Any]
Answers = tuple["Tensor", bool]  # (rows, classes or hidden), and whether they are logits


@dataclass(frozen=True)
class Part:
    """A whole block, or the half of it that speaks through the layer `output` alone."""

    block: str
    output: str = ""

    @property
    def name(self) -> str:
        return self.output or self.block


@dataclass
class _AblationRun:
    """One batch, up to which block of each stack it stands finished, and the part now left out."""

    done: dict[str, tuple[int, Any]] = field(default_factory=dict)
    part: Part | None = None


class LayerAblation:
    """Compares a model without some `parts` with the whole one; nothing in it is changed."""

    def __init__(self, model: Any, stops: Mapping[str, Module]) -> None:
        self.model, self.stops = model, stops
        self.order = {name: position for position, name in enumerate(stops)}
        self.left_out: set[Part] = set()
        self.num_block_runs = 0
        self._beside: dict[str, tuple[Any, ...] | None] = {}  # what a block returns after its state
        self._trial: _AblationRun | None = None
        self._is_silent = False

    def divergences(self, batches: Sequence[Batch], parts: Sequence[Part]) -> dict[Part, float]:
        """Mean KL to the whole model without each of `parts` and all that `left_out` names.

        Models without logits are judged by the relative squared change of their last states.
        """
        parts = sorted(parts, key=lambda part: self.order[part.block])
        totals, num_answers = dict.fromkeys(parts, 0.0), 0
        with torch.no_grad(), self._patched(parts):
            for batch in batches:
                whole = self._answers(batch, None)
                trial = _AblationRun()
                for part in parts:
                    trial.part = part
                    totals[part] += divergence(whole, self._answers(batch, trial))
                num_answers += len(whole[0])
        return {part: total / num_answers for part, total in totals.items()}

    def _answers(self, batch: Batch, trial: _AblationRun | None) -> Answers:
        self._trial = trial
        return unpadded_outputs(self.model, batch)

    def _block(self, name: str, forward: Patch, args: Any, kwargs: Any) -> Any:
        """What the block hands on in this run."""
        state = args[0] if args else kwargs["hidden_states"]
        trial, position, stack = self._trial, self.order[name], name.rpartition(".")[0]
        if trial is None:
            output = self._run(forward, args, kwargs)
            self._beside[name] = output[1:] if isinstance(output, tuple) else None
            return output
        assert trial.part is not None
        done, last = trial.done.get(stack, (-1, None))
        if position == done:
            return last
        if position < done or Part(name) in self.left_out:
            return self._passed(name, state)
        output = self._run(forward, args, kwargs)
        if position <= self.order[trial.part.block]:
            trial.done[stack] = (position, output)
        if name != trial.part.block:
            return output
        return self._without(trial.part, state, forward, args, kwargs)

    def _without(self, part: Part, state: Tensor, forward: Patch, args: Any, kwargs: Any) -> Any:
        if not part.output:
            return self._passed(part.block, state)
        self._is_silent = True
        output = self._run(forward, args, kwargs)
        self._is_silent = False
        return output

    def _run(self, forward: Patch, args: Any, kwargs: Any) -> Any:
        self.num_block_runs += 1
        return forward(*args, **kwargs)

    def _passed(self, name: str, state: Tensor) -> Any:
        beside = self._beside[name]
        return state if beside is None else (state, *beside)

    def _output(self, part: Part, forward: Patch, args: Any, kwargs: Any) -> Any:
        """What the layer gives that a half speaks through: nothing while the half is left out."""
        trial = self._trial
        given = forward(*args, **kwargs)
        if trial is None or not (part in self.left_out or (self._is_silent and part == trial.part)):
            return given
        return torch.zeros_like(given)

    @contextmanager
    def _patched(self, parts: Sequence[Part]) -> Iterator[None]:
        halves = {part for part in [*parts, *self.left_out] if part.output}
        with ExitStack() as stack:
            for name, block in self.stops.items():
                stack.enter_context(_replaced(block, self._block, name))
            for part in halves:
                layer = self.model.get_submodule(part.output)
                stack.enter_context(_replaced(layer, self._output, part))
            yield


@contextmanager
def _replaced(module: Any, by: Patch, what: Any) -> Iterator[None]:
    forward = module.forward
    module.forward = lambda *args, **kwargs: by(what, forward, args, kwargs)
    try:
        yield
    finally:
        del module.forward


def unpadded_outputs(model: Any, batch: Batch) -> Answers:
    """The model's answers where the batch has no padding; its last states where it has no head."""
    signals.check("compare")
    cache = {"use_cache": False} if model.config.to_dict().get("use_cache") else {}
    output = model(**batch, **cache)
    is_scored = "logits" in output
    outputs = output.logits if is_scored else output.last_hidden_state
    mask = batch.get("decoder_attention_mask", batch.get("attention_mask"))
    if mask is not None and mask.shape == outputs.shape[:-1]:
        return outputs[mask.bool()].float(), is_scored
    return outputs.reshape(-1, outputs.shape[-1]).float(), is_scored


def divergence(whole: Answers, got: Answers) -> float:
    """Summed over the rows: KL(whole ‖ got) of logits, ‖Δ‖² / ‖whole‖² of states."""
    (expected, is_scored), (given, _) = whole, got
    if not is_scored:
        change = (expected - given).square().sum(-1)
        return float((change / expected.square().sum(-1).clamp(min=1e-30)).sum())
    p, q = expected.log_softmax(-1), given.log_softmax(-1)
    kl = float(torch.nn.functional.kl_div(q, p, log_target=True, reduction="sum"))
    return max(0.0, kl)  # Rounding alone can fall below nothing.


# Taking layers out of a model: which may go, and a config that says what is left.

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
        if getattr(module, "weight", None) is not None
        and module.weight.dim() == 2
        and not isinstance(module, torch.nn.Embedding)
    ]
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
    stacks: dict[str, list[str]] = {}
    for name in layer_stops(model):
        stacks.setdefault(stack_of(name), []).append(name)
    return stacks


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
    for name in fields:
        if getattr(config, name, None) == before:
            setattr(config, name, len(kept))
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
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    odd = sorted(set(expected.items()) ^ set(shapes.items()))
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


# What a model says with other weights in one block: the blocks before it hand on what they gave.
#
# Only the blocks from the changed one on are run again, through the model's own code.


class LayerProbe:
    """Trials against the model as it is; every block's output is kept for every batch."""

    def __init__(self, model: Any, stops: Mapping[str, Module], batches: Sequence[Batch]) -> None:
        self.model, self.stops, self.batches = model, stops, batches
        self.order = {name: position for position, name in enumerate(stops)}
        self._kept: list[dict[str, Any]] = [{} for _ in batches]
        self._from = -1  # the first block that runs; before it all stand still
        self._batch = 0
        self._whole = [self._record(i) for i in range(len(batches))]

    def divergence(self, block: str, weights: Mapping[Linear, Tensor]) -> float:
        """Mean KL to the unchanged model (relative change of states without logits)."""
        total, num = 0.0, 0
        with _changed(weights):
            for index, whole in enumerate(self._whole):
                answers = self._answers(index, start=self.order[block])
                total += divergence(whole, answers)
                num += len(whole[0])
        return total / num

    def _record(self, index: int) -> Answers:
        kept = self._kept[index]

        def keep(name: str, output: Any) -> Any:
            kept[name] = output
            return output

        with self._blocks(lambda name, forward, given: keep(name, forward(*given[0], **given[1]))):
            return self._outputs(self.batches[index])

    def _answers(self, index: int, *, start: int) -> Answers:
        kept = self._kept[index]

        def still(name: str, forward: Any, given: Any) -> Any:
            if self.order[name] < start:
                return kept[name]
            return forward(*given[0], **given[1])

        with self._blocks(still):
            return self._outputs(self.batches[index])

    def _outputs(self, batch: Batch) -> Answers:
        with torch.no_grad():
            return unpadded_outputs(self.model, batch)

    @contextmanager
    def _blocks(self, instead: Any) -> Iterator[None]:
        with ExitStack() as stack:
            for name, block in self.stops.items():
                stack.enter_context(_output_replaced(block, name, instead))
            yield


@contextmanager
def _output_replaced(block: Any, name: str, instead: Any) -> Iterator[None]:
    forward = block.forward
    block.forward = lambda *args, **kwargs: instead(name, forward, (args, kwargs))
    try:
        yield
    finally:
        del block.forward


@contextmanager
def _changed(weights: Mapping[Linear, Tensor]) -> Iterator[None]:
    """While open, these layers have other weights."""
    before = {layer: layer.weight.data for layer in weights}
    try:
        for layer, weight in weights.items():
            layer.weight.data = weight.to(layer.weight.dtype)
        yield
    finally:
        for layer, weight in before.items():
            layer.weight.data = weight
