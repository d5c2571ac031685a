"""A finished run on disk for every test of the views."""

from __future__ import annotations

from pathlib import Path

import pytest
from sample_run import write_sample_run


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    return write_sample_run(tmp_path)
