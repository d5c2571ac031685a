"""Writes what exports said against their sources into docs/results.md, from their own reports.

lcc export model=path/to/model format=gguf format.type=q8_0 --out q8
python benchmarks/parity.py "my model, int8=q8" …
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from results import write_section

RESULTS = Path(__file__).parents[1] / "docs" / "results.md"
HEAD = """## Exports beside their sources

`lcc export model=… format=…`, then `python benchmarks/parity.py NAME=FOLDER …`. 200 fixed
prompts, each in the engine that the format is made for. An error is the root mean square of the
logits' differences (vectors', of an encoder) as a share of their own spread, beside what the format
may explain; wrong is the share of tokens that differ where the source is sure; contradicted is the
share of the tokens of 24 answers that a decoder's export wrote itself, several at once, and reads
otherwise.

| model | format | options | bytes | greedy tokens equal | wrong | contradicted | error | allowed \
| template |
|---|---|---|---|---|---|---|---|---|---|"""


def row(name: str, folder: Path) -> str:
    """One export's line of the table."""
    report: dict[str, Any] = json.loads((folder / "export.json").read_text(encoding="utf-8"))
    parity = report["parity"]
    options = {k: v for k, v in report["exporter"].items() if k not in ("name", "revision")}
    told = ", ".join(f"{k} {v}" for k, v in options.items() if v is not None)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    tokens = f"{parity['agreement']:.2%} of {parity['num_tokens']:,}"
    tokens = {"vectors": "–", "bytes": "every byte"}.get(parity["kind"], tokens)
    template = {None: "–", True: "equal", False: "OTHER"}[parity["same_template"]]
    written = parity.get("contradicted_share")  # exports of before have none
    cells = [
        name,
        report["format"],
        told,
        f"{size / 1e6:.1f} MB",
        tokens,
        f"{parity['unexplained_share']:.2%}",
        "–" if written is None else f"{written:.2%}",
        f"{parity['logit_error']:.2%}",
        f"{parity['tolerance']:.0%}",
        template,
    ]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """The whole section anew."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("exports", nargs="+", metavar="NAME=FOLDER", help="what `lcc export` wrote")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    lines = []
    for word in options.exports:
        name, _, folder = word.rpartition("=")
        if not name or not (Path(folder) / "export.json").is_file():
            parser.error(f"{word}: NAME=FOLDER is meant, where FOLDER holds an export.json")
        lines.append(row(name, Path(folder)))
    write_section(options.results, "parity", "\n".join([HEAD, *lines]))


if __name__ == "__main__":
    main()
