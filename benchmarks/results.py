"""Sections of docs/results.md: each is written between its own two marks, the rest stays."""

from __future__ import annotations

import re
from pathlib import Path

HEAD = """# Measured results

Every figure here was measured by the command above its table. What was not measured is not here.
"""


def write_section(path: Path, name: str, text: str) -> None:
    """Put `text` in the place of section `name`, or at the end."""
    whole = path.read_text(encoding="utf-8") if path.is_file() else HEAD
    first, last = f"<!-- {name} -->", f"<!-- end of {name} -->"
    section = f"{first}\n{text.strip()}\n{last}"
    known = re.compile(re.escape(first) + ".*?" + re.escape(last), re.DOTALL)
    whole = known.sub(lambda _: section, whole) if known.search(whole) else f"{whole.rstrip()}\n\n{section}\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(whole, encoding="utf-8")
