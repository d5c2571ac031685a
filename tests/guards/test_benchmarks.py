"""A benchmark's folder comes first on its path: its files must not hide a library."""

from __future__ import annotations

import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import lcc

BENCHMARKS = Path(lcc.__file__).parents[1] / "benchmarks"


def test_no_benchmark_is_named_like_a_library() -> None:
    known = set(packages_distributions()) | sys.stdlib_module_names
    files = sorted(BENCHMARKS.rglob("*.py"))
    assert files
    assert [file.name for file in files if file.stem in known] == []
