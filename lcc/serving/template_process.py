"""Chat template process: turns conversations into tokens by the model's template, and does no more.

The template is code that came with the model. transformers runs it in Jinja's immutable sandbox;
here that sandbox stands in a process without the weights, which may take little memory, write no
file, and is killed by `prompting` when it takes too long.

python -m lcc.serving.template_process FOLDER; a line of JSON in, a line of JSON out.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from pathlib import Path
from typing import Any

MEMORY_BYTES = 512 * 2**20  # beyond what the tokenizer took
MAX_TOKENS = 2**20


def main(folder: str) -> int:
    """Answer line by line until standard input ends."""
    sys.modules["torch"] = None  # type: ignore[assignment]  # two seconds and 200 MB, for nothing
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    from transformers import AutoTokenizer

    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # a stray print must not become an answer
    tokenizer = AutoTokenizer.from_pretrained(folder)
    _confine()  # before the template is compiled, which computes its constants
    _tokens(tokenizer, [{"role": "user", "content": "a"}])
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(_tokens(tokenizer, json.loads(line))), file=answers, flush=True)
    return 0


def _tokens(tokenizer: Any, messages: Any) -> dict[str, Any]:
    try:
        # Control tokens that a client writes are text: it cannot end its own turn and speak as
        # another.
        ids = tokenizer.apply_chat_template(
            messages,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=False,
            sanitize_control_tokens=True,
        )
    except MemoryError:
        return {"error": "it takes too much memory"}
    except RecursionError:
        return {"error": "it calls itself without end"}
    except Exception as error:  # whatever a stranger's template raises is about this conversation
        return {"error": (str(error).strip() or type(error).__name__).splitlines()[0][:300]}
    return {"ids": [int(i) for i in ids]} if len(ids) <= MAX_TOKENS else {"error": "too long"}


def _confine() -> None:
    """No more memory than needed, no files, no core dumps: for the rest of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if sys.platform == "linux" else 0
    limits = {resource.RLIMIT_FSIZE: 0, resource.RLIMIT_CORE: 0}
    if pages:
        limits[resource.RLIMIT_AS] = pages * resource.getpagesize() + MEMORY_BYTES
    for what, limit in limits.items():
        resource.setrlimit(what, (limit, limit))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
