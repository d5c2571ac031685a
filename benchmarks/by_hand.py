"""Engines without lcc: the loops that a person writes by hand with each library's own calls.

Each answers `Asked`: seconds of `rows` greedy answers of at most `new` tokens to one prompt, each
gap between two tokens (none where an engine tells only whole answers), and how many tokens came.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

Asked = Callable[[Sequence[int], int, int], tuple[float, list[float], int]]


def transformers_loop(folder: Path, threads: int, slots: int, context: int) -> Asked:
    """transformers' own generate, dense in float32."""
    import torch
    import transformers

    from lcc.evaluation.generate import token_times
    from lcc.models.bundle import open_bundle

    transformers.utils.logging.set_verbosity_error()
    torch.set_num_threads(threads)
    module = open_bundle(folder).load(dtype="float32")

    def asked(prompt: Sequence[int], new: int, rows: int) -> tuple[float, list[float], int]:
        ids = torch.tensor([list(prompt)] * rows)
        times = token_times(module, ids, torch.ones_like(ids), num_new=new)
        return times[-1], [b - a for a, b in itertools.pairwise(times)], rows * new

    return asked


def llamacpp_loop(folder: Path, threads: int, slots: int, context: int) -> Asked:
    """llama.cpp's decode and its own greedy sampler, logits never leaving it."""
    import cyllama.llama.llama_cpp as bindings

    bindings.disable_logging()
    model = bindings.LlamaModel(str(folder / "model.gguf"), bindings.LlamaModelParams(), verbose=False)
    options = bindings.LlamaContextParams()
    options.n_seq_max, options.n_ctx = slots, slots * context
    options.n_threads = options.n_threads_batch = threads
    options.no_perf = True
    running = bindings.LlamaContext(model, options, verbose=False)
    sampler = bindings.LlamaSampler(bindings.LlamaSamplerChainParams())
    sampler.add_greedy()
    batch = bindings.LlamaBatch(n_tokens=slots * context, embd=0, n_seq_max=1)

    def asked(prompt: Sequence[int], new: int, rows: int) -> tuple[float, list[float], int]:
        begun = time.perf_counter()
        lasts = []
        for row in range(rows):
            for position, token in enumerate(prompt):
                batch.add(token, position, [row], position == len(prompt) - 1)
            lasts.append(batch.n_tokens - 1)
        times = []
        for number in range(new):
            running.decode(batch)
            batch.clear()
            told = [sampler.sample(running, last) for last in lasts]
            times.append(time.perf_counter())
            lasts = list(range(rows))
            for row, token in enumerate(told):
                batch.add(token, len(prompt) + number, [row], True)
        batch.clear()
        for row in range(rows):
            running.memory_seq_rm(row, -1, -1)
        return times[-1] - begun, [b - a for a, b in itertools.pairwise(times)], rows * new

    return asked


def ctranslate2_loop(folder: Path, threads: int, slots: int, context: int) -> Asked:
    """CTranslate2's `generate_batch`, which tells whole answers."""
    import ctranslate2

    engine = ctranslate2.Generator(str(folder), device="cpu", inter_threads=1, intra_threads=threads)
    pieces = json.loads((folder / "vocabulary.json").read_text(encoding="utf-8"))

    def asked(prompt: Sequence[int], new: int, rows: int) -> tuple[float, list[float], int]:
        begun = time.perf_counter()
        found = engine.generate_batch(
            [[pieces[i] for i in prompt]] * rows,
            max_length=new,
            min_length=new,
            include_prompt_in_result=False,
        )
        took = time.perf_counter() - begun
        return took, [], sum(len(one.sequences_ids[0]) for one in found)

    return asked


LOOPS = {"transformers": transformers_loop, "llamacpp": llamacpp_loop, "ctranslate2": ctranslate2_loop}
