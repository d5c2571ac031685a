"""Faults in the file operations of this very process: the n-th one below a folder fails or kills.

Installed in a process forked for it and never taken out again. Counted are opening, writing,
syncing, renaming, linking, making and removing; what writes outside Python is not seen.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

PLAIN = ("mkdir", "rmdir", "unlink", "remove", "chmod", "utime", "truncate")
PAIRS = ("rename", "replace", "link", "symlink")
HOWS = ("ENOSPC", "EIO", "kill", "power cut")


class Layer:
    """Counts operations below `root`; at number `at` (from 1) `how` happens."""

    def __init__(self, root: Path, *, at: int | None = None, how: str = "kill") -> None:
        self.root, self.at, self.how = os.path.realpath(root), at, how
        self.log: list[tuple[str, str]] = []
        self.files: dict[int, str] = {}  # open descriptor → path
        self.unsynced: set[int] = set()  # inodes with bytes that a power cut would take
        self.real: dict[str, Callable[..., Any]] = {}

    def meet(self, operation: str, path: str | None) -> None:
        """One operation is about to happen."""
        if path is not None and self._is_turn(operation, path):
            self._strike(path)

    def write(self, path: str, data: memoryview, into: Callable[[memoryview], int]) -> int:
        """One write is about to happen; of one that fails, half of the bytes get there."""
        if not self._is_turn("write", path):
            return into(data)
        into(data[: len(data) // 2])
        self._strike(path)
        return 0

    def place(self, path: Any, dir_fd: int | None = None) -> str | None:
        """The absolute path, if it lies below the root."""
        if isinstance(path, int):
            return self.files.get(path)
        name = os.fsdecode(path)
        folder = os.readlink(f"/proc/self/fd/{dir_fd}") if dir_fd is not None else os.getcwd()
        full = os.path.normpath(os.path.join(folder, name))
        return full if full.startswith(self.root + os.sep) else None

    def _is_turn(self, operation: str, path: str) -> bool:
        self.log.append((operation, os.path.relpath(path, self.root)))
        return len(self.log) == self.at

    def _strike(self, path: str) -> None:
        if self.how == "power cut":
            self._lose_what_was_not_synced()
        if self.how in ("kill", "power cut"):
            os.kill(os.getpid(), signal.SIGKILL)
        number = getattr(errno, self.how)
        raise OSError(number, os.strerror(number), path)

    def _lose_what_was_not_synced(self) -> None:
        for folder, _, names in os.walk(self.root):
            for name in names:
                file = os.path.join(folder, name)
                stat = os.lstat(file)
                if stat.st_ino in self.unsynced:
                    self.real["truncate"](file, stat.st_size // 2)


class _Raw(io.FileIO):
    """A file whose writes are counted."""

    def __init__(self, layer: Layer, path: str, mode: str) -> None:
        super().__init__(path, mode)
        self._layer, self._path = layer, path
        layer.files[self.fileno()] = path

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        self._layer.unsynced.add(os.fstat(self.fileno()).st_ino)
        into: Callable[[memoryview], int] = super().write  # type: ignore[assignment]
        return self._layer.write(self._path, view, into)

    def close(self) -> None:
        if not self.closed:
            self._layer.files.pop(self.fileno(), None)
        super().close()


def install(layer: Layer) -> None:
    """From here on every file operation of this process passes through `layer`."""
    layer.real = {name: getattr(os, name) for name in PLAIN}
    for name in PLAIN:
        setattr(os, name, _watching_one(layer, getattr(os, name), name))
    for name in PAIRS:
        setattr(os, name, _watching_two(layer, getattr(os, name), name))
    _watch_descriptors(layer)
    _watch_files(layer)


def _watching_one(layer: Layer, real: Callable[..., Any], name: str) -> Callable[..., Any]:
    def call(path: Any, *args: Any, dir_fd: int | None = None, **kwargs: Any) -> Any:
        layer.meet(name, layer.place(path, dir_fd))
        return real(path, *args, **({} if dir_fd is None else {"dir_fd": dir_fd}), **kwargs)

    return call


def _watching_two(layer: Layer, real: Callable[..., Any], name: str) -> Callable[..., Any]:
    def call(source: Any, target: Any, *args: Any, **kwargs: Any) -> Any:
        layer.meet(name, layer.place(target))
        return real(source, target, *args, **kwargs)

    return call


def _watch_descriptors(layer: Layer) -> None:
    real_open, real_close, real_fsync = os.open, os.close, os.fsync
    real_sendfile = os.sendfile

    def open_(path: Any, flags: int, *args: Any, dir_fd: int | None = None, **kw: Any) -> int:
        place = layer.place(path, dir_fd)
        layer.meet("open", place)
        number = real_open(path, flags, *args, **({} if dir_fd is None else {"dir_fd": dir_fd}), **kw)
        if place is not None:
            layer.files[number] = place
        return number

    def close(number: int) -> None:
        layer.files.pop(number, None)
        real_close(number)

    def fsync(number: int) -> None:
        layer.meet("fsync", layer.files.get(number))
        real_fsync(number)
        layer.unsynced.discard(os.fstat(number).st_ino)

    def sendfile(out: int, *args: Any, **kw: Any) -> int:
        layer.meet("write", layer.files.get(out))
        layer.unsynced.add(os.fstat(out).st_ino)
        return real_sendfile(out, *args, **kw)

    os.open, os.close, os.fsync, os.sendfile = open_, close, fsync, sendfile


def _watch_files(layer: Layer) -> None:
    real = io.open

    def open_(
        file: Any,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        closefd: bool = True,
        opener: Any = None,
    ) -> Any:
        place = None if isinstance(file, int) or opener else layer.place(file)
        layer.meet("open", place)
        if place is None or not set(mode) & set("wax+"):
            return real(file, mode, buffering, encoding, errors, newline, closefd, opener)
        raw = _Raw(layer, place, mode.replace("b", "").replace("t", ""))
        if "b" in mode and buffering == 0:
            return raw
        whole: Any = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return whole if "b" in mode else io.TextIOWrapper(whole, encoding, errors, newline)

    io.open = builtins.open = open_  # type: ignore[assignment]
