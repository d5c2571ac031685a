"""Several of the scripts here in one process, so that what they fork from is imported once.

python tests/soak/together.py FOLDER '{"kills": [3], "rank_poison": [4]}'
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any


def main(folder: Path, plan: dict[str, list[Any]]) -> dict[str, Any]:
    """Script → what its `main` found."""
    return {name: importlib.import_module(name).main(folder / name, *words) for name, words in plan.items()}


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    print(json.dumps(main(Path(sys.argv[1]), json.loads(sys.argv[2]))))
