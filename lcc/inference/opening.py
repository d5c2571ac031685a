"""An engine by its word, or by `{name: …, option: …}`, and a session of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lcc.core.catalog import card
from lcc.core.decode import decode
from lcc.core.errors import RecipeError

if TYPE_CHECKING:
    from lcc.inference.sessions import Opening, Session


def named(word: str | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Name and options, checked; raises RecipeError with the nearest name or key."""
    node = {"name": word} if isinstance(word, str) else dict(word)
    name = node.pop("name", None)
    if not isinstance(name, str):
        raise RecipeError("engine: expected a name, or a mapping with `name:`.")
    decode(card("engines", name), node, "engine")
    return name, node


def opened(name: str, options: Mapping[str, Any], folder: Path, opening: Opening) -> Session:
    """The model in memory; `folder` is in the engine's own format."""
    engine: Any = decode(card("engines", name), dict(options), "engine")
    session: Session = engine.open(folder, opening)
    return session
