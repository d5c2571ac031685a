"""What people call an artifact (a step of the last run, RUN/STEP, a key's start), as its key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lcc.core.errors import IntegrityError, RecipeError
from lcc.core.nearest import did_you_mean
from lcc.core.store import Store

MIN_PREFIX = 4
HEX = set("0123456789abcdef")


def resolve(store: Store, word: str) -> str:
    """The key in the store that `word` means; raises RecipeError naming what it could mean."""
    run, slash, step = word.rpartition("/")
    if slash:
        return _finished(store, word, _steps(store.root, run), step)
    last = store.root / "last"
    steps = _steps(store.root, last.read_text().strip()) if last.is_file() else {}
    if word in steps:
        return _finished(store, word, steps, word)
    return _by_prefix(store, word, steps)


def _by_prefix(store: Store, word: str, steps: dict[str, str]) -> str:
    names = {artifact.key: artifact.path for artifact in store.artifacts()}
    found = [key for key in names if key.startswith(word)]
    if len(word) < MIN_PREFIX or not set(word) <= HEX or not found:
        raise RecipeError(f"{word!r} is no step of the last run, and no key in the store starts "
                          f"with it{did_you_mean(word, steps)}")  # fmt: skip
    if len(found) > 1:
        shown = ", ".join(key[: max(12, len(word) + 4)] for key in found)
        raise RecipeError(f"{word!r} could be {shown}; write more of the key.")
    return found[0]


def _finished(store: Store, word: str, steps: dict[str, str], step: str) -> str:
    if step not in steps:
        raise RecipeError(f"{word!r}: the run has no step {step!r}{did_you_mean(step, steps)}")
    if not store.path(steps[step]).is_dir():
        raise RecipeError(f"{word!r} is not in the store ({steps[step][:12]}); run its recipe.")
    return steps[step]


def _steps(root: Path, run: str) -> dict[str, str]:
    """Step name → key of one run."""
    path = root / run / "run.json"
    runs = [p.parent.name for p in root.glob("*/run.json")]
    if run not in runs:
        raise RecipeError(f"no run is named {run!r}{did_you_mean(run, runs)}")
    try:
        facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return {step["name"]: step["key"] for step in facts["steps"]}
    except (ValueError, KeyError, TypeError):
        raise IntegrityError(f"{path} cannot be read; mend it or delete {path.parent}.") from None
