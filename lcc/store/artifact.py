"""Artifact: a finished step's folder, with size and SHA-256 of every file, written and verified."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lcc.core.disk import file_digest
from lcc.core.errors import IntegrityError
from lcc.store.locks import Lease

MANIFEST = "MANIFEST.json"
FORMAT = 1
KEYS = {"format", "key", "files", "created", "digest"}
# Hashing releases the interpreter lock; more threads than this only wait for the disk.
NUM_THREADS = 4


class Damage(Exception):
    """An artifact is not what its manifest says; the message is the rest of a sentence about it."""


def read(folder: Path, *, key: str | None = None) -> dict[str, Any]:
    """The manifest of the artifact in `folder`; raises Damage when it makes no sense.

    Its key is the folder's name unless another is given.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Damage(f"{MANIFEST} is missing") from None
    except ValueError:
        raise Damage(f"{MANIFEST} is no JSON") from None
    if not _is_manifest(manifest, folder.name if key is None else key):
        raise Damage(f"{MANIFEST} is not one of format {FORMAT} for this key")
    # Older manifests have no digest of their own: they are taken as they are.
    if manifest.keys() - KEYS or manifest.get("digest") not in (None, _own_digest(manifest)):
        raise Damage(f"{MANIFEST} has changed")
    return dict(manifest)


def verify(folder: Path, *, key: str | None = None) -> dict[str, Any]:
    """The manifest, after every byte was read and compared; raises Damage naming the first file."""
    manifest = read(folder, key=key)
    promised: dict[str, dict[str, Any]] = manifest["files"]
    present = {name for name in file_names(folder) if name != MANIFEST}
    for name in sorted(promised.keys() - present):
        raise Damage(f"{name} is missing")
    for name in sorted(present - promised.keys()):
        raise Damage(f"{name} is not in its manifest")
    for name, facts in promised.items():
        if (folder / name).is_symlink():
            raise Damage(f"{name} is a link instead of a file")
        size = (folder / name).stat().st_size
        if size != facts["bytes"]:
            raise Damage(f"{name} has {size} bytes instead of {facts['bytes']}")
    for name, digest in digests(folder, promised).items():
        if digest != promised[name]["sha256"]:
            raise Damage(
                f"{name} has changed (SHA-256 {digest[:12]} instead of {promised[name]['sha256'][:12]})"
            )
    return manifest


def write(folder: Path, key: str, *, files: dict[str, str]) -> dict[str, Any]:
    """Write the manifest of `files` (name → digest) and return it."""
    manifest = {
        "format": FORMAT,
        "key": key,
        "files": {
            name: {"bytes": (folder / name).stat().st_size, "sha256": digest}
            for name, digest in sorted(files.items())
        },
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    manifest["digest"] = _own_digest(manifest)
    path = folder / MANIFEST
    path.write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    path.chmod(0o644)
    fsync(path)
    return manifest


def file_names(folder: Path) -> list[str]:
    """Relative paths of everything in `folder` that is no folder, with `/` on every system."""
    names = []
    for parent, folders, files in os.walk(folder):
        links = [name for name in folders if (Path(parent) / name).is_symlink()]
        names += [(Path(parent) / name).relative_to(folder).as_posix() for name in [*files, *links]]
    return sorted(names)


def digests(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """SHA-256 of each file, several at a time."""
    listed = list(names)
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        return dict(zip(listed, pool.map(lambda name: file_digest(folder / name), listed), strict=True))


def fsync(path: Path) -> None:
    """Make a file's bytes, or a folder's entries, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _own_digest(manifest: dict[str, Any]) -> str:
    facts = {name: value for name, value in manifest.items() if name != "digest"}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _is_manifest(manifest: Any, key: str) -> bool:
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        return False
    files = manifest.get("files")
    return (
        manifest.get("key") == key
        and isinstance(files, dict)
        and all(
            isinstance(facts, dict)
            and isinstance(facts.get("bytes"), int)
            and isinstance(facts.get("sha256"), str)
            for facts in files.values()
        )
    )


# A finished step's folder, a folder in the making, and what turns one into the other.

REPORT = "report.json"
STATE = "state"
# Of a link, a copy, or a file that core.writing was about to replace.
DRAFT = re.compile(r"\..+\.(link|copy|\d+\.\d+)")


@dataclass(frozen=True)
class Artifact:
    """A published folder; `manifest` lists its files with sizes and digests."""

    key: str
    path: Path
    manifest: dict[str, Any]

    @property
    def report(self) -> dict[str, Any]:
        """The facts of the step that made it."""
        try:
            report: dict[str, Any] = json.loads((self.path / REPORT).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise IntegrityError(
                f"{self.path / REPORT} cannot be read; run the recipe again, "
                "which sets the damaged step aside."
            ) from None
        return report


@dataclass(frozen=True)
class Work:
    """A folder that is ours to fill: nobody else may while we hold its lease."""

    key: str
    path: Path
    lease: Lease


def write_report(work: Work, report: dict[str, Any]) -> None:
    """Lay the report beside the results."""
    text = json.dumps(report, ensure_ascii=False, indent=1)
    (work.path / REPORT).write_text(text, encoding="utf-8")


def result_files(folder: Path) -> dict[str, str]:
    """Name → digest of everything in a work folder but its resume state."""
    names = [n for n in file_names(folder) if not n.startswith(f"{STATE}/")]
    links = [n for n in names if (folder / n).is_symlink()]
    assert not links, f"an artifact holds files, not links: {links}"
    return digests(folder, names)


def link_identical(folder: Path, files: dict[str, str], *, reuse: Iterable[Path]) -> None:
    """Replace files of `folder` that an artifact in `reuse` also holds by hard links to those."""
    known: dict[str, Path] = {}
    for artifact in reuse:
        for name, facts in read(artifact)["files"].items():
            known.setdefault(facts["sha256"], artifact / name)
    for name, digest in files.items():
        source, target = known.get(digest), folder / name
        # Read once more: a file that rotted since must not replace our good copy.
        if source is None or not source.is_file() or file_digest(source) != digest:
            continue
        draft = target.with_name(f".{target.name}.link")
        draft.unlink(missing_ok=True)
        try:
            os.link(source, draft)
        except OSError:
            continue  # this file system has no hard links, or no more of them: our copy serves
        draft.replace(target)


def unshare(folder: Path) -> None:
    """Give `folder` its own copy of files linked elsewhere: who works on may write into them.

    Drafts that a killed process left are removed.
    """
    for name in file_names(folder):
        path = folder / name
        if DRAFT.fullmatch(path.name):
            path.unlink()
        elif path.lstat().st_nlink > 1:
            draft = path.with_name(f".{path.name}.copy")
            shutil.copyfile(path, draft)
            draft.replace(path)


def settle(folder: Path, files: Iterable[str]) -> None:
    """Readable by everybody, and safely on the disk: files first, then folders from the deepest."""
    for name in files:
        (folder / name).chmod(0o644)
        fsync(folder / name)
    for parent, _, _ in os.walk(folder, topdown=False):
        os.chmod(parent, 0o755)
        fsync(Path(parent))
