"""Verify every byte of an artifact or export against the digests in its manifest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lcc.cli.arguments import Arguments, emit
from lcc.core.errors import IntegrityError, RecipeError
from lcc.core.format import size
from lcc.store import artifact
from lcc.store.store import ROOT, Store

USAGE = """usage: lcc verify PATH …

  lcc verify my_gguf                         an export
  lcc verify quantize                        a step of the last run; RUN/STEP; a key's start

Reads every file and compares it with MANIFEST.json. Exit code 4 for the first that differs, is
missing or was not there, and for an export that its parity gate refused."""


def main(arguments: Arguments) -> int:
    if not arguments.words or arguments.overrides:
        raise RecipeError("say what to check: lcc verify PATH.")
    facts = [_verified(word) for word in arguments.words]
    lines = [f"{f['path']}: {f['files']} files, {size(f['bytes'])}, as they were written" for f in facts]
    emit(facts, arguments.json, "\n".join(lines))
    return 0


def _verified(word: str) -> dict[str, Any]:
    folder = _folder(word)
    try:
        manifest = artifact.verify(folder, key=_own_key(folder))
    except artifact.Damage as damage:
        raise IntegrityError(f"{folder}: {damage}; fetch or make it again.") from None
    from lcc.inference.sidecar import FAILED_FILE

    if (folder / FAILED_FILE).is_file():
        raise IntegrityError(
            f"{folder}: every byte is as it was written, but its parity gate "
            f"refused it; {FAILED_FILE} says why."
        )
    files = manifest["files"].values()
    return {
        "path": str(folder),
        "key": manifest["key"],
        "files": len(files),
        "bytes": sum(file["bytes"] for file in files),
    }


def _folder(word: str) -> Path:
    if Path(word).is_dir():
        return Path(word)
    from lcc.store.store import resolve

    if not ROOT.is_dir():
        raise RecipeError(f"{word}: there is no such folder, and no run here.")
    store = Store(ROOT)
    return store.path(resolve(store, word))


def _own_key(folder: Path) -> str | None:
    """An artifact in the store has its key as its name; an export says its own."""
    if folder.resolve().parent.name == "store":
        return None
    try:
        manifest = json.loads((folder / artifact.MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return str(manifest.get("key")) if isinstance(manifest, dict) else None
