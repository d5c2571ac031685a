"""Launch points as detached actors of a Ray cluster (Moritz et al., 2018), or of one on this machine."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field

from lcc.config.cards import card
from lcc.core.errors import ResourceError
from lcc.methods.launchers import RESTARTS, LaunchedTask, TaskGroup
from lcc.methods.launchers._commands import ask_to_end, fate_of, forget_end, has_ended, run_to_end, start

NAMESPACE = "lcc"
SECONDS_TO_LEAVE = 120.0


@card
class Ray:
    """`cpus`, `gpus` and `memory_gb` are what Ray sets aside for each point.

    `address`: `local` starts a cluster on this machine for as long as the command runs; `auto` or
    `HOST:PORT` is one that stands, where points go on when the command is gone.
    """

    word: ClassVar[str] = "ray"
    revision: ClassVar[int] = 1
    restarts: ClassVar[int] = RESTARTS

    address: Annotated[str, Field(pattern=r"^[\w.:\-\[\]]+$")] = "local"
    cpus: Annotated[float, Field(gt=0)] = 1.0
    gpus: Annotated[float, Field(ge=0)] = 0.0
    memory_gb: Annotated[float, Field(gt=0)] | None = None
    parallel: Annotated[int, Field(ge=1)] = 64

    def capacity(self, *, adaptive: bool) -> int:
        return self.parallel

    def open(self, folder: Path, name: str) -> TaskGroup:
        ray = _ray()
        try:
            ray.init(
                address=self.address,
                namespace=NAMESPACE,
                log_to_driver=False,
                logging_level="ERROR",
                include_dashboard=False if self.address == "local" else None,
                ignore_reinit_error=True,
            )
        except Exception as error:  # Ray says most of what goes wrong at its start in plain ones
            reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
            raise ResourceError(
                f"launcher.address: no Ray answers at {self.address!r} ({reason.rstrip('.')}); start "
                "one with `ray start --head`, choose launcher.address=local, or run again when the "
                "machine is less busy."
            ) from None
        return RayCrew(self, ray, folder, name)


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        raise ResourceError(
            "launcher=ray needs Ray; pip install 'lcc[ray]', or choose launcher=local."
        ) from None
    return ray


class PointActor:
    """The actor: one child process, ended on request."""

    def __init__(self) -> None:
        self.child: subprocess.Popen[bytes] | None = None
        self.told_to_end = False

    def run(self, task: LaunchedTask, threads: int) -> None:
        if not self.told_to_end:
            self.child = start(task, environment={"OMP_NUM_THREADS": str(threads)})
            run_to_end(self.child, task)
        # With its task the actor goes too, which frees what was set aside for it.
        _ray().actor.exit_actor()

    def stop(self) -> None:
        self.told_to_end = True
        if self.child is not None and not has_ended(self.child):
            ask_to_end(self.child)


class RayCrew:
    """Actors by name: any driver that joins the cluster finds those that wait or run."""

    poll_seconds = 0.5

    def __init__(self, options: Ray, ray: Any, folder: Path, name: str) -> None:
        self.options, self.ray, self.folder, self.name = options, ray, folder, name

    def submit(self, tasks: Sequence[LaunchedTask]) -> None:
        place = self.ray.remote(PointActor)
        options = self.options
        memory = {"memory": round(options.memory_gb * 1e9)} if options.memory_gb else {}
        for task in tasks:
            forget_end(task.log)
            actor = place.options(
                name=self._name(task.index),
                lifetime="detached",
                max_restarts=0,
                max_concurrency=2,
                num_cpus=options.cpus,
                num_gpus=options.gpus,
                **memory,
            ).remote()
            actor.run.remote(task, max(1, int(options.cpus)))

    def alive(self) -> set[int]:
        prefix = self._name("")
        named = self.ray.util.list_named_actors(all_namespaces=True)
        names = [actor["name"] for actor in named if actor["namespace"] == NAMESPACE]
        return {int(name.removeprefix(prefix)) for name in names if name.startswith(prefix)}

    def fate(self, index: int) -> str:
        return fate_of(self.folder / "points" / f"{index:03d}.log")

    def stop(self, index: int) -> None:
        try:
            self.ray.get_actor(self._name(index), namespace=NAMESPACE).stop.remote()
        except ValueError:
            return  # it has ended meanwhile

    def close(self) -> str:
        left = self.alive()
        if self.options.address != "local":
            self.ray.shutdown()
            return (
                f"{len(left)} points go on in the cluster; run the same command again to see how they end."
                if left
                else ""
            )
        for index in left:
            self.stop(index)
        deadline = time.monotonic() + SECONDS_TO_LEAVE
        while self.alive() and time.monotonic() < deadline:
            time.sleep(self.poll_seconds)
        self.ray.shutdown()
        return ""

    def _name(self, index: int | str) -> str:
        return f"{self.name}/{index}"
