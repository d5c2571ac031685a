"""Every test: one thread, no network, its own folder for runs, the modules of tests/support."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
# Runs ask for every core. Where several test processes do so, threads that spin while they wait
# take the cores from those that work: two layers took 270 ms instead of 2.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# What several tests share; the processes that they start import it as well.
SUPPORT = str(Path(__file__).parent / "support")
sys.path.insert(0, SUPPORT)
os.environ["PYTHONPATH"] = os.pathsep.join([SUPPORT, *filter(None, [os.environ.get("PYTHONPATH")])])


@pytest.fixture(scope="session")
def together(tmp_path_factory: pytest.TempPathFactory) -> object:
    """Trainings of one group of two processes for every test that needs one: ten seconds."""
    from parallel_cases import trainings

    root = tmp_path_factory.mktemp("parallel")
    return root, trainings(root)


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A finished run on disk."""
    from sample_run import write_sample_run

    return write_sample_run(tmp_path)
