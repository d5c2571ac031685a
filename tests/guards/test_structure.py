"""The structure of `lcc/`: imports go down, no circles, packages and files of a bounded size."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

import lcc

ROOT = Path(lcc.__file__).parent
# From the ground up: a package imports only what stands before it, type-only imports included.
FLOORS = [
    "core", "kernels", "config", "tokenization", "store", "data", "methods.launchers",
    "methods.samplers", "methods.trackers", "reports", "methods.readers.packages", "methods.readers",
    "models", "tasks",
    "distributed", "methods.baselines", "calibration", "training", "methods.objectives",
    "methods.optimizers", "methods.clipping", "methods.adapters", "pipeline", "compression",
    "evaluation", "methods.quantizers", "methods.criteria", "methods.metrics", "inference",
    "inference.backends", "export", "methods.exporters", "methods.engines", "sweeps", "stages",
    "serving", "", "cli", "cli.commands",
]  # fmt: skip
# There the folder is the list of choices, stages or commands: as many files as there are words.
SHELVES = ("methods", "stages", "cli.commands")
MOST_FILES, MOST_LINES, LEAST_LINES = 12, 600, 40


def _modules() -> dict[str, Path]:
    """Module name below `lcc` → file."""
    names = {path: ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in ROOT.rglob("*.py")}
    return {name.removesuffix("__init__").rstrip("."): path for path, name in names.items()}


MODULES = _modules()


def _package(module: str) -> str:
    is_package = MODULES[module].name == "__init__.py"
    return module if is_package else module.rpartition(".")[0]


def _on_shelf(module: str) -> bool:
    return _package(module).startswith(SHELVES)


def _imports(path: Path) -> set[str]:
    """Modules of lcc that a file imports anywhere: in functions and for types alone too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            named = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {n if _below(n) in MODULES else node.module for n in named}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {_below(name) for name in found if name == "lcc" or name.startswith("lcc.")}


def _below(name: str) -> str:
    return name.removeprefix("lcc").lstrip(".") if name.startswith("lcc") else f"?{name}"


IMPORTS = {name: _imports(path) - {name} for name, path in MODULES.items()}


def _circles(arrows: Mapping[str, Iterable[str]]) -> list[str]:
    """Nodes that can reach themselves."""

    def reachable(start: str) -> set[str]:
        seen: set[str] = set()
        todo = list(arrows.get(start, ()))
        while todo:
            node = todo.pop()
            if node not in seen:
                seen.add(node)
                todo += arrows.get(node, ())
        return seen

    return sorted(node for node in arrows if node in reachable(node))


def test_every_import_names_a_module_that_exists() -> None:
    unknown = {name: imported - MODULES.keys() for name, imported in IMPORTS.items()}
    assert not any(unknown.values()), {n: u for n, u in unknown.items() if u}


def test_imports_only_go_down() -> None:
    up = [
        f"{name} imports {other}"
        for name, imported in IMPORTS.items()
        if name != "__main__"
        for other in imported
        if other  # anyone may ask the package for its version
        and FLOORS.index(_package(other)) > FLOORS.index(_package(name))
    ]
    assert not up, up


def test_no_files_import_each_other_in_a_circle() -> None:
    assert _circles(IMPORTS) == []


def test_no_packages_import_each_other_in_a_circle() -> None:
    arrows: dict[str, set[str]] = defaultdict(set)
    for name, imported in IMPORTS.items():
        arrows[_package(name)] |= {_package(other) for other in imported} - {_package(name), ""}
    assert _circles(arrows) == []


def test_a_package_holds_at_most_a_dozen_files() -> None:
    files = defaultdict(list)
    for name, path in MODULES.items():
        if path.name != "__init__.py" and not _on_shelf(name):
            files[_package(name)].append(path.name)
    full = {package: held for package, held in files.items() if len(held) > MOST_FILES}
    assert not full, full


def test_a_file_is_worth_a_visit_and_no_longer_than_a_chapter() -> None:
    lines = {name: path.read_text(encoding="utf-8").count("\n") for name, path in MODULES.items()}
    long = {name: num for name, num in lines.items() if num > MOST_LINES}
    assert not long, long
    short = {
        name: num
        for name, num in lines.items()
        if num < LEAST_LINES and not _on_shelf(name) and not MODULES[name].name.startswith("__")
    }
    assert not short, short


def test_every_file_opens_with_one_sentence() -> None:
    silent = [
        name
        for name, path in MODULES.items()
        if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert not silent, silent


def test_nothing_forbidden_is_called() -> None:
    forbidden = (
        "torch.load(",
        "import pickle",
        "pickle.load",
        "trust_remote_code=True",
        "hydra.utils",
        "@hydra.main",
        "except Exception: pass",
    )
    found = [
        (name, word)
        for name, path in MODULES.items()
        for word in forbidden
        if word in path.read_text(encoding="utf-8")
    ]
    assert not found, found
