"""Probe of a GGUF file in a process of its own: llama.cpp ends the process where it cannot go on.

    python -m lcc.inference.backends.llama_cpp_probe FILE < texts, one JSON list

The package is imported without torch, so that this takes a second.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

NUM_TOKENS = 8


def rehearse(file: Path, texts: Sequence[str]) -> str | None:
    """Why llama.cpp does not run a file, as a sentence; None where it splits and answers."""
    done = subprocess.run(
        [sys.executable, "-m", __name__, str(file)],
        input=json.dumps(list(texts)),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        return None
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    said = next(
        (line for line in lines if "GGML_ASSERT" in line or "what():" in line),
        lines[-1] if lines else "nothing",
    )
    ended = "it stopped"
    if done.returncode < 0:
        ended = f"it ended with {signal.Signals(-done.returncode).name}"
    return f"llama.cpp does not run it: {ended} and said {said.strip()!r}."


def main(file: str) -> None:
    """Load, split, decode."""
    import cyllama.llama.llama_cpp as bindings

    model = bindings.LlamaModel(file, bindings.LlamaModelParams(), verbose=False)
    vocabulary = model.get_vocab()
    for text in json.load(sys.stdin):
        vocabulary.tokenize(text, True, True)
    options = bindings.LlamaContextParams()
    options.n_ctx = options.n_batch = 64
    options.n_threads = options.n_threads_batch = 1
    context = bindings.LlamaContext(model, options, verbose=False)
    batch = bindings.LlamaBatch(n_tokens=NUM_TOKENS, embd=0, n_seq_max=1)
    for position in range(NUM_TOKENS):
        batch.add(position, position, [0], True)
    context.decode(batch)


if __name__ == "__main__":
    main(sys.argv[1])
