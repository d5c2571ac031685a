"""The shelf of exporters: what a model is written as for other tools."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


@runtime_checkable
class Exporter(Protocol):
    """Writes a checkpoint in another tool's format; a field is an option of the format.

    `engine` is the word on the shelf `engines` of what loads it, also for the parity gate. Where an
    exporter `rehearses`, its `rounded(module)` is the source as the engine will compute it, whose
    error is what the format explains (see exporting.explaining).
    """

    revision: ClassVar[int]
    engine: ClassVar[str]

    @property
    def tolerance(self) -> float:
        """Most logit error that the format explains: the share of the logits' own spread."""
        ...

    def refusal(self, folder: Path) -> str | None:
        """Why the checkpoint in `folder` cannot be written so, as a sentence; None if it can."""
        ...

    def write(self, source: Path, target: Path) -> Mapping[str, Any]:
        """Write `source` into the empty folder `target`, tokenizer and card beside it.

        Returns facts for the report (types used, bytes of each, what was kept at more bits).
        """
        ...
