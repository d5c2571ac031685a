"""Runs the blocks of a model one after another for many batches side by side.

Every batch's forward is a coroutine that waits before each block. What a block is called with
(masks, positions, another block's bias, the encoder's output) stays where the model's own code
keeps it, so no family needs a word here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lcc.core.errors import RecipeError
from lcc.core.lazy import greenlet, torch
from lcc.engine.blocks import blocks

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

Batch = dict[str, Any]  # keyword arguments of the model: int64 tensors (batch, tokens)
See = Callable[[str, "Tensor", "Padding"], None]
"""Told a layer's name, its input (…, in), and which positions of the batch are padding."""


@dataclass
class Call:
    """One batch, waiting before a block with what the block is about to be given."""

    coroutine: Any
    padding: Padding
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] | None = None


class Visit:
    """One block, and every batch's call of it."""

    def __init__(self, name: str, module: Module, calls: Sequence[Call]) -> None:
        self.name, self.module, self._calls = name, module, calls
        self._on_leaving: tuple[Mapping[str, Module], See] | None = None

    def watch(
        self, layers: Mapping[str, Module], see: See, *, num_batches: int | None = None
    ) -> None:
        """Run the block on each batch (or the first few) and drop what comes out."""
        for call in self._calls[:num_batches]:
            with torch.no_grad(), _watching(layers, see, call.padding):
                self.module(*call.args, **(call.kwargs or {}))

    def watch_on_leaving(self, layers: Mapping[str, Module], see: See) -> None:
        """See the inputs of `layers` in the run that leads to the next block: no run of its own."""
        self._on_leaving = (layers, see)

    @contextmanager
    def leaving(self, call: Call) -> Iterator[None]:
        layers, see = self._on_leaving or ({}, _ignore)
        with _watching(layers, see, call.padding):
            yield


class Padding:
    """Which positions of a layer's input are real; what reads the encoder has the encoder's."""

    def __init__(self, model: Any, batch: Batch) -> None:
        is_pair = bool(getattr(model.config, "is_encoder_decoder", False))
        self.source: Tensor | None = _mask(batch.get("attention_mask"))
        self.target = _mask(batch.get("decoder_attention_mask")) if is_pair else self.source
        self.encoded: Tensor | None = None
        self.encoder = model.get_encoder() if is_pair else None
        self.prefix = next((n for n, m in model.named_modules() if m is self.encoder), "")

    def removed(self, name: str, x: Tensor) -> Tensor:
        """The real rows of `x`, (tokens, in)."""
        in_encoder = self.encoder is not None and name.startswith(f"{self.prefix}.")
        mask = self.source if in_encoder or x is self.encoded else self.target
        # A pooled input, one row per text, has no padding; neither have images and sounds.
        if mask is None or x.shape[:-1] != mask.shape:
            return x.reshape(-1, x.shape[-1])
        return x[mask]


def _mask(given: Any) -> Tensor | None:
    # A mask over sound frames is longer than what the encoder's convolutions leave of them.
    return None if given is None else given.bool()


def walk(
    model: Any,
    body: Any,
    batches: Sequence[Batch],
    *,
    outside: Mapping[str, Module] | None = None,
    see: See | None = None,
) -> Iterator[Visit]:
    """Each block in forward order; what the caller changes in it is what later blocks see.

    `body` is the part of `model` that is run; `see` is told the inputs of the layers `outside` the
    blocks. Raises RecipeError for a model whose blocks are not run once each, in order.
    """
    stops = blocks(model)
    if not stops:
        raise RecipeError(f"{type(model).__name__} has no repeated blocks to walk over.")
    calls = [_call(model, body, batch) for batch in batches]
    with _paused(stops), _encoders_output(calls):
        for call in calls:
            with _watching(outside or {}, see or _ignore, call.padding):
                _go_on(call, expected=next(iter(stops)))
        following = [*list(stops)[1:], None]
        for (name, block), expected in zip(stops.items(), following, strict=True):
            visit = Visit(name, block, calls)
            yield visit
            for call in calls:
                around = _watching(outside or {}, see or _ignore, call.padding)
                with around, visit.leaving(call):
                    _go_on(call, expected=expected)


def _call(model: Any, body: Any, batch: Batch) -> Call:
    inputs = {**batch, "use_cache": False} if body.config.to_dict().get("use_cache") else batch
    return Call(greenlet.greenlet(lambda: body(**inputs)), Padding(model, batch))


def _go_on(call: Call, *, expected: str | None) -> None:
    """Run the batch up to the block it meets next."""
    call.args, call.kwargs = (), None
    with torch.no_grad():
        met = call.coroutine.switch()
    name, call.args, call.kwargs = (None, (), {}) if call.coroutine.dead else met
    if name != expected:
        raise RecipeError(
            f"calibration: after a block the model went on to {name or 'its end'}, not to"
            f" {expected or 'its end'}; its blocks are not run once each, in order."
        )


@contextmanager
def _paused(stops: Mapping[str, Module]) -> Iterator[None]:
    """While open, every forward of these blocks inside a coroutine waits to be told to go on."""

    def pausing(name: str, forward: Any) -> Any:
        def paused(*args: Any, **kwargs: Any) -> Any:
            here = greenlet.getcurrent()
            if here.parent is not None:
                here.parent.switch((name, args, kwargs))
            return forward(*args, **kwargs)

        return paused

    for name, block in stops.items():
        block.forward = pausing(name, block.forward)
    try:
        yield
    finally:
        for block in stops.values():
            del block.forward


@contextmanager
def _encoders_output(calls: Sequence[Call]) -> Iterator[None]:
    """While open, each batch remembers its encoder's output, to know its readers by."""
    encoder = calls[0].padding.encoder
    if encoder is None:
        yield
        return
    paddings = {call.coroutine: call.padding for call in calls}

    def note(_module: Any, _inputs: Any, output: Any) -> None:
        paddings[greenlet.getcurrent()].encoded = output[0]

    handle = encoder.register_forward_hook(note)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _watching(layers: Mapping[str, Module], see: See, padding: Padding) -> Iterator[None]:
    def watch(name: str) -> Any:
        return lambda _module, inputs: see(name, inputs[0], padding)

    handles = [layer.register_forward_pre_hook(watch(name)) for name, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _ignore(_name: str, _x: Tensor, _padding: Padding) -> None:
    """Nobody watches."""
