"""Training checkpoints: the resume states of a training, verified, one folder after another.

A generation is built beside, gets a manifest with every file's digest, and is put in place by one
rename; the newest whole one is what a training goes on from.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lcc.core import disk
from lcc.core.errors import DivergedError
from lcc.core.lazy import torch
from lcc.distributed.dist import SINGLE, Dist
from lcc.distributed.state import local, open_tensors, placed, write_tensors
from lcc.store import artifact

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

GENERATIONS = 2
STATE_FILE = "state.json"
Groups = Mapping[str, Mapping[str, "Tensor"]]


@dataclass
class TrainingState:
    """The state of a training: tensors by group, and numbers as JSON has them."""

    facts: dict[str, Any]
    tensors: Groups = field(default_factory=dict)


def no_others(oldest: int) -> Collection[int]:
    """Steps that are needed beside the newest: none."""
    return ()


def write_state(
    folder: Path,
    step: int,
    *,
    facts: Mapping[str, Any],
    tensors: Groups,
    dist: Dist = SINGLE,
    device: str = "cpu",
    needed: Callable[[int], Collection[int]] = no_others,
) -> None:
    """Write one generation: built beside, synced, put in place by one rename.

    Called by every process of `dist`, which share the folder: each writes its rows of what is
    sharded, rank 0 everything else. Kept are the two newest, and the steps `needed` by who goes on
    after the older of them. Raises ResourceError on a full disk, IntegrityError on a failing one;
    what was there stays.
    """
    final = folder / f"step-{step:09d}"
    size = sum(local(t).nbytes for values in tensors.values() for t in values.values())
    with disk.explain_errors(folder, size, f"the training state after step {step}"):
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
        artifact.fsync(final.parent)


def _fill(building: Path, key: str, *, facts: Mapping[str, Any], tensors: Groups, dist: Dist) -> None:
    if dist.is_main:
        building.mkdir(parents=True)
    dist.barrier()
    for group, values in tensors.items():
        write_tensors(building, group, values, dist)
    dist.barrier()  # Everybody's pieces are on the disk.
    if dist.is_main:
        (building / STATE_FILE).write_text(json.dumps(dict(facts)), encoding="utf-8")
        artifact.fsync(building / STATE_FILE)
        names = artifact.file_names(building)
        artifact.write(building, key, files=artifact.digests(building, names))
        artifact.fsync(building)


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
            artifact.verify(path, key=_key(path))
            return path
        except artifact.Damage as damage:
            _set_aside(path, str(damage), warn)
        except OSError as error:
            _set_aside(path, f"{error.filename or path} cannot be read ({error.strerror})", warn)
    return None


def load_state(path: Path) -> TrainingState:
    """A generation that was found to be sound; its tensors are read when they are asked for."""
    facts = json.loads((path / STATE_FILE).read_text(encoding="utf-8"))
    return TrainingState(facts, open_tensors(path))


def read_state(folder: Path, warn: Callable[[str], None]) -> TrainingState | None:
    """The newest sound generation, or None."""
    path = newest_state(folder, warn)
    return None if path is None else load_state(path)


@dataclass(frozen=True)
class CheckpointManager:
    """The saved states of one training, for all of its processes together."""

    folder: Path
    dist: Dist
    device: str
    warn: Callable[[str], None]
    stage: str = "training"  # as errors name it

    def newest(self, *, among: Collection[int] | None = None) -> TrainingState | None:
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
        self,
        step: int,
        *,
        facts: Mapping[str, Any],
        tensors: Groups,
        needed: Callable[[int], Collection[int]] = no_others,
    ) -> None:
        """One more; raises DivergedError, and keeps those before, where a number is not finite."""
        every = [(n, t) for group, own in tensors.items() if group != "best" for n, t in own.items()]
        bad = next((n for n, t in every if not bool(local(t).isfinite().all())), None)
        if self.dist.sum([bad is not None], self.device)[0]:
            raise DivergedError(
                f"{self.stage}: {bad or 'a number'} is not finite after step {step}; that state is not "
                "kept, but one before it where there was one; lower lr or clip harder."
            )
        write_state(
            self.folder, step, facts=facts, tensors=tensors, dist=self.dist, device=self.device, needed=needed
        )


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
    warn(
        f"the training state {generation.name} is damaged: {damage}; it was moved to {target}; "
        "an older one is used where there is one."
    )


# Where a training stands, as numbers and named tensors that a state file can hold.

MICRO_TOKENS = "micro_tokens.json"


@dataclass
class Counters:
    """Where training stands; everything here survives an interruption."""

    step: int = 0
    epoch: int = 0
    tokens: int = 0
    seconds: float = 0.0
    loss_sum: float = 0.0  # of this epoch's steps, weighted by their targets
    loss_targets: int = 0
    clipped_steps: int = 0  # in which anything was clipped
    clipped_share_sum: float = 0.0
    clip_threshold: float | None = None  # of the last step
    past_norms: list[float] = field(default_factory=list)  # newest last, as many as clipping reads
    nonfinite_steps: int = 0
    nonfinite_in_row: int = 0
    micro_tokens: int = 0
    best_loss: float | None = None
    best_step: int | None = None
    validation_before: float | None = None
    evaluations_without_gain: int = 0
    finished: bool = False
    row: dict[str, Any] | None = None  # the last step's numbers, while its evaluation is to come
    recent: list[float] = field(default_factory=list)  # finite losses, for who watches for spikes
    anchors: list[int] = field(default_factory=list)  # steps whose state a rollback may go back to
    spikes: int = 0
    rollbacks: int = 0

    def copy(self) -> Counters:
        """The same numbers, which later steps do not change."""
        return replace(self, recent=[*self.recent], anchors=[*self.anchors])


def note_micro_tokens(folder: Path, micro_tokens: int, *, rank: int) -> None:
    """Leave word for the group that goes on: so many tokens at once, or fewer, fit in memory."""
    draft = folder / f"{MICRO_TOKENS}.{rank}"
    draft.write_text(json.dumps(micro_tokens), encoding="utf-8")
    draft.replace(folder / MICRO_TOKENS)


def noted_micro_tokens(folder: Path) -> int | None:
    """What `note_micro_tokens` left."""
    file = folder / MICRO_TOKENS
    return int(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else None


def optimizer_state_dict(optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state as named tensors and JSON."""
    state = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    for path, value in _leaves(state["state"]):
        if isinstance(value, torch.Tensor):
            tensors[path] = value
        else:
            numbers[path] = value
    return tensors, {"numbers": numbers, "groups": state["param_groups"]}


def load_optimizer_state_dict(
    optimizer: Optimizer, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]
) -> None:
    """Give `optimizer` back what `optimizer_state_dict` took, sharded as its parameters are now."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, Any] = {}
    for path, value in [*tensors.items(), *facts["numbers"].items()]:
        index, *inner, name = path.split("/")
        like = parameters[int(index)]
        if isinstance(value, torch.Tensor) and value.shape == like.shape:
            value = placed(value, like)
        node = state.setdefault(int(index), {})
        for key in inner:
            node = node.setdefault(key, {})
        node[name] = value
    groups = [
        {**group, "betas": tuple(group["betas"])} if "betas" in group else group for group in facts["groups"]
    ]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _leaves(node: Mapping[Any, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, dict):  # bitsandbytes keeps its 8-bit moments one level down
            yield from _leaves(value, f"{path}{key}/")
        else:
            yield f"{path}{key}", value
