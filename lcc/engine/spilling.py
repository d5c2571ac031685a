"""Tensors of waiting batches on disk, once they would take more memory than is allowed.

A waiting coroutine's frames hold its tensors, so their storage is emptied in place (as FSDP does)
and filled again before the batch runs.
"""

from __future__ import annotations

import ctypes
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lcc.core.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    from lcc.engine.walking import Call

SMALL_BYTES = 1 << 18  # not worth a file


class Spill:
    """Keeps at most `limit` bytes of the waiting batches' tensors in memory; the rest in files.

    Without a limit all of them stay.
    """

    def __init__(
        self, model: Module, *, limit: int | None = None, folder: Path | None = None
    ) -> None:
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
        return [
            s for key, s in storages.items() if key not in foreign and s.nbytes() >= SMALL_BYTES
        ]

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
