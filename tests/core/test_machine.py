"""The machine is named by its hardware, without torch and without its owner's name."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path

from lcc.core import machine


def test_the_facts_are_plain_json_and_name_no_host() -> None:
    text = json.dumps(machine.machine())
    facts = json.loads(text)
    assert facts["cores"] >= 1
    assert facts["memory_bytes"] > 100e6
    assert platform.node() not in [str(value) for value in facts.values()]


def test_the_key_is_short_and_stable() -> None:
    assert machine.machine_key() == machine.machine_key()
    assert len(machine.machine_key()) == 16


def test_versions_name_python_and_what_computes() -> None:
    found = machine.versions()
    assert {"python", "lcc", "torch", "transformers", "peft"} <= set(found)
    assert all(found.values())


def test_a_package_that_is_not_installed_has_no_version() -> None:
    assert machine.version_of("no-such-package-anywhere") is None


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys; from lcc.core.machine import machine, versions; machine(); versions(); "
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_free_disk_is_known_for_a_folder_that_is_yet_to_be_made(tmp_path: Path) -> None:
    assert machine.free_bytes(tmp_path / "runs" / "store") > 0
