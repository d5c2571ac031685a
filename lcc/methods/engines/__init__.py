"""The shelf of engines: what runs a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Protocol, runtime_checkable

if TYPE_CHECKING:
    from pathlib import Path

    from lcc.core.types import Head
    from lcc.inference.session import Opening, Session


@runtime_checkable
class Engine(Protocol):
    """Opens a model folder as a session.

    `format` is the word on the shelf `exporters` of what it reads (`hf`: a checkpoint as it lies);
    `package` is what must be installed, and `extra` the word in `pip install lcc[...]` for it.
    """

    format: ClassVar[str]
    package: ClassVar[str]
    extra: ClassVar[str]
    heads: ClassVar[tuple[Head, ...]]

    def refusal(self, folder: Path) -> str | None:
        """Why this engine cannot run the checkpoint in `folder`, as a sentence; None if it can."""
        ...

    def open(self, folder: Path, opening: Opening) -> Session:
        """A session over a folder in this engine's format, tokenizer and card beside it."""
        ...
