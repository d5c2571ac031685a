"""Typed objects back to plain JSON, with the name and revision of every choice: what keys hash."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from lcc.core.catalog import name_of

FORMAT = 1


def describe(value: Any) -> Any:
    """`value` as JSON-like data; a choice carries its `name` and `revision`."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: describe(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {**_identity(value), **fields}
    if isinstance(value, dict):
        return {str(key): describe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [describe(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    assert value is None or isinstance(value, str | int | float | bool), repr(value)
    return value


def identify(value: Any) -> Any:
    """`describe` without the fields a card calls `unkeyed`: those that change no result."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        left_out = getattr(type(value), "unkeyed", ())
        fields = [f.name for f in dataclasses.fields(value) if f.name not in left_out]
        return {**_identity(value), **{name: identify(getattr(value, name)) for name in fields}}
    if isinstance(value, dict):
        return {str(key): identify(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [identify(item) for item in value]
    return describe(value)


def digest(value: Any) -> str:
    """SHA-256 of the canonical JSON of `value`, 64 hex characters."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _identity(value: Any) -> dict[str, Any]:
    cls = type(value)
    revision = getattr(cls, "revision", None)
    if revision is None:
        return {}
    return {"name": name_of(value), "revision": revision}
