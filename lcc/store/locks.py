"""Locks that work across hosts: a lease has an owner, a heartbeat, and changes hands atomically.

A lease is the folder `leases/<key>/` with one empty file in it, whose *name* is the owner and whose
mtime is the owner's last heartbeat. Every change of hands is one rename that at most one of several
takers can win: the file's name is the owner's alone, so the second taker's source is gone.
"""

from __future__ import annotations

import errno
import os
import shutil
import socket
import threading
import uuid
from dataclasses import dataclass
from pathlib import Path

BEAT_SECONDS = 10.0
# NFS clients may show a heartbeat up to a minute late; nine missed ones are no accident.
STALE_SECONDS = 90.0


@dataclass(frozen=True)
class Owner:
    """A process on a host; `space` is its pid namespace, without which a pid says nothing."""

    host: str
    space: str
    pid: int
    token: str

    @classmethod
    def here(cls) -> Owner:
        return cls(socket.gethostname(), _pid_space(), os.getpid(), uuid.uuid4().hex[:12])

    @classmethod
    def parse(cls, name: str) -> Owner:
        host, space, pid, token = name.split("~")
        return cls(host, space, int(pid), token)

    @property
    def name(self) -> str:
        return f"{self.host}~{self.space}~{self.pid}~{self.token}"

    def __str__(self) -> str:
        return f"{self.host}:{self.pid}"

    def is_known_dead(self) -> bool:
        """Whether this very machine can tell that the process is gone."""
        same_machine = self.host == socket.gethostname() and self.space == _pid_space()
        return same_machine and not _is_alive(self.pid)


class Lease:
    """A lease that we hold: a thread keeps its heartbeat until `release`."""

    def __init__(self, path: Path, owner: Owner, *, beat_seconds: float) -> None:
        self.owner = owner
        self._file = path / owner.name
        self._beat_seconds = beat_seconds
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._thread.start()

    def is_held(self) -> bool:
        """Whether it is still ours: after a long sleep somebody may have taken it over."""
        return self._file.exists()

    def release(self) -> None:
        """Let the next owner in; an empty lease folder is a free lease."""
        self._released.set()
        self._thread.join()
        self._file.unlink(missing_ok=True)
        _remove_if_empty(self._file.parent)

    def _beat(self) -> None:
        while not self._released.wait(self._beat_seconds):
            try:
                os.utime(self._file)
            except FileNotFoundError:
                return
            except OSError:
                # A file server that hiccups now is asked again at the next beat.
                continue


@dataclass(frozen=True)
class Leases:
    """The leases below one folder, one per key."""

    folder: Path
    beat_seconds: float = BEAT_SECONDS
    stale_seconds: float = STALE_SECONDS

    def try_acquire(self, key: str) -> Lease | None:
        """The lease of `key`, if it is free or its owner is gone; None when somebody has it."""
        path, owner = self.folder / key, Owner.here()
        holder = self._holder_file(key)
        if holder is None:
            won = self._found(path, owner)
        else:
            won = self._is_abandoned(holder) and self._take_over(holder, owner)
        return Lease(path, owner, beat_seconds=self.beat_seconds) if won else None

    def holder(self, key: str) -> Owner | None:
        """The living owner of `key`, as far as can be known."""
        file = self._holder_file(key)
        if file is None or self._is_abandoned(file):
            return None
        return Owner.parse(file.name)

    def sweep(self) -> None:
        """Remove what processes left that died: their leases, and drafts of leases."""
        if not self.folder.is_dir():
            return
        now = self._server_time()
        for path in sorted(self.folder.iterdir()):
            if not path.name.startswith("."):
                lease = self.try_acquire(path.name)
                if lease is not None:
                    lease.release()  # and with the last lease its folder goes
            elif now - _last_change(path, default=now) > self.stale_seconds:
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    def _holder_file(self, key: str) -> Path | None:
        while True:
            try:
                # NFS leaves `.nfs…` files behind for a moment; they own nothing.
                files = [f for f in (self.folder / key).iterdir() if not f.name.startswith(".")]
            except FileNotFoundError:
                return None
            if len(files) <= 1:
                return files[0] if files else None
            # A listing taken during a rename may show both names: look again.

    def _found(self, path: Path, owner: Owner) -> bool:
        """Rename a finished lease into place, which fails when a lease with an owner is there."""
        draft = self.folder / f".{owner.token}"
        draft.mkdir(parents=True)
        (draft / owner.name).touch()
        try:
            draft.rename(path)
        except OSError as error:
            shutil.rmtree(draft)
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            return False
        return True

    def _take_over(self, holder: Path, owner: Owner) -> bool:
        try:
            # Touched first: under our name it must never be seen with the dead owner's heartbeat.
            os.utime(holder)
            holder.rename(holder.with_name(owner.name))
        except FileNotFoundError:
            return False
        return True

    def _is_abandoned(self, holder: Path) -> bool:
        if Owner.parse(holder.name).is_known_dead():
            return True
        try:
            with holder.open("rb") as file:  # opening makes an NFS client ask the server
                beat = os.fstat(file.fileno()).st_mtime
        except FileNotFoundError:
            return False
        return self._server_time() - beat > self.stale_seconds

    def _server_time(self) -> float:
        """Now by the clock that stamps the heartbeats, whatever the clocks of the hosts say."""
        probe = self.folder / f".probe-{uuid.uuid4().hex}"
        try:
            with probe.open("wb") as file:
                file.write(b".")
                os.fsync(file.fileno())
            return probe.stat().st_mtime
        finally:
            probe.unlink(missing_ok=True)


def _remove_if_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
            raise


def _last_change(path: Path, *, default: float) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return default


def _pid_space() -> str:
    """Containers on one host share its name but not its pids."""
    try:
        return os.readlink("/proc/self/ns/pid").strip("pid:[]")
    except OSError:
        return "0"


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return not _is_zombie(pid)


def _is_zombie(pid: int) -> bool:
    """Killed but not yet reaped by its parent: it answers signals and does nothing any more."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] in ("Z", "X")
