"""Disk space and failing disks in sentences, folder sizes, and small files written in one rename."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lcc.core.errors import IntegrityError, LccError, ResourceError
from lcc.core.format import size
from lcc.core.machine import free_bytes

FULL = (errno.ENOSPC, errno.EDQUOT)
# What writes outside Python (weights, tokenizers) says in words only.
SAYS_FULL = ("no space left on device", "disk quota exceeded")


def require_space(folder: Path, bytes: int, what: str) -> None:
    """Raise ResourceError unless `bytes` are free below `folder` for `what`."""
    if free_bytes(folder) < bytes:
        raise too_full(folder, bytes, what)


def too_full(folder: Path, bytes: int, what: str) -> ResourceError:
    """The sentence that says how much `what` needs and how much there is."""
    return ResourceError(
        f"{what} needs {size(bytes)} of free disk in {folder}, where {size(free_bytes(folder))} "
        "is free; make room, for example with lcc store gc."
    )


@contextmanager
def explain_errors(folder: Path, bytes: int, what: str) -> Iterator[None]:
    """Turn what a full or failing disk raises inside into a sentence; other errors pass.

    `bytes` is what `what` needs below `folder` in all. Raises ResourceError or IntegrityError.
    """
    try:
        yield
    except LccError:
        raise
    except Exception as error:
        if is_full(error):
            raise too_full(folder, bytes, what) from error
        if isinstance(error, OSError) and error.errno == errno.EIO:
            place = error.filename or folder
            raise IntegrityError(
                f"{what}: {place} cannot be written or read ({error.strerror}); check the disk."
            ) from error
        raise


def is_full(error: BaseException) -> bool:
    """Whether a disk without room is what `error` is about."""
    if isinstance(error, OSError):
        return error.errno in FULL
    return any(words in str(error).lower() for words in SAYS_FULL)


def folder_bytes(folder: Path) -> int:
    """Bytes of the files below `folder`; one that vanishes meanwhile counts as nothing."""
    total = 0
    for root, _, files in os.walk(folder):
        for name in files:
            with suppress(FileNotFoundError):
                total += os.stat(os.path.join(root, name)).st_size
    return total


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, 64 hex characters."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# Small files written in one rename: readers and crashes see the old file or the new one.


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
