"""Where configs and recipes lie: the user's own folders first, then those that came with lcc."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]


def config_roots() -> list[Path]:
    """Folders that hold config groups, the one that wins first."""
    return _roots("configs")


def recipe_roots() -> list[Path]:
    """Folders that hold recipes, the one that wins first."""
    return _roots("recipes")


def packaged_file(relative: str) -> Path | None:
    """The file `dataset/tiny/x.jsonl` of the first config root that has it."""
    found = (root / relative for root in config_roots())
    return next((path for path in found if path.is_file()), None)


def _roots(name: str) -> list[Path]:
    own = Path.cwd() / name
    checkout = PACKAGE.parent / name
    # A checkout has no lcc/_packaged, and an installed wheel has no configs/ beside the package.
    shipped = PACKAGE / "_packaged" / name
    roots = [own, shipped if shipped.is_dir() else checkout]
    unique = dict.fromkeys(path.resolve() for path in roots if path.is_dir())
    return list(unique)
