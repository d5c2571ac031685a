"""Errors that are sentences: where, what, and the way out; each kind has its exit code."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class LccError(Exception):
    """The user's fault or the world's, shown without a traceback."""

    exit_code = 1


class RecipeError(LccError):
    """A mistake on the command line or in a recipe."""

    exit_code = 2


class DataError(LccError):
    """Data are missing, empty or not what the task needs."""

    exit_code = 3


class IntegrityError(LccError):
    """Bytes on disk are not the bytes that were written or promised."""

    exit_code = 4


class SafetyError(LccError):
    """Refused because it could run code or leak secrets."""

    exit_code = 5


class ResourceError(LccError):
    """Not enough disk, memory, cores, or no network."""

    exit_code = 6


class LostError(ResourceError):
    """A process of a group cannot go on; a fresh group can, from the saved state."""


class DivergedError(LccError):
    """Training met too many non-finite steps in a row."""

    exit_code = 7


class BusyError(LccError):
    """Another process holds what is needed."""

    exit_code = 8


class GateError(LccError):
    """A step's result failed the reload gate or missed its target."""

    exit_code = 9


class PreemptedError(LccError):
    """Interrupted; run the same command again to continue."""

    exit_code = 75


# The nearest known name to a mistyped one, and how to say it.


def did_you_mean(got: str, allowed: Iterable[str]) -> str:
    """`. Did you mean 'x'?` when a name is near, else the allowed names."""
    known = sorted(allowed)
    near = get_close_matches(got, known, n=1, cutoff=0.6)
    if near:
        return f". Did you mean {near[0]!r}?"
    return f". Allowed: {', '.join(known)}." if known else "."
