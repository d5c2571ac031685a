"""Runs the blocks of a model one after another for many batches side by side.

Every batch's forward is a coroutine that waits before each block. What a block is called with
(masks, positions, another block's bias, the encoder's output) stays where the model's own code
keeps it, so no family needs a word here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lcc.core import preemption
from lcc.core.errors import RecipeError
from lcc.core.lazy import greenlet, torch
from lcc.engine.blocks import blocks
from lcc.engine.bringing import inner_weights, outer_weights
from lcc.engine.padding import Padding
from lcc.engine.spilling import Spill

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    from lcc.parts.streaming import Streamed

NUM_LOOKED_AT = 16  # tokens that tell in which order the blocks run
Batch = dict[str, Any]  # keyword arguments of the model: int64 tensors (batch, tokens)
See = Callable[[str, "Tensor", "Padding"], None]
"""Told a layer's name, its input (…, in), and which positions of the batch are padding."""


class _Enough(Exception):
    """Every input was seen that is waited for: what a block would make of them is dropped."""


@dataclass(eq=False)
class Call:
    """One batch, waiting before a block with what the block is about to be given.

    An `unseen` one runs along, but nobody looks at its inputs.
    """

    coroutine: Any
    padding: Padding
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] | None = None
    unseen: bool = False
    output: Any = None  # of the whole forward, once it has ended


@dataclass
class Aside:
    """One more batch that runs along unseen through the whole `model`, for its `output`."""

    model: Any
    batch: Batch
    output: Any = None


@dataclass(frozen=True)
class Memory:
    """What the walk keeps out of memory: weights but for one block, and waiting batches' tensors.

    `limit` is what all waiting batches may hold, in bytes; the rest goes below `folder`.
    """

    weights: Streamed | None = None
    limit: int | None = None
    folder: Path | None = None


class Visit:
    """One block, and every batch's call of it."""

    def __init__(self, name: str, module: Module, calls: Sequence[Call], spill: Spill) -> None:
        self.name, self.module, self._spill = name, module, spill
        self._calls = [call for call in calls if not call.unseen]
        self._on_leaving: tuple[Mapping[str, Module], See] | None = None

    def watch(
        self, layers: Mapping[str, Module], see: See, *, num_batches: int | None = None
    ) -> None:
        """Run the block on each batch (or the first few), no further than to the last input."""
        ran, last = list[str](), ""

        def seen(name: str, x: Tensor, padding: Padding) -> None:
            see(name, x, padding)
            ran.append(name)
            if name == last:
                raise _Enough

        for call in self._calls[:num_batches]:
            preemption.check("calibrate")
            self._spill.wake(call)
            with torch.no_grad(), _watching(layers, seen, call.padding), suppress(_Enough):
                self.module(*call.args, **(call.kwargs or {}))
            self._spill.park(call)
            # Where layers are run again, or not by all tokens, none is known to be the last.
            last = last or (ran[-1] if sorted(ran) == sorted(layers) else "")

    def watch_on_leaving(self, layers: Mapping[str, Module], see: See) -> None:
        """See the inputs of `layers` in the run that leads to the next block: no run of its own."""
        self._on_leaving = (layers, see)

    @contextmanager
    def leaving(self, call: Call) -> Iterator[None]:
        layers, see = ({}, _ignore) if call.unseen else self._on_leaving or ({}, _ignore)
        with _watching(layers, see, call.padding):
            yield


def walk(
    model: Any,
    body: Any,
    batches: Sequence[Batch],
    *,
    outside: Mapping[str, Module] | None = None,
    see: See | None = None,
    memory: Memory | None = None,
    aside: Aside | None = None,
) -> Iterator[Visit]:
    """Each block in forward order; what the caller changes in it is what later blocks see.

    `body` is the part of `model` that is run; `see` is told the inputs of the layers `outside` the
    blocks. Raises RecipeError for a model whose blocks are not run once each, in order.
    """
    stops, memory = blocks(model), memory or Memory()
    if not stops:
        raise RecipeError(f"{type(model).__name__} has no repeated blocks to walk over.")
    calls = [_call(model, body, batch) for batch in batches]
    if aside is not None:
        calls.append(_call(model, aside.model, aside.batch, unseen=True))
    spill = Spill(model, limit=memory.limit, folder=memory.folder)
    with closing(spill), _paused(stops), _encoders_output(calls):
        steps = _Steps(calls, outside or {}, see or _ignore, spill)
        with outer_weights(stops, memory.weights):
            steps.go_on(None, expected=next(iter(stops)))
        following = [*list(stops)[1:], None]
        for (name, block), expected in zip(stops.items(), following, strict=True):
            with inner_weights(name, memory.weights):
                visit = Visit(name, block, calls, spill)
                yield visit
                with outer_weights(stops, memory.weights):
                    steps.go_on(visit, expected=expected)
    if aside is not None:
        aside.output = calls[-1].output


def runs_in_order(model: Any, body: Any, batch: Batch) -> bool:
    """Whether every block runs once, in order; ALBERT's run again and again."""
    stops, ran = blocks(model), list[str]()
    # One row, and of tokens (all that has two dimensions) a few.
    short = {k: v[:1, :NUM_LOOKED_AT] if v.ndim == 2 else v[:1] for k, v in batch.items()}
    call = _call(model, body, short)
    with _paused(stops), torch.no_grad():
        met = call.coroutine.switch()
        while not call.coroutine.dead:
            ran.append(met[0])
            met = call.coroutine.switch()
    return ran == list(stops)


def run_whole(
    model: Any, body: Any, batches: Sequence[Batch], *, layers: Mapping[str, Module], see: See
) -> None:
    """Run `body` on each batch from end to end, and see the inputs of `layers`."""
    for batch in batches:
        preemption.check("calibrate")
        call = _call(model, body, batch)
        with _encoders_output([call]), _watching(layers, see, call.padding), torch.no_grad():
            call.coroutine.switch()


def _call(model: Any, body: Any, batch: Batch, *, unseen: bool = False) -> Call:
    inputs = {**batch, "use_cache": False} if body.config.to_dict().get("use_cache") else batch
    coroutine = greenlet.greenlet(lambda: body(**inputs))
    return Call(coroutine, Padding(model, batch), unseen=unseen)


@dataclass(frozen=True)
class _Steps:
    """All batches, and who looks at what they read outside the blocks."""

    calls: Sequence[Call]
    outside: Mapping[str, Module]
    see: See
    spill: Spill

    def go_on(self, visit: Visit | None, *, expected: str | None) -> None:
        """Run every batch up to the block it meets next."""
        for call in self.calls:
            preemption.check("calibrate")
            self.spill.wake(call)
            layers = {} if call.unseen else self.outside
            around = nullcontext() if visit is None else visit.leaving(call)
            with _watching(layers, self.see, call.padding), around:
                _go_on(call, expected=expected)
            self.spill.park(call)


def _go_on(call: Call, *, expected: str | None) -> None:
    """Run the batch up to the block it meets next."""
    call.args, call.kwargs = (), None
    with torch.no_grad():
        met = call.coroutine.switch()
    if call.coroutine.dead:
        name, call.output = None, met if call.unseen else None
    else:
        name, call.args, call.kwargs = met
    if name != expected:
        raise RecipeError(
            f"calibration: after a block the model went on to {name or 'its end'}, not to"
            f" {expected or 'its end'}; its blocks are not run once each, in order, so set"
            " calibration.mode=dense."
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
