"""TensorBoard event files, one folder per step: `tensorboard --logdir runs`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from lcc.config.cards import card
from lcc.core.errors import ResourceError
from lcc.core.progress import Tracker, Value


class EventFile:
    """One event file, made when the first number comes: most steps of a run have none."""

    def __init__(self, start: Callable[[], Any]) -> None:
        self._start = start
        self._writer: Any = None

    def log(self, step: int, values: Mapping[str, Value]) -> None:
        """Numbers as scalars; what is missing is left out and drawn as a gap."""
        if self._writer is None:
            self._writer = self._start()
        for name, value in values.items():
            if value is not None:
                self._writer.add_scalar(name, float(value), step)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


@card
class TensorBoard:
    """Write event files that TensorBoard reads."""

    word: ClassVar[str] = "tensorboard"
    revision: ClassVar[int] = 1

    subfolder: str = "tensorboard"

    def open(self, folder: Path, name: str) -> Tracker:
        """An event file below `folder`; raises ResourceError where tensorboard is missing."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise ResourceError(
                "tracker: tensorboard is not installed; pip install 'lcc[tensorboard]', "
                "or choose tracker=none."
            ) from None
        return EventFile(lambda: SummaryWriter(log_dir=str(folder / self.subfolder)))
