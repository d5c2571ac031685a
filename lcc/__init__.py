"""lcc: fine-tune and compress language models from one YAML recipe."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lcc.pipeline.runner import RunRecord

__version__ = "0.1.0"
__all__ = ["__version__", "run"]


def run(*words: str) -> RunRecord:
    """What `lcc run WORDS` does: `lcc.run("+recipe=tiny", "seed=1")`.

    Returns the run: its folder, facts and artifacts. Raises lcc.core.errors.LccError.
    """
    from lcc.pipeline.runner import run_words

    return run_words(list(words), verb="run")
