"""Interrupted anywhere, continued bit for bit: the states of a training, one folder after another.

A generation is built beside, gets a manifest with every file's digest, and is put in place by one
rename; the newest whole one is what a training goes on from.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lcc.core import disk, manifest
from lcc.core.errors import DivergedError
from lcc.engine.storing import local, open_tensors, write_tensors
from lcc.parts.dist import SINGLE, Dist

if TYPE_CHECKING:
    from torch import Tensor

GENERATIONS = 2
STATE_FILE = "state.json"
Groups = Mapping[str, Mapping[str, "Tensor"]]


@dataclass
class Saved:
    """One generation of training state read back: tensors by group, and everything else."""

    facts: dict[str, Any]
    tensors: Groups = field(default_factory=dict)


def no_others(oldest: int) -> Collection[int]:
    """Steps that are needed beside the newest: none."""
    return ()


def write_state(
    folder: Path, step: int, *, facts: Mapping[str, Any], tensors: Groups, dist: Dist = SINGLE,
    device: str = "cpu", needed: Callable[[int], Collection[int]] = no_others,
) -> None:  # fmt: skip
    """Write one generation: built beside, synced, put in place by one rename.

    Called by every process of `dist`, which share the folder: each writes its rows of what is
    sharded, rank 0 everything else. Kept are the two newest, and the steps `needed` by who goes on
    after the older of them. Raises ResourceError on a full disk, IntegrityError on a failing one;
    what was there stays.
    """
    final = folder / f"step-{step:09d}"
    size = sum(local(t).nbytes for values in tensors.values() for t in values.values())
    with disk.told(folder, size, f"the training state after step {step}"):
        # The same step saved again holds the same state. Rank 0 looks: caches of files may differ.
        if not dist.gather(final.exists(), device)[0]:
            _build(final, facts=facts, tensors=tensors, dist=dist)
        if dist.is_main:
            _rotate(folder, needed)
        dist.barrier()


def _build(final: Path, *, facts: Mapping[str, Any], tensors: Groups, dist: Dist) -> None:
    building = final.with_name("building")
    if dist.is_main and building.exists():
        shutil.rmtree(building)
    try:
        _fill(building, _key(final), facts=facts, tensors=tensors, dist=dist)
    except Exception:
        if dist.is_main:
            shutil.rmtree(building, ignore_errors=True)  # gives its bytes back
        raise
    if dist.is_main:
        building.rename(final)
        manifest.fsync(final.parent)


def _fill(
    building: Path, key: str, *, facts: Mapping[str, Any], tensors: Groups, dist: Dist
) -> None:
    if dist.is_main:
        building.mkdir(parents=True)
    dist.barrier()
    for group, values in tensors.items():
        write_tensors(building, group, values, dist)
    dist.barrier()  # Everybody's pieces are on the disk.
    if dist.is_main:
        (building / STATE_FILE).write_text(json.dumps(dict(facts)), encoding="utf-8")
        manifest.fsync(building / STATE_FILE)
        names = manifest.file_names(building)
        manifest.write(building, key, files=manifest.digests(building, names))
        manifest.fsync(building)


def _rotate(folder: Path, needed: Callable[[int], Collection[int]]) -> None:
    newest = generations(folder)[:GENERATIONS]
    kept = {step_of(path) for path in newest} | set(needed(step_of(newest[-1])))
    for old in generations(folder):
        if step_of(old) not in kept:
            _drop(old)


def newest_state(
    folder: Path, warn: Callable[[str], None], *, among: Collection[int] | None = None
) -> Path | None:
    """The newest generation of which every byte verifies; a damaged one is set aside and named."""
    for path in generations(folder):
        if among is not None and step_of(path) not in among:
            continue
        try:
            manifest.verify(path, key=_key(path))
            return path
        except manifest.Damage as damage:
            _set_aside(path, str(damage), warn)
        except OSError as error:
            _set_aside(path, f"{error.filename or path} cannot be read ({error.strerror})", warn)
    return None


def load_state(path: Path) -> Saved:
    """A generation that was found to be sound; its tensors are read when they are asked for."""
    facts = json.loads((path / STATE_FILE).read_text(encoding="utf-8"))
    return Saved(facts, open_tensors(path))


def read_state(folder: Path, warn: Callable[[str], None]) -> Saved | None:
    """The newest sound generation, or None."""
    path = newest_state(folder, warn)
    return None if path is None else load_state(path)


@dataclass(frozen=True)
class Generations:
    """The saved states of one training, for all of its processes together."""

    folder: Path
    dist: Dist
    device: str
    warn: Callable[[str], None]

    def newest(self, *, among: Collection[int] | None = None) -> Saved | None:
        """The newest sound one: one process judges and sets aside, then all read the same."""
        path = newest_state(self.folder, self.warn, among=among) if self.dist.is_main else None
        name = self.dist.gather(path.name if path else None, self.device)[0]
        return None if name is None else load_state(self.folder / name)

    def require_space(self, trained: Mapping[str, Tensor], each: float, *, best: bool) -> None:
        """Raise ResourceError unless two generations and one in the making have room.

        `each` are the optimizer's bytes for a parameter; of the weights the `best` are kept too.
        """
        missing = GENERATIONS + 1 - min(GENERATIONS, len(generations(self.folder)))
        one = sum(t.nbytes * (1 + best) + int(t.numel() * each) for t in trained.values())
        if self.dist.is_main:
            disk.require_space(self.folder, missing * one, "the training's state")

    def write(
        self, step: int, *, facts: Mapping[str, Any], tensors: Groups,
        needed: Callable[[int], Collection[int]] = no_others,
    ) -> None:  # fmt: skip
        """One more; raises DivergedError, and keeps those before, where a number is not finite."""
        every = [
            (n, t) for group, own in tensors.items() if group != "best" for n, t in own.items()
        ]
        bad = next((n for n, t in every if not bool(local(t).isfinite().all())), None)
        if self.dist.sum([bad is not None], self.device)[0]:
            raise DivergedError(
                f"finetune: {bad or 'a number'} is not finite after step {step}; that state is not "
                "kept, but one before it where there was one; lower lr or clip harder."
            )
        write_state(self.folder, step, facts=facts, tensors=tensors, dist=self.dist,
                    device=self.device, needed=needed)  # fmt: skip


def generations(folder: Path) -> list[Path]:
    """Saved generations, newest first."""
    return sorted(folder.glob("step-*"), reverse=True)


def step_of(generation: Path) -> int:
    """The step after which it was written."""
    return int(generation.name.partition("-")[2])


def _key(generation: Path) -> str:
    """Whose state it is, and of which step: a folder moved here from elsewhere is found out."""
    return f"{generation.absolute().parent.parent.name}/{generation.name}"


def _drop(generation: Path) -> None:
    """Out of sight in one rename, then away: nobody ever finds half a generation."""
    trash = generation.with_name("trash")
    if trash.exists():
        shutil.rmtree(trash)
    generation.rename(trash)
    shutil.rmtree(trash)


def _set_aside(generation: Path, damage: str, warn: Callable[[str], None]) -> None:
    target = generation.with_name(f"damaged-{generation.name}")
    shutil.rmtree(target, ignore_errors=True)
    generation.rename(target)
    warn(f"the training state {generation.name} is damaged: {damage}; it was moved to {target}; "
         "an older one is used where there is one.")  # fmt: skip
