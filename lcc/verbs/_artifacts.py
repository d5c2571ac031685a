"""The model folder that a word on the command line means, and the run it comes from."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lcc.core.errors import RecipeError
from lcc.core.nearest import did_you_mean
from lcc.core.store import ROOT


@dataclass(frozen=True)
class Found:
    """A model folder; `run` holds run.json's facts and `step` the checkpoint's name, if any."""

    folder: Path
    name: str
    run: dict[str, Any] | None = None
    step: str = ""


def named_model(word: str) -> Found:
    """The model of a step of the last run, of RUN/STEP, of a key's start, or in a folder.

    Raises RecipeError, which names what is near, where there is none.
    """
    place = Path(word)
    if place.is_dir():
        folder = place / "model" if (place / "model").is_dir() else place
        return Found(folder, place.resolve().name)
    run, slash, step = word.rpartition("/")
    if slash or _is_of_last_run(step):
        return model_of_run(run, step)
    return Found(_by_key(word), word)


def model_of_run(run: str, step: str) -> Found:
    """The model of a step; of the last run where none is named."""
    from lcc.runner import find_model, last_run

    facts = _facts(run) if run else last_run()
    return Found(find_model(step, facts), f"{facts['run']}/{step}", facts, step)


def _is_of_last_run(step: str) -> bool:
    from lcc.runner import last_run

    if not (ROOT / "last").is_file():
        return False
    return any(s.get("checkpoint") == step for s in last_run()["steps"])


def _by_key(word: str) -> Path:
    from lcc.core.addresses import resolve
    from lcc.core.store import Store

    store = Store(ROOT)
    artifact = store.find(resolve(store, word))
    if artifact is None or not (artifact.path / "model").is_dir():
        raise RecipeError(f"{word!r} holds no model; name a step that makes one, or a folder.")
    return artifact.path / "model"


def _facts(run: str) -> dict[str, Any]:
    path = ROOT / run / "run.json"
    if not path.is_file():
        known = [p.parent.name for p in ROOT.glob("*/run.json")]
        raise RecipeError(f"no run is named {run!r}{did_you_mean(run, known)}")
    facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return facts
