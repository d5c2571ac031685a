"""Store of finished steps by key: reused only if every byte verifies, claimed by one, published once."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lcc.core import disk, signals
from lcc.core.errors import BusyError, IntegrityError, RecipeError, did_you_mean
from lcc.store import artifact as manifest
from lcc.store.artifact import (
    REPORT,
    STATE,
    Artifact,
    Work,
    link_identical,
    result_files,
    settle,
    unshare,
    write_report,
)
from lcc.store.locks import Lease, Leases

__all__ = ["ROOT", "Artifact", "Store", "Work"]

ROOT = Path("runs")
POLL_SECONDS = (0.05, 2.0)  # at first, and at most


def warn_on_stderr(sentence: str) -> None:
    """Where warnings go until the runner gives the store a better place."""
    print(sentence, file=sys.stderr)


@dataclass
class Store:
    """The artifacts below `root`; `warn` gets sentences about what is damaged or waited for."""

    root: Path
    warn: Callable[[str], None] = warn_on_stderr
    wait_seconds: float | None = None
    leases: Leases = field(init=False)

    def __post_init__(self) -> None:
        self.leases = Leases(self.root / "leases")

    def path(self, key: str) -> Path:
        """Where the artifact of `key` lies or would lie."""
        return self.root / "store" / key

    def find(self, key: str) -> Artifact | None:
        """The artifact of `key` if all its digests verify; a damaged one is set aside and named."""
        path = self.path(key)
        if not path.is_dir():
            return None
        try:
            return Artifact(key, path, manifest.verify(path))
        except manifest.Damage as damage:
            self._set_aside(path, str(damage))
        except FileNotFoundError:
            # Collected, or set aside by another process, while we were reading: look again.
            return self.find(key)
        except OSError as error:
            raise IntegrityError(
                f"{error.filename or path}: cannot be read ({error.strerror}); mend it or delete {path}."
            ) from error
        return None

    @contextmanager
    def claim(
        self, key: str, *, label: str = "", timeout_seconds: float | None = None
    ) -> Iterator[Work | Artifact]:
        """The work folder of `key`, ours while the block lasts; or what another process finished.

        Whatever an earlier owner left in the folder is still there. Raises BusyError when another
        process holds the key for longer than `timeout_seconds` (default: `wait_seconds`).
        """
        lease = self._wait_for_lease(key, label or key[:12], timeout_seconds)
        if isinstance(lease, Artifact):
            yield lease
            return
        try:
            # Between our caller's look and our lease somebody may have published.
            yield self.find(key) or self._open_work(key, lease)
        finally:
            lease.release()

    def publish(self, work: Work, *, report: dict[str, Any], reuse: Iterable[Path] = ()) -> Artifact:
        """Make `work` an artifact in one rename; nothing is visible before, everything after.

        Files that are byte for byte those of the `reuse` artifacts are hard-linked to them.
        An artifact that is already there and valid stays, and `work` is dropped.
        """
        _check_lease(work)
        write_report(work, report)
        files = result_files(work.path)
        link_identical(work.path, files, reuse=reuse)
        settle(work.path, files)
        written = manifest.write(work.path, work.key, files=files)
        # Beside, not away: until the last rename a killed run has nothing else to go on from.
        beside = self._state_beside(work.key)
        if (work.path / STATE).exists():
            (work.path / STATE).rename(beside)
        manifest.fsync(work.path)
        artifact = self._move_in(work, written)
        if beside.exists():
            shutil.rmtree(beside)
        return artifact

    def require_space(self, bytes: int, what: str) -> None:
        """Raise ResourceError unless `bytes` are free for `what`."""
        disk.require_space(self.root, bytes, what)

    def artifacts(self) -> list[Artifact]:
        """Every artifact, oldest first, without reading its files; unreadable ones are named."""
        artifacts = []
        for path in sorted((self.root / "store").glob("*")):
            try:
                artifacts.append(Artifact(path.name, path, manifest.read(path)))
            except manifest.Damage as damage:
                self.warn(f"{path} is damaged: {damage}.")
        return sorted(artifacts, key=lambda artifact: str(artifact.manifest.get("created")))

    def pins(self) -> list[str]:
        """The keys that are never collected."""
        return sorted(path.name for path in (self.root / "pins").glob("*"))

    def pin(self, key: str) -> None:
        """Keep `key` whatever the runs say."""
        if not self.path(key).is_dir():
            raise RecipeError(f"{key[:12]} is not in the store; see lcc store ls.")
        path = self.root / "pins" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()

    def unpin(self, key: str) -> None:
        """Let `key` be collected once no run refers to it."""
        (self.root / "pins" / key).unlink(missing_ok=True)

    def _wait_for_lease(self, key: str, label: str, timeout_seconds: float | None) -> Lease | Artifact:
        limit = self.wait_seconds if timeout_seconds is None else timeout_seconds
        started, pause, reported = time.monotonic(), POLL_SECONDS[0], ""
        while True:
            lease = self.leases.try_acquire(key)
            if lease is not None:
                return lease
            holder = self.leases.holder(key)
            if holder is None:
                time.sleep(POLL_SECONDS[0])
                continue
            signals.check(f"waiting for {label}")
            if limit is not None and time.monotonic() - started >= limit:
                raise BusyError(
                    f"{label} is held by {holder} for more than {limit:g} s; "
                    "run again when that process is done."
                )
            if str(holder) != reported:
                reported = str(holder)
                self.warn(f"waiting for {label}, held by {reported}.")
            time.sleep(pause)
            pause = min(2 * pause, POLL_SECONDS[1])
            artifact = self.find(key)
            if artifact is not None:
                return artifact

    def _open_work(self, key: str, lease: Lease) -> Work:
        path, beside = self.root / "work" / key, self._state_beside(key)
        path.mkdir(parents=True, exist_ok=True)
        if beside.exists():
            beside.rename(path / STATE)
        # Left by an owner that died while publishing; they must not be taken for results.
        for name in (manifest.MANIFEST, REPORT):
            (path / name).unlink(missing_ok=True)
        unshare(path)
        return Work(key, path, lease)

    def _state_beside(self, key: str) -> Path:
        return self.root / "work" / f"{key}.{STATE}"

    def _move_in(self, work: Work, written: dict[str, Any]) -> Artifact:
        target = self.path(work.key)
        target.parent.mkdir(parents=True, exist_ok=True)
        _check_lease(work)
        while True:
            first = self.find(work.key)
            if first is not None:
                shutil.rmtree(work.path)
                return first
            try:
                os.rename(work.path, target)
                break
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
        manifest.fsync(target.parent)
        manifest.fsync(work.path.parent)
        return Artifact(work.key, target, written)

    def _set_aside(self, path: Path, damage: str) -> None:
        folder = self.root / "damaged"
        folder.mkdir(parents=True, exist_ok=True)
        for n in range(1, 1_000_000):
            target = folder / f"{path.name}.{n}"
            if target.exists():
                continue
            try:
                path.rename(target)
            except FileNotFoundError:
                return  # another process was faster
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                continue
            self.warn(f"{path} is damaged: {damage}; it was moved to {target} and will be made again.")
            return


def _check_lease(work: Work) -> None:
    if not work.lease.is_held():
        raise BusyError(
            f"the lease of {work.key[:12]} was lost (this process slept too long); run again to continue."
        )


# What people call an artifact (a step of the last run, RUN/STEP, a key's start), as its key.

MIN_PREFIX = 4
HEX = set("0123456789abcdef")


def resolve(store: Store, word: str) -> str:
    """The key in the store that `word` means; raises RecipeError naming what it could mean."""
    run, slash, step = word.rpartition("/")
    if slash:
        return _finished(store, word, _steps(store.root, run), step)
    last = store.root / "last"
    steps = _steps(store.root, last.read_text().strip()) if last.is_file() else {}
    if word in steps:
        return _finished(store, word, steps, word)
    return _by_prefix(store, word, steps)


def _by_prefix(store: Store, word: str, steps: dict[str, str]) -> str:
    names = {artifact.key: artifact.path for artifact in store.artifacts()}
    matches = [key for key in names if key.startswith(word)]
    if len(word) < MIN_PREFIX or not set(word) <= HEX or not matches:
        raise RecipeError(
            f"{word!r} is no step of the last run, and no key in the store starts "
            f"with it{did_you_mean(word, steps)}"
        )
    if len(matches) > 1:
        shown = ", ".join(key[: max(12, len(word) + 4)] for key in matches)
        raise RecipeError(f"{word!r} could be {shown}; write more of the key.")
    return matches[0]


def _finished(store: Store, word: str, steps: dict[str, str], step: str) -> str:
    if step not in steps:
        raise RecipeError(f"{word!r}: the run has no step {step!r}{did_you_mean(step, steps)}")
    if not store.path(steps[step]).is_dir():
        raise RecipeError(f"{word!r} is not in the store ({steps[step][:12]}); run its recipe.")
    return steps[step]


def _steps(root: Path, run: str) -> dict[str, str]:
    """Step name → key of one run."""
    path = root / run / "run.json"
    runs = [p.parent.name for p in root.glob("*/run.json")]
    if run not in runs:
        raise RecipeError(f"no run is named {run!r}{did_you_mean(run, runs)}")
    try:
        facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return {step["name"]: step["key"] for step in facts["steps"]}
    except (ValueError, KeyError, TypeError):
        raise IntegrityError(f"{path} cannot be read; mend it or delete {path.parent}.") from None
