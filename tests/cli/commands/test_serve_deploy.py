"""The examples of docs/deploy say what `lcc serve` takes, and wait for it to go down."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

import lcc
from lcc.cli.commands.serve import options_of, split

DEPLOY = Path(lcc.__file__).parents[1] / "docs" / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
UNIT = (DEPLOY / "lcc-serve.service").read_text(encoding="utf-8")


def compose() -> Any:
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))["services"]["lcc"]


def started() -> dict[str, list[str]]:
    """What each example starts `lcc serve` with."""
    command = re.search(r"^ExecStart=\S+ serve (.*)$", UNIT, re.MULTILINE)
    in_image = re.search(r"^CMD (\[.*\])$", DOCKERFILE, re.MULTILINE)
    assert command and in_image
    return {
        "unit": shlex.split(command[1].replace("${CREDENTIALS_DIRECTORY}", "/run/keys")),
        "image": json.loads(in_image[1]),
        "compose": compose()["command"],
    }


@pytest.mark.parametrize("name", ["unit", "image", "compose"])
def test_an_example_s_words_are_options(name: str) -> None:
    own, rest = split(started()[name])
    options = options_of(own)
    assert [word.partition("=")[0] for word in rest] == ["model"]
    assert options.is_loopback == (name == "unit")


def test_nobody_is_killed_before_answers_are_finished() -> None:
    drain = options_of(split(started()["unit"])[0]).drain_seconds
    waits = re.search(r"^TimeoutStopSec=(\d+)$", UNIT, re.MULTILINE)
    assert waits and int(waits[1]) > drain
    drain = options_of(split(started()["compose"])[0]).drain_seconds
    assert int(compose()["stop_grace_period"].rstrip("s")) > drain


def test_the_image_is_built_of_what_the_package_needs() -> None:
    root = DEPLOY.parents[1]
    kept = [
        line[1:]
        for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
        if line.startswith("!")
    ]
    assert all((root / name).exists() for name in kept)
    project = (root / "pyproject.toml").read_text(encoding="utf-8")
    needed = {"configs", "recipes", "lcc", "README.md", "LICENSE", "pyproject.toml"}
    assert all(f'"{name}"' in project for name in needed - {"pyproject.toml"})
    assert needed <= set(kept)


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not here")
    unit = tmp_path / "lcc-serve.service"
    unit.write_text(UNIT.replace("/opt/lcc/bin/lcc", "/bin/true"), encoding="utf-8")
    done = subprocess.run(
        ["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
