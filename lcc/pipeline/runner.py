"""Runner of a pipeline: each step is reused or run, verified, published and noted in the run."""

from __future__ import annotations

import json
import os
import shlex
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lcc.config.cards import describe, digest
from lcc.config.search_space import Listed, ranges
from lcc.core import disk, signals
from lcc.core.disk import folder_bytes, write_json, write_text
from lcc.core.errors import GateError, LccError, PreemptedError, RecipeError
from lcc.core.machine import machine, versions
from lcc.core.progress import Progress
from lcc.distributed.dist import Distributed
from lcc.distributed.launch import launch
from lcc.pipeline.estimate import disk_needed, space_needed
from lcc.pipeline.planner import pipeline_of
from lcc.pipeline.recipe import Recipe
from lcc.pipeline.steps import Pipeline, Step
from lcc.pipeline.worker import Job, work_step
from lcc.store.artifact import Artifact, Work
from lcc.store.store import ROOT, Store

FACTS_BYTES = 1 << 20  # more than run.json, links and leases take


@dataclass
class RunRecord:
    """One walk over a pipeline: its folder below runs/ and what happened to each step."""

    folder: Path
    facts: dict[str, Any]
    artifacts: dict[str, Artifact] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.folder.name

    def write(self) -> None:
        """Write run.json in one rename, so that a reader never sees half of it."""
        write_json(self.folder / "run.json", self.facts)


def run_pipeline(
    pipeline: Pipeline, *, words: list[str], verb: str = "run", quiet: bool = False
) -> RunRecord:
    """Run every step of `pipeline` that is not in the store yet; raises the first step's error.

    What finished before an error stays finished; the same command continues there.
    """
    store = Store(ROOT)
    progress = Progress(quiet=quiet)
    store.warn = progress.warn
    with disk.explain_errors(ROOT, FACTS_BYTES, "run.json"):
        run = _open_run(pipeline, words, verb)
    started = time.monotonic()
    try:
        with signals.watched(tells=not quiet), disk.explain_errors(ROOT, FACTS_BYTES, "the run"):
            store.require_space(disk_needed(pipeline, store), "the run")
            _walk_all(store, run, pipeline, progress)
        run.facts["status"] = "finished"
    except (LccError, KeyboardInterrupt) as error:
        stopped = isinstance(error, PreemptedError | KeyboardInterrupt)
        run.facts["status"] = "preempted" if stopped else "failed"
        run.facts["error"] = str(error) or "interrupted"
        if isinstance(error, KeyboardInterrupt):
            raise PreemptedError("interrupted; run the same command again to continue.") from None
        raise
    finally:
        run.facts["seconds"] = round(time.monotonic() - started, 1)
        _write_last(run, progress)
    return run


def _write_last(run: RunRecord, progress: Progress) -> None:
    """A full disk must not hide why the run ended."""
    try:
        run.write()
    except OSError as error:
        progress.warn(f"run.json is not up to date: {error}.")


def _walk_all(store: Store, run: RunRecord, pipeline: Pipeline, progress: Progress) -> None:
    for index, step in enumerate(pipeline.steps):
        signals.check(step.name)
        _walk(store, run, step, index=index, recipe=pipeline.recipe, progress=progress)
        if step.name == "base":
            _check_family(pipeline, run.artifacts["base"])


def _check_family(pipeline: Pipeline, base: Artifact) -> None:
    """Refuse what this model's family does not allow before hours of training, not after."""
    config = json.loads((base.path / "model" / "config.json").read_text(encoding="utf-8"))
    for step in pipeline.steps:
        check = getattr(step.stage, "check", None)
        if check is None:
            continue
        try:
            check(config)
        except RecipeError as error:
            raise RecipeError(f"step {step.name!r} cannot run: {error}") from None


def run_name(pipeline: Pipeline) -> str:
    """The folder below runs/ that a run of these very steps has."""
    return f"{pipeline.recipe.name}-{digest([step.key for step in pipeline.steps])[:8]}"


def _open_run(pipeline: Pipeline, words: list[str], verb: str) -> RunRecord:
    recipe = pipeline.recipe
    folder = ROOT / run_name(pipeline)
    folder.mkdir(parents=True, exist_ok=True)
    for link in folder.glob("[0-9][0-9]-*"):
        link.unlink(missing_ok=True)
    steps = [
        {
            "name": s.name,
            "kind": s.kind,
            "key": s.key,
            "status": "pending",
            "seconds": 0,
            "folder": f"{i:02d}-{s.name}",
            "checkpoint": s.checkpoint,
        }
        for i, s in enumerate(pipeline.steps, 1)
    ]
    # The race of a sweep's results is started by the command of the sweep.
    command_words = ["compress", "-m"] if verb == "sweep" else [verb]
    command = shlex.join(["lcc", *command_words, *words])
    facts = {
        "format": 1,
        "run": folder.name,
        "recipe_name": recipe.name,
        "recipe": describe(recipe),
        "command": command,
        "words": words,
        "verb": verb,
        "status": "running",
        "started": _now(),
        "seconds": 0,
        "steps": steps,
    }
    run = RunRecord(folder, facts)
    run.write()
    write_text(ROOT / "last", folder.name + "\n")
    return run


def _walk(
    store: Store, run: RunRecord, step: Step, *, index: int, recipe: Recipe, progress: Progress
) -> None:
    facts = run.facts["steps"][index]
    label = f"[{index + 1}/{len(run.facts['steps'])}] {step.name}"
    started = time.monotonic()
    artifact = store.find(step.key)
    status = "reused"
    if artifact is None:
        try:
            artifact, status = _claim_and_run(store, run, step, label, recipe, progress)
        except LccError as error:
            facts["status"] = "preempted" if isinstance(error, PreemptedError) else "failed"
            raise _placed(error, step, run) from error
    else:
        progress.info(f"{label}: reused ({step.key[:12]})")
    run.artifacts[step.name] = artifact
    seconds = round(time.monotonic() - started, 2)
    facts.update(status=status, seconds=seconds, model_bytes=artifact.report.get("model_bytes"))
    link = run.folder / facts["folder"]
    _point_to(link, Path("..") / "store" / step.key)
    run.write()


