"""Weights & Biases, offline unless a recipe says otherwise: nothing leaves the machine unasked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from lcc.config.cards import card
from lcc.core.errors import ResourceError
from lcc.core.progress import Tracker, Value


class WandbRun:
    """One run of Weights & Biases for one step of ours, begun when its first number comes."""

    def __init__(self, start: Callable[[], Any], folder: Path) -> None:
        self._start, self._folder = start, folder
        self._run: Any = None

    def log(self, step: int, values: Mapping[str, Value]) -> None:
        if self._run is None:
            self._run = self._start()
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        if self._run is None:
            return
        self._run.finish()
        # An artifact holds files only: wandb's links to its newest run point outside of it.
        for path in (self._folder / "wandb").rglob("*"):
            if path.is_symlink():
                path.unlink()


@card
class Wandb:
    """Send training numbers to Weights & Biases.

    `offline` writes below the step's folder; `wandb sync FOLDER` uploads it later.
    """

    word: ClassVar[str] = "wandb"
    revision: ClassVar[int] = 1

    project: str = "lcc"
    entity: str | None = None
    mode: Literal["offline", "online"] = "offline"

    def open(self, folder: Path, name: str) -> Tracker:
        """A run named `name`; raises ResourceError where wandb is missing."""
        try:
            import wandb
        except ImportError:
            raise ResourceError(
                "tracker: wandb is not installed; pip install 'lcc[wandb]', or choose tracker=none."
            ) from None
        return WandbRun(lambda: self._begin(wandb, folder, name), folder)

    def _begin(self, wandb: Any, folder: Path, name: str) -> Any:
        folder.mkdir(parents=True, exist_ok=True)
        settings = wandb.Settings(silent=True, console="off", disable_git=True, save_code=False)
        try:
            return wandb.init(
                project=self.project,
                entity=self.entity,
                mode=self.mode,
                name=name,
                dir=str(folder),
                settings=settings,
                reinit="create_new",
            )
        except wandb.errors.Error as error:
            raise ResourceError(
                f"tracker: Weights & Biases did not start ({str(error).splitlines()[0]}); "
                "log in with `wandb login`, or choose tracker.mode=offline."
            ) from None
