"""Garbage collection: which artifact is needed by whom, what each takes on the disk, and freeing the rest."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lcc.core.errors import IntegrityError

if TYPE_CHECKING:
    from lcc.store.store import Store


@dataclass(frozen=True)
class DiskUsage:
    """One artifact in the books: `bytes` as listed, `own_bytes` what only it occupies."""

    key: str
    name: str
    kind: str
    bytes: int
    own_bytes: int
    created: str
    used_by: list[str]
    pinned: bool


@dataclass(frozen=True)
class Freed:
    """A folder that was (or would be) deleted, and the disk space that this gives back."""

    place: str
    key: str
    name: str
    bytes: int


def references(root: Path) -> dict[str, list[str]]:
    """Key → RUN/STEP of every run.json below `root` that names it.

    Raises IntegrityError for a run.json that cannot be read: what it needs must not be freed.
    """
    users: dict[str, list[str]] = defaultdict(list)
    for path in sorted(root.glob("*/run.json")):
        try:
            steps = json.loads(path.read_text(encoding="utf-8"))["steps"]
            named = [(step["key"], step["name"]) for step in steps]
        except FileNotFoundError:
            continue  # deleted while we were looking
        except (ValueError, KeyError, TypeError):
            raise IntegrityError(
                f"{path} cannot be read, so nobody knows which artifacts it "
                f"needs; mend it or delete {path.parent}."
            ) from None
        for key, name in named:
            users[key].append(f"{path.parent.name}/{name}")
    return dict(users)


def usage(store: Store) -> list[DiskUsage]:
    """Every artifact, oldest first; a file shared by hard links is nobody's own."""
    refs, pins, entries = references(store.root), set(store.pins()), []
    for artifact in store.artifacts():
        try:
            report = artifact.report
        except IntegrityError as error:
            store.warn(str(error))
            report = {}
        stats = list(_stats(artifact.path))
        entries.append(
            DiskUsage(
                key=artifact.key,
                name=str(report.get("name", "?")),
                kind=str(report.get("kind", "?")),
                bytes=sum(s.st_size for s in stats),
                own_bytes=sum(s.st_size for s in stats if s.st_nlink == 1),
                created=str(artifact.manifest.get("created", "")),
                used_by=refs.get(artifact.key, []),
                pinned=artifact.key in pins,
            )
        )
    return entries


def disk_bytes(folders: Iterable[Path]) -> int:
    """What `folders` really take together: a file with several names in them counts once."""
    stats = [stat for folder in folders for stat in _stats(folder)]
    return sum({(s.st_dev, s.st_ino): s.st_size for s in stats}.values())


def collect(store: Store, *, dry_run: bool) -> list[Freed]:
    """Delete every artifact and work folder that nothing needs, and all that was set aside."""
    freed, links, needs = [], Counter[tuple[int, int]](), _Needs(store)
    for path in [path for path in _folders(store) if not needs.has(path)]:
        key = path.name.partition(".")[0]
        lease = store.leases.try_acquire(key)
        if lease is None:
            continue  # in use
        try:
            # Asked again under the lease: a run may have come to need it meanwhile.
            if path.is_dir() and not needs.has(path):
                freed.append(Freed(path.parent.name, key, _name(path), _gain(path, links)))
                if not dry_run:
                    _delete(store, path)
                    links.clear()  # from here on the disk's own counts tell
        finally:
            lease.release()
    if not dry_run:
        store.leases.sweep()
    return freed


class _Needs:
    """What runs and pins hold, read again whenever one of their files changes."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.stamp: list[tuple[str, int, int]] = []
        self.keys: set[str] = set()

    def has(self, path: Path) -> bool:
        """Whether `path` must stay; of an unfinished step a run needs what resumes it."""
        place, key = path.parent.name, path.name.partition(".")[0]
        if place == "damaged" or (place == "work" and self.store.path(key).is_dir()):
            return False
        stamp = self._stamp()
        if stamp != self.stamp:
            self.stamp, self.keys = stamp, {*references(self.store.root), *self.store.pins()}
        return key in self.keys

    def _stamp(self) -> list[tuple[str, int, int]]:
        files = [*self.store.root.glob("*/run.json"), *self.store.root.glob("pins/*")]
        stats = [(str(f), stat) for f in sorted(files) for stat in _stat(f)]
        return [(name, stat.st_mtime_ns, stat.st_ino) for name, stat in stats]


def _folders(store: Store) -> list[Path]:
    paths = [p for place in ("store", "work", "damaged") for p in (store.root / place).glob("*")]
    return sorted(path for path in paths if path.is_dir())


def _name(path: Path) -> str:
    """The step that made `path`, where it still says so."""
    try:
        return str(json.loads((path / "report.json").read_text(encoding="utf-8"))["name"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _gain(path: Path, links: Counter[tuple[int, int]]) -> int:
    """Bytes that come free with `path`: a file's do with the last of its names; `links` counts."""
    gain = 0
    for stat in _stats(path):
        inode = (stat.st_dev, stat.st_ino)
        links[inode] += 1
        gain += stat.st_size if links[inode] == stat.st_nlink else 0
    return gain


def _delete(store: Store, path: Path) -> None:
    """Out of sight in one rename, then away: nobody ever finds half an artifact."""
    trash = store.root / "damaged" / f"{path.name}.trash-{uuid.uuid4().hex[:8]}"
    trash.parent.mkdir(parents=True, exist_ok=True)
    path.rename(trash)
    shutil.rmtree(trash)


def _stats(folder: Path) -> Iterator[os.stat_result]:
    for parent, _, files in os.walk(folder):
        for name in files:
            yield from _stat(Path(parent) / name)


def _stat(path: Path) -> Iterator[os.stat_result]:
    """What the disk says about `path`; nothing when a running step has just removed it."""
    try:
        yield path.lstat()
    except FileNotFoundError:
        return
