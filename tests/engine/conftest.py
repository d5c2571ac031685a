"""One group of two processes for every test that needs one: starting it takes ten seconds."""

from __future__ import annotations

import pytest
from parallel_cases import Together, trainings


@pytest.fixture(scope="session")
def together(tmp_path_factory: pytest.TempPathFactory) -> Together:
    root = tmp_path_factory.mktemp("parallel")
    return root, trainings(root)
