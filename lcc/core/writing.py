"""Small files written in one rename: readers and crashes see the old file or the new one."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any


def write_json(path: Path, facts: Any) -> None:
    """`facts` as JSON that people can read too."""
    write_text(path, json.dumps(facts, ensure_ascii=False, indent=1))


def write_text(path: Path, text: str) -> None:
    """`text`, safely on the disk before it takes the place of what was there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Several processes may write one file at a time: each has a draft of its own.
    draft = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    with draft.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
