"""The wheel carries configs and recipes: outside a checkout everything is there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the built wheel in it, without dependencies."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    wheel = next(folder.glob("*.whl"))
    site = folder / "site"
    install = ["pip", "install", "--no-deps", "--no-index", "--quiet", "--target", str(site)]
    subprocess.run([sys.executable, "-m", *install, str(wheel)], check=True, capture_output=True)
    return site


def _lcc(installed: Path, folder: Path, *words: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    code = "import lcc, sys; print(lcc.__file__, file=sys.stderr); from lcc.cli import main; "
    command = [sys.executable, "-c", code + "sys.exit(main())", *words]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert str(installed) in done.stderr
    return done.stdout


def test_an_installed_wheel_lists_its_recipes(installed: Path, tmp_path: Path) -> None:
    assert "mt_en_zh_small" in _lcc(installed, tmp_path, "recipes", "ls")


def test_an_installed_wheel_runs_a_recipe(installed: Path, tmp_path: Path) -> None:
    _lcc(installed, tmp_path, "run", "+recipe=tiny")
    assert (tmp_path / "runs" / "last").is_file()
