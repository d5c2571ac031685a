"""A full disk is said in bytes, a failing one by the file; other errors stay themselves."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from lcc.core import disk
from lcc.core.errors import DataError, IntegrityError, ResourceError
from lcc.core.machine import free_bytes


def test_what_is_asked_and_what_is_free_are_both_said(tmp_path: Path) -> None:
    disk.require_space(tmp_path / "not" / "there" / "yet", 1, "a word")
    with pytest.raises(ResourceError) as caught:
        disk.require_space(tmp_path, 10**18, "the run")
    assert str(caught.value).startswith(f"the run needs 1,000,000,000 GB of free disk in {tmp_path}, where ")
    assert "is free; make room, for example with lcc store gc." in str(caught.value)
    assert caught.value.exit_code == 6
    assert free_bytes(tmp_path) > 1


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "weights"),
        OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), "weights"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_told_whoever_noticed_it(tmp_path: Path, error: Exception) -> None:
    said = pytest.raises(ResourceError, match=r"the model needs 3 MB of free disk in")
    with said, disk.explain_errors(tmp_path, 3_000_000, "the model"):
        raise error


def test_a_failing_disk_is_told_with_the_file(tmp_path: Path) -> None:
    error = OSError(errno.EIO, os.strerror(errno.EIO), "weights")
    with pytest.raises(IntegrityError) as caught, disk.explain_errors(tmp_path, 1, "the model"):
        raise error
    sentence = "the model: weights cannot be written or read (Input/output error); check the disk."
    assert str(caught.value) == sentence
    assert caught.value.exit_code == 4


@pytest.mark.parametrize(
    "error",
    [
        ValueError("no space for doubt"),
        FileNotFoundError(errno.ENOENT, "gone", "x"),
        DataError("row 7 says: no space left on device"),
    ],
)
def test_any_other_error_passes(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error)) as caught, disk.explain_errors(tmp_path, 1, "the model"):
        raise error
    assert caught.value is error