def _point_to(link: Path, target: Path) -> None:
    """Make the readable link in one rename: equal points of a sweep walk one folder at once."""
    draft = link.with_name(f".{link.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    draft.symlink_to(target)
    draft.replace(link)


def _claim_and_run(
    store: Store, run: RunRecord, step: Step, label: str, recipe: Recipe, progress: Progress
) -> tuple[Artifact, str]:
    with store.claim(step.key, label=step.name) as claimed:
        if isinstance(claimed, Artifact):
            progress.info(f"{label}: finished meanwhile by another process, reused")
            return claimed, "reused"
        progress.info(f"{label}: running")
        reports = [run.artifacts[s.name].report for s in step.inputs.values()]
        space = space_needed(step, reports)
        store.require_space(space, step.name)
        report = _execute(claimed, run, step, recipe, space=space)
        parents = [run.artifacts[s.name].path for s in step.inputs.values()]
        with disk.explain_errors(store.root, space, step.name):
            artifact = store.publish(claimed, report=report, reuse=parents)
        progress.info(f"{label}: finished in {report['seconds']:.0f} s")
        for note in report["warnings"]:
            progress.warn(f"{step.name}: {note}")
        return artifact, "finished"


def work_in(
    folder: Path, step: Step, artifacts: dict[str, Artifact], recipe: Recipe, run: str, *, space: int = 0
) -> Any:
    """Run `step` in a group of processes that write into `folder`; its facts, on the first node."""
    inputs = {name: artifacts[s.name].path for name, s in step.inputs.items()}
    job = Job(
        step.name,
        step.stage,
        folder,
        inputs,
        task=recipe.task,
        seed=recipe.seed,
        device=recipe.device_type,
        dtype=recipe.dtype,
        threads=recipe.threads,
        tracker=recipe.tracker,
        run=run,
        checkpoint=step.checkpoint,
        space=space,
    )
    return launch(work_step, group_of(step), job, device=recipe.device_type, name=step.key)


def group_of(step: Step) -> Distributed:
    """The processes that a step runs in."""
    group: Distributed = getattr(step.stage, "distributed", None) or Distributed()
    return group


def _execute(work: Work, run: RunRecord, step: Step, recipe: Recipe, *, space: int) -> dict[str, Any]:
    started = time.monotonic()
    outcome = work_in(work.path, step, run.artifacts, recipe, run.name, space=space)
    seconds = round(time.monotonic() - started, 2)
    model = work.path / "model"
    size = folder_bytes(model) if model.is_dir() else None
    return {
        "format": 1,
        "name": step.name,
        "kind": step.kind,
        "key": step.key,
        "inputs": step.ingredients["inputs"],
        "ingredients": step.ingredients,
        "node": describe(step.stage),
        "seconds": seconds,
        "model_bytes": size,
        "finished": _now(),
        "versions": versions(),
        "machine": machine(),
        "seed": recipe.seed,
        "device": recipe.device_type,
        "dtype": recipe.dtype,
        **outcome,
    }


def _placed(error: LccError, step: Step, run: RunRecord) -> LccError:
    done = [name for name in run.artifacts]
    kept = f" {done[-1]!r} is kept;" if done else ""
    if isinstance(error, PreemptedError):
        return PreemptedError(f"step {step.name!r} stopped: {error}{kept} run again to continue.")
    again = f"{kept} run again to continue." if done else ""
    return type(error)(f"step {step.name!r} failed: {error}{again}")


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def last_run() -> dict[str, Any]:
    """run.json of the newest run of this folder; raises RecipeError when there is none."""
    pointer = ROOT / "last"
    if not pointer.is_file():
        raise RecipeError("no run in this folder yet; start one with lcc run +recipe=NAME.")
    path = ROOT / pointer.read_text().strip() / "run.json"
    if not path.is_file():
        raise RecipeError(
            f"the last run's folder {path.parent} is gone; start one with lcc run +recipe=NAME."
        )
    facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return facts


def find_model(name: str | None, facts: dict[str, Any]) -> Path:
    """The model folder of a checkpoint of a run: the named one, else the run's last."""
    made = {
        s["checkpoint"]: s
        for s in facts["steps"]
        if s.get("checkpoint") and s["status"] in ("finished", "reused")
    }
    if not made:
        raise RecipeError(f"run {facts['run']} has no finished model yet; run lcc run again.")
    wanted = name or list(made)[-1]
    if wanted not in made:
        raise RecipeError(f"run {facts['run']} has no model {wanted!r}; it has {', '.join(made)}.")
    artifact = Store(ROOT).find(made[wanted]["key"])
    if artifact is None:
        raise GateError(f"the artifact of {wanted!r} is damaged or gone; run the recipe again.")
    return artifact.path / "model"


def run_words(words: list[str], *, verb: str, quiet: bool = False) -> RunRecord:
    """Compose, plan and run one recipe."""
    refuse_sweep(words)
    return run_pipeline(pipeline_of(words, verb), words=words, verb=verb, quiet=quiet)


def refuse_sweep(words: list[str]) -> None:
    """A sweep without -m would silently take one point: refuse it."""
    for word in words:
        if any(not isinstance(r, Listed) or len(r.values) > 1 for r in ranges([word])):
            raise RecipeError(f"'{word}' has several values; add -m to run one after another.")
