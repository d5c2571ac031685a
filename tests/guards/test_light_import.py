"""Help, preview, schema, recipes and report need no torch; help is there at once."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "peft", "bitsandbytes")


def _imported_after(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(*[m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


def test_every_card_is_known_without_torch() -> None:
    code = """
from lcc.config.cards import SHELVES, card_schema, find_card, names
for shelf in SHELVES:
    for name in names(shelf):
        card_schema(find_card(shelf, name))
"""
    assert _imported_after(code) == set()


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["preview", "+recipe=tiny"],
        ["schema"],
        ["recipes", "ls"],
        ["recipes", "validate", "tiny"],
        ["run", "--help"],
    ],
)
def test_light_verbs_import_no_torch(words: list[str]) -> None:
    assert _imported_after(f"from lcc.cli import main\nassert main({words!r}) == 0") == set()


def test_help_imports_neither_hydra_nor_pydantic() -> None:
    code = "from lcc.cli import main\nassert main(['--help']) == 0\n"
    code += "assert not {'hydra', 'pydantic', 'rich', 'yaml'} & set(sys.modules), sys.modules.keys()"
    assert _imported_after(code) == set()
