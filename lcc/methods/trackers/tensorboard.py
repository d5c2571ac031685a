"""TensorBoard event files, one folder per step: `tensorboard --logdir runs`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from lcc.core.decode import card
from lcc.core.errors import ResourceError
from lcc.core.tracking import Tracker, Value


class EventFile:
    """One event file; numbers that are not finite are left out, TensorBoard draws them as gaps."""

    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def log(self, step: int, values: Mapping[str, Value]) -> None:
        for name, value in values.items():
            if value is not None:
                self._writer.add_scalar(name, float(value), step)

    def close(self) -> None:
        self._writer.close()


@card
class TensorBoard:
    """Write event files that TensorBoard reads."""

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
        return EventFile(SummaryWriter(log_dir=str(folder / self.subfolder)))
