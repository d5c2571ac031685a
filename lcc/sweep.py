"""Words → pipeline → run; `-m` hands the words of many points to `lcc.sweeping`."""

from __future__ import annotations

from lcc.core.errors import RecipeError
from lcc.core.ranges import Listed, ranges
from lcc.runner import Run, run_pipeline
from lcc.sweeping.driving import run_sweep
from lcc.sweeping.planned import pipeline_of
from lcc.sweeping.racing import Entrant, race

__all__ = ["Entrant", "pipeline_of", "race", "refuse_sweep", "run_sweep", "run_words"]


def run_words(words: list[str], *, verb: str, quiet: bool = False) -> Run:
    """Compose, plan and run one recipe."""
    refuse_sweep(words)
    return run_pipeline(pipeline_of(words, verb), words=words, verb=verb, quiet=quiet)


def refuse_sweep(words: list[str]) -> None:
    """A sweep without -m would silently take one point: refuse it."""
    for word in words:
        if any(not isinstance(r, Listed) or len(r.values) > 1 for r in ranges([word])):
            raise RecipeError(f"'{word}' has several values; add -m to run one after another.")
