"""What every benchmark works on: a model folder, calibration rows, and token ids to score."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lcc.methods.readers.packages.cache import cache_root

HEADING = re.compile(r"^ = [^=].* = $", re.MULTILINE)  # begins an article of WikiText
CHARACTERS = 2500  # of a calibration row: more than 512 tokens of English
NO_TEXT = (
    "give a text to measure on with --text FILE: WikiText-2's test split as one file (articles"
    " begin with ' = Title = '), or any plain text of a megabyte."
)


@dataclass(frozen=True)
class Text:
    """One file cut in two by articles: the first half is scored, the second calibrates."""

    path: Path

    def _articles(self) -> list[str]:
        whole = self.path.read_text(encoding="utf-8")
        starts = [m.start() for m in HEADING.finditer(whole)] or list(range(0, len(whole), 20_000))
        return [whole[a:b] for a, b in zip(starts, [*starts[1:], len(whole)], strict=True)]

    @property
    def scored(self) -> str:
        articles = self._articles()
        return "".join(articles[: len(articles) // 2])

    def rows(self) -> list[dict[str, str]]:
        """Calibration rows, each longer than any `max_length` used here."""
        articles = self._articles()
        rest = "".join(articles[len(articles) // 2 :])
        pieces = [rest[i : i + CHARACTERS] for i in range(0, len(rest) - CHARACTERS, CHARACTERS)]
        return [{"id": str(i), "doc": str(i), "text": piece} for i, piece in enumerate(pieces)]


def text_of(path: str | None) -> Text:
    """The text file, or the sentence that says what to give."""
    if path is None or not Path(path).is_file():
        sys.exit(f"{path}: no such file; {NO_TEXT}" if path else NO_TEXT)
    return Text(Path(path))


def write_data(text: Text, folder: Path) -> Path:
    """An artifact of prepared data (`data/`) as lcc's stages read it; returns its folder."""
    target = folder / "data"
    target.mkdir(parents=True, exist_ok=True)
    rows = text.rows()
    splits = {"train": rows, "validation": rows[:1], "test": rows[:1]}
    for name, found in splits.items():
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found)
        (target / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    numbers = {name: len(found) for name, found in splits.items()}
    counts = {"read": len(rows), "removed": {}, "left_out": {}, "rows": numbers, "documents": numbers}
    (target / "counts.json").write_text(json.dumps(counts), encoding="utf-8")
    return folder


def model_folder(model: str, work: Path) -> Path:
    """A folder as it is, or a model card built once by lcc's own base step below `work`."""
    if (Path(model) / "config.json").is_file():
        return Path(model).resolve()
    from lcc.models import sources
    from lcc.pipeline.planner import plan_steps
    from lcc.pipeline.recipe import load_recipe
    from lcc.pipeline.runner import run_pipeline

    with inside(work):
        recipe = load_recipe([f"model={model}"])
        assert recipe.model is not None
        absent = sources.missing(recipe.model)
        if absent:
            sys.exit(absent)
        run = run_pipeline(plan_steps(recipe), words=[f"model={model}"], quiet=True)
        return (run.artifacts["base"].path / "model").resolve()


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    """While open, the working folder: lcc keeps its runs there."""
    folder.mkdir(parents=True, exist_ok=True)
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def default_work() -> Path:
    """Where environments and results of benchmarks are kept unless told otherwise."""
    return cache_root() / "benchmarks"
