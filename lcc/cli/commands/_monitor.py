"""A monitoring report that follows an output of `lcc infer` while it grows, written anew each second."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lcc.config.cards import card
from lcc.core.disk import write_text
from lcc.core.errors import RecipeError
from lcc.reports import render
from lcc.reports.monitor import LabelledText, monitor

LOOK_SECONDS = 1.0
ENDINGS = {".html": render.to_html, ".md": render.to_markdown}


@card
class Report:
    """`path` ends in .html or .md; `watch` is the class that alerts are about.

    `field` holds the text of a line of the output; `window` texts are one point of the trend.
    """

    path: str
    field: str
    watch: str = "negative"
    window: int = 50

    def __post_init__(self) -> None:
        if Path(self.path).suffix not in ENDINGS:
            raise RecipeError(f"report={self.path}: must end in {' or '.join(ENDINGS)}.")
        if self.window < 2:
            raise RecipeError(f"report_window={self.window}: needs at least 2 texts.")


class Monitor:
    """The texts of an output file so far; `refresh` reads on and writes the report."""

    def __init__(self, report: Report, output: Path) -> None:
        self.report, self.output = report, output
        self.texts: list[LabelledText] = []
        self._place = 0
        self._is_written = False

    def refresh(self) -> None:
        """Write the report if there is anything new; half a line waits for its other half."""
        before = len(self.texts)
        if self.output.is_file():
            with self.output.open("rb") as file:
                file.seek(self._place)
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    self._place += len(line)
                    self.texts.append(self._read(line))
        if len(self.texts) > before or not self._is_written:
            self._write()

    def _read(self, line: bytes) -> LabelledText:
        node = json.loads(line)
        return LabelledText(
            str(node.get(self.report.field, "")), str(node["output"]), str(node.get("time") or "")
        )

    def _write(self) -> None:
        path = Path(self.report.path)
        shown = monitor(
            self.texts, watched=self.report.watch, window=self.report.window, name=self.output.stem
        )
        write_text(path, ENDINGS[path.suffix](shown))
        self._is_written = True


@contextmanager
def monitored(report: Report | None, output: Path) -> Iterator[None]:
    """Keep the report up to date while the output grows, and once more at the end."""
    if report is None:
        yield
        return
    watching, stop = Monitor(report, output), threading.Event()

    def watch() -> None:
        while not stop.wait(LOOK_SECONDS):
            watching.refresh()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        watching.refresh()
