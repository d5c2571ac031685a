"""A finished step's folder, a folder in the making, and what turns one into the other."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lcc.core import manifest
from lcc.core.errors import IntegrityError
from lcc.core.leases import Lease

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
            raise IntegrityError(f"{self.path / REPORT} cannot be read; run the recipe again, "
                                 "which sets the damaged step aside.") from None  # fmt: skip
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
    names = [n for n in manifest.file_names(folder) if not n.startswith(f"{STATE}/")]
    links = [n for n in names if (folder / n).is_symlink()]
    assert not links, f"an artifact holds files, not links: {links}"
    return manifest.digests(folder, names)


def link_identical(folder: Path, files: dict[str, str], *, reuse: Iterable[Path]) -> None:
    """Replace files of `folder` that an artifact in `reuse` also holds by hard links to those."""
    known: dict[str, Path] = {}
    for artifact in reuse:
        for name, facts in manifest.read(artifact)["files"].items():
            known.setdefault(facts["sha256"], artifact / name)
    for name, digest in files.items():
        source, target = known.get(digest), folder / name
        # Read once more: a file that rotted since must not replace our good copy.
        if source is None or not source.is_file() or manifest.sha256(source) != digest:
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
    for name in manifest.file_names(folder):
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
        manifest.fsync(folder / name)
    for parent, _, _ in os.walk(folder, topdown=False):
        os.chmod(parent, 0o755)
        manifest.fsync(Path(parent))
