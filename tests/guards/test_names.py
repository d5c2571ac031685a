"""Names in `lcc/` and `tests/`: literal, used once, and in the words of docs/architecture.md."""

from __future__ import annotations

import ast
import re
from collections import defaultdict

from test_structure import MODULES, ROOT

TESTS = ROOT.parent / "tests"
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}
# Words that say nothing of what they name; the field has better ones.
RIDDLES = {"found", "told", "_told", "spoken", "Pen", "Turner", "Racer", "Dress", "Kept"}
# Stems used twice, and why: else a name leads to one file.
STAGE = "a stage or command, and what does its work"
TOOL = "one tool: its exporter and engine, and what they call"
CHOICE = "the word of a choice on two shelves"
TWICE = {
    **dict.fromkeys(("calibrate", "quantize", "sensitivity", "export", "store"), STAGE),
    **dict.fromkeys(("run", "sweep", "monitor"), "a command, and its report"),
    **dict.fromkeys(("compressed_tensors", "ctranslate2", "graph", "ollama", "openvino", "vllm"), TOOL),
    **dict.fromkeys(("nearest", "none", "squad"), CHOICE),
    "checkpoint": "of a model, and the resume state of a training",
    "faq": "what a task is grounded in, and a reader of such",
    "smoothquant": "the quantizer, and the scales that it and AWQ move",
}
# What spans packages, or is about more than lcc/.
ELSEWHERE = {"guards", "soak", "support", "benchmarks", "end_to_end"}
MOST_SKIPS = 60


def _glossary() -> dict[str, list[str]]:
    """Package → its words, from the tables of docs/architecture.md."""
    text = (ROOT.parent / "docs/architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([a-z./]+)` \|[^|\n]*\| ([^|\n]+) \|$", text, re.M)
    return {
        name.replace("/", "."): [word.strip().lower() for word in words.split(",")] for name, words in rows
    }


def _row_of(module: str, glossary: dict[str, list[str]]) -> str:
    parts = module.split(".")
    names = [".".join(parts[:n]) for n in range(len(parts), 0, -1)]
    return next((name for name in names if name in glossary), "")


def _public(tree: ast.Module) -> set[str]:
    """Names and card words that a file defines for others."""
    kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    names = {n.name for n in tree.body if isinstance(n, kinds) and not n.name.startswith("_")}
    cards = [n for n in tree.body if isinstance(n, ast.ClassDef)]
    words = [a for card in cards for a in card.body if isinstance(a, ast.AnnAssign | ast.Assign)]
    values = [a.value for a in words if "word" in ast.unparse(a).partition("=")[0]]
    return names | {str(v.value) for v in values if isinstance(v, ast.Constant)}


def test_every_package_has_a_row_in_the_architecture() -> None:
    packages = {name.partition(".")[0] for name in MODULES if "." in name}
    assert packages - {"methods"} <= _glossary().keys()
    shelves = {
        ".".join(name.split(".")[:2]) for name in MODULES if name.count(".") == 2 and "methods" in name
    }
    assert shelves <= _glossary().keys()


def test_the_first_line_of_a_file_has_a_word_of_its_package() -> None:
    glossary = _glossary()
    without = {}
    for name, tree in TREES.items():
        row = _row_of(name, glossary)
        line = (ast.get_docstring(tree) or "").splitlines()[0]
        words = [*glossary.get(row, ()), *(word.lower() for word in _public(tree))]
        if row and not any(word in line.lower() for word in words):
            without[name] = line
    assert not without, without


def test_no_name_is_a_riddle() -> None:
    used = defaultdict(set)
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            names = [getattr(node, part, None) for part in ("id", "arg", "attr", "name")]
            used[name] |= {str(one) for one in names} & RIDDLES
    assert not any(used.values()), {name: words for name, words in used.items() if words}


def test_a_class_name_is_used_once() -> None:
    where = defaultdict(list)
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and "card" not in map(ast.unparse, node.decorator_list):
                where[node.name.lstrip("_")].append(name)
    assert {n: files for n, files in where.items() if len(files) > 1} == {}


def test_a_file_name_is_used_once_or_says_why() -> None:
    stems = defaultdict(list)
    for name, path in MODULES.items():
        if not path.name.startswith("__"):
            stems[path.stem.lstrip("_")].append(name)
    twice = {stem: files for stem, files in stems.items() if len(files) > 1}
    assert twice.keys() == TWICE.keys(), twice


def test_the_formatter_decides_but_for_tables() -> None:
    skips = {name: path.read_text(encoding="utf-8").count("# fmt: skip") for name, path in MODULES.items()}
    assert sum(skips.values()) <= MOST_SKIPS


def test_tests_stand_where_their_subject_stands() -> None:
    """`tests/store/test_locks.py`, or `test_locks_hosts.py`, is about `lcc/store/locks.py`."""
    stray = []
    for path in sorted(TESTS.rglob("test_*.py")):
        folder = path.parent.relative_to(TESTS)
        if folder.parts and folder.parts[0] in ELSEWHERE:
            continue
        subject, stem = ROOT / folder, path.stem.removeprefix("test_")
        stems = {file.stem.lstrip("_") for file in subject.glob("*.py")} | {folder.name}
        if not subject.is_dir() or not any(stem == s or stem.startswith(f"{s}_") for s in stems):
            stray.append(str(path.relative_to(TESTS)))
    assert not stray, stray
