"""Block walker: runs the blocks of a model one after another for many batches side by side.

Every batch's forward is a coroutine that waits before each block. What a block is called with
(masks, positions, another block's bias, the encoder's output) stays where the model's own code
keeps it, so no family needs a word here.
"""

from __future__ import annotations

import ctypes
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lcc.core import signals
from lcc.core.errors import RecipeError
from lcc.core.lazy import greenlet, torch
from lcc.models.blocks import blocks

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    from lcc.models.offload import OffloadedModule

# Tensors of waiting batches on disk, once they would take more memory than is allowed.
#
# A waiting coroutine's frames hold its tensors, so their storage is emptied in place (as FSDP does)
# and filled again before the batch runs.

SMALL_BYTES = 1 << 18  # not worth a file


class Spill:
    """Keeps at most `limit` bytes of the waiting batches' tensors in memory; the rest in files.

    Without a limit all of them stay.
    """

    def __init__(self, model: Module, *, limit: int | None = None, folder: Path | None = None) -> None:
        self.model, self.limit, self.folder = model, limit, folder
        self.held: dict[int, int] = {}  # call → bytes it keeps in memory while it waits
        self.asleep: dict[int, list[_Asleep]] = {}
        self._known: dict[int, list[weakref.ref[Tensor]]] = {}
        self._scratch: tempfile.TemporaryDirectory[str] | None = None

    def park(self, call: Call) -> None:
        """The batch will wait: what it holds goes to disk, where memory is short."""
        if self.limit is None:
            return
        storages = self._storages(call)
        size = sum(s.nbytes() for s in storages)
        if sum(self.held.values()) + size <= self.limit:
            self.held[id(call)] = size
            return
        files = (self._place() / f"{id(call)}-{i}" for i in range(len(storages)))
        self.asleep[id(call)] = [
            _Asleep(storage, file) for storage, file in zip(storages, files, strict=False)
        ]

    def wake(self, call: Call) -> None:
        """The batch will run."""
        self.held.pop(id(call), None)
        for sleeping in self.asleep.pop(id(call), []):
            sleeping.wake()

    def close(self) -> None:
        """Empty storages would be read as garbage by whoever still holds them: fill them again."""
        for sleeping in [s for group in self.asleep.values() for s in group]:
            sleeping.wake()
        self.asleep.clear()
        if self._scratch is not None:
            self._scratch.cleanup()

    def _place(self) -> Path:
        if self._scratch is None:
            self._scratch = tempfile.TemporaryDirectory(dir=self.folder, prefix="waiting-")
        return Path(self._scratch.name)

    def _storages(self, call: Call) -> list[Any]:
        """What the batch is to be given and was given earlier, and still holds, each once."""
        known = self._known.setdefault(id(call), [])
        known[:] = [ref for ref in known if ref() is not None]
        seen = {id(ref()) for ref in known}
        now = [t for t in _tensors((call.args, call.kwargs)) if id(t) not in seen]
        known += [weakref.ref(tensor) for tensor in now]
        alive = [tensor for ref in known if (tensor := ref()) is not None]
        storages = {s.data_ptr(): s for t in alive if (s := t.untyped_storage()).data_ptr()}
        foreign = self._foreign(call)
        return [s for key, s in storages.items() if key not in foreign and s.nbytes() >= SMALL_BYTES]

    def _foreign(self, call: Call) -> set[int]:
        """Memory that others read too: the model's own, and other batches'."""
        own = [*self.model.parameters(), *self.model.buffers()]
        others = [ref() for key, refs in self._known.items() if key != id(call) for ref in refs]
        shared = [t for t in [*own, *others] if t is not None and t.device.type != "meta"]
        return {tensor.untyped_storage().data_ptr() for tensor in shared}


class _Asleep:
    """A storage whose bytes are in a file meanwhile."""

    def __init__(self, storage: Any, file: Path) -> None:
        self.storage, self.file, self.size = storage, file, storage.nbytes()
        with file.open("wb", buffering=0) as stream:
            view, done = _bytes(storage.cpu()), 0
            while done < self.size:
                done += stream.write(view[done:]) or 0
        storage.resize_(0)

    def wake(self) -> None:
        self.storage.resize_(self.size)
        filled = self.storage.cpu()
        with self.file.open("rb", buffering=0) as stream:
            view, done = _bytes(filled), 0
            while done < self.size:
                done += stream.readinto(view[done:]) or 0
        if self.storage.device.type != "cpu":
            self.storage.copy_(filled)
        self.file.unlink()


def _bytes(storage: Any) -> memoryview:
    """The memory of a storage on the CPU; seen by way of numpy it could not be emptied."""
    return memoryview((ctypes.c_char * storage.nbytes()).from_address(storage.data_ptr())).cast("B")


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _tensors(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _tensors(inner)


# Weights of a streamed model in memory while its blocks are walked over, and no longer.


@contextmanager
def inner_weights(block: str, weights: OffloadedModule | None) -> Iterator[None]:
    """While open, the block has its weights."""
    if weights is None:
        yield
        return
    weights.bring(block)
    try:
        yield
    finally:
        weights.drop(block)


@contextmanager
def outer_weights(stops: Mapping[str, Module], weights: OffloadedModule | None) -> Iterator[None]:
    """While open, a large module outside the blocks has its weights from the moment it runs."""
    if weights is None:
        yield
        return

    def bring(name: str) -> Any:
        return lambda _module, _inputs: weights.bring(name)

    large = weights.settle(stops)
    modules = {name: weights.module.get_submodule(name) for name in large}
    handles = [m.register_forward_pre_hook(bring(name)) for name, m in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for name in large:
            weights.drop(name)


# Which positions of a batch are padding, wherever in the model a layer reads it.


class Padding:
    """Which positions of a layer's input are real; what reads the encoder has the encoder's."""

    def __init__(self, model: Any, batch: dict[str, Any]) -> None:
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
    # Nor does a batch without padding need one, which would copy every input.
    return None if given is None or bool(given.all()) else given.bool()


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

    weights: OffloadedModule | None = None
    limit: int | None = None
    folder: Path | None = None


class Visit:
    """One block, and every batch's call of it."""

    def __init__(self, name: str, module: Module, calls: Sequence[Call], spill: Spill) -> None:
        self.name, self.module, self._spill = name, module, spill
        self._calls = [call for call in calls if not call.unseen]
        self._on_leaving: tuple[Mapping[str, Module], See] | None = None

    def watch(self, layers: Mapping[str, Module], see: See, *, num_batches: int | None = None) -> None:
        """Run the block on each batch (or the first few), no further than to the last input."""
        ran, last = list[str](), ""

        def seen(name: str, x: Tensor, padding: Padding) -> None:
            see(name, x, padding)
            ran.append(name)
            if name == last:
                raise _Enough

        for call in self._calls[:num_batches]:
            signals.check("calibrate")
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
        signals.check("calibrate")
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
            signals.check("calibrate")
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
    """While open, every forward of these blocks inside a coroutine waits to be resumed."""

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
