"""Imports only go down; this is the floor plan of docs/architecture.md, checked."""

from __future__ import annotations

import ast
from pathlib import Path

import lcc

ROOT = Path(lcc.__file__).parent
FLOORS = ["core", "views", "parts", "engine", "compression", "inference", "exporting",
          "stage", "methods", "stages",
          "recipe", "pipeline", "planning", "estimates", "worker", "runner", "following",
          "sweeping", "sweep", "serve",
          "__init__", "verbs", "cli", "__main__"]  # fmt: skip


def _room(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def _imports(path: Path) -> set[str]:
    found: set[str] = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    branches = [n for n in ast.walk(tree) if isinstance(n, ast.If)]
    typing_only = {id(n) for branch in branches if "TYPE_CHECKING" in ast.unparse(branch.test)
                   for n in ast.walk(branch)}  # fmt: skip
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
        elif isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
    return {name for name in found if name == "lcc" or name.startswith("lcc.")}


def test_imports_only_go_down() -> None:
    up = []
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        floor = FLOORS.index(parts[0])
        for module in _imports(path):
            # `stage` is imported inside functions of its own room only through the contract.
            if FLOORS.index(_room(module)) > floor and parts[0] != "stage":
                up.append(f"{'/'.join(parts)} imports {module}")
    assert not up, up


def test_every_file_opens_with_one_sentence() -> None:
    silent = [str(p.relative_to(ROOT)) for p in ROOT.rglob("*.py")
              if not ast.get_docstring(ast.parse(p.read_text(encoding="utf-8")))]  # fmt: skip
    assert not silent, silent


def test_no_file_outgrows_a_page_or_two() -> None:
    long = {str(p.relative_to(ROOT)): n for p in ROOT.rglob("*.py")
            if (n := p.read_text(encoding="utf-8").count("\n")) > 300}  # fmt: skip
    assert not long, long


def test_nothing_forbidden_is_called() -> None:
    forbidden = ("torch.load(", "import pickle", "pickle.load", "trust_remote_code=True",
                 "hydra.utils", "@hydra.main", "except Exception: pass")  # fmt: skip
    found = [(str(p.relative_to(ROOT)), word) for p in ROOT.rglob("*.py")
             for word in forbidden if word in p.read_text(encoding="utf-8")]  # fmt: skip
    assert not found, found
