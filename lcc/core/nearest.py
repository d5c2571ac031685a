"""The nearest known name to a mistyped one, and how to say it."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(got: str, allowed: Iterable[str]) -> str:
    """`. Did you mean 'x'?` when a name is near, else the allowed names."""
    known = sorted(allowed)
    near = get_close_matches(got, known, n=1, cutoff=0.6)
    if near:
        return f". Did you mean {near[0]!r}?"
    return f". Allowed: {', '.join(known)}." if known else "."
