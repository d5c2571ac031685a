"""Fixtures: tiny models behind a real server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import served_models as serving
from running_servers import Running, run


@pytest.fixture(scope="session")
def chat_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return serving.chatter(tmp_path_factory.mktemp("chat") / "tiny-chat")


@pytest.fixture(scope="session")
def plain_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without a chat template: its server starts in no time."""
    folder = tmp_path_factory.mktemp("plain") / "tiny-plain"
    return serving.chatter(folder, template=None)


@pytest.fixture(scope="module")
def chat(chat_folder: Path) -> Iterator[Running]:
    with run(chat_folder) as running:
        yield running


@pytest.fixture
def serve() -> Callable[..., Any]:
    """`with serve(folder, **options) as running`."""
    return run
