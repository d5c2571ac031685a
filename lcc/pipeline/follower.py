"""Any node of a run but the first: it takes part in the groups of its steps and writes nothing."""

from __future__ import annotations

import time

from lcc.core import signals
from lcc.core.errors import ResourceError
from lcc.core.progress import Progress
from lcc.distributed.dist import node_rank
from lcc.pipeline.recipe import Recipe
from lcc.pipeline.runner import group_of, work_in
from lcc.pipeline.steps import Pipeline, Step
from lcc.store.artifact import Artifact
from lcc.store.store import ROOT, Store

POLL_SECONDS = 0.5
PATIENCE_SECONDS = 900  # without anybody at work on a step


def is_follower(recipe: Recipe) -> bool:
    """Whether this node is one of several, and not the first."""
    return recipe.distributed.nodes > 1 and node_rank(recipe.distributed) > 0


def follow_pipeline(pipeline: Pipeline, *, quiet: bool = False) -> None:
    """Walk beside the first node, whose `runs` folder this one shares.

    Raises ResourceError when nobody has worked on a missing step for a quarter of an hour.
    """
    with signals.watched(tells=not quiet):
        _follow(pipeline, Progress(quiet=quiet))


def _follow(pipeline: Pipeline, progress: Progress) -> None:
    store = Store(ROOT)
    store.warn = progress.warn
    artifacts: dict[str, Artifact] = {}
    for step in pipeline.steps:
        artifact = store.find(step.key)
        if artifact is None and group_of(step).nodes > 1:
            progress.info(f"{step.name}: running with the first node")
            folder = store.root / "work" / step.key
            work_in(folder, step, artifacts, pipeline.recipe, run="")
        artifacts[step.name] = artifact or _wait(store, step)


def _wait(store: Store, step: Step) -> Artifact:
    seen = time.monotonic()
    while True:
        signals.check(f"waiting for {step.name}")
        artifact = store.find(step.key)
        if artifact is not None:
            return artifact
        if store.leases.holder(step.key) is not None:
            seen = time.monotonic()
        elif time.monotonic() - seen > PATIENCE_SECONDS:
            raise ResourceError(
                f"step {step.name!r}: the first node has not made it and is not "
                "at work on it; see what it says."
            )
        time.sleep(POLL_SECONDS)
