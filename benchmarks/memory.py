"""Peak memory of compressing a model that is streamed from disk, against half its bfloat16 bytes.

    python benchmarks/memory.py                       # all methods, a random 1.1B Llama, 16k tokens
    python benchmarks/memory.py --methods sparsegpt --tokens 131072

Builds the random model itself in a temporary folder (about 2.2 GB, and as much again while it
runs). Every method runs in a process of its own, from reading the text to the reload gate; counted
is its peak of resident memory less what it had after its imports.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "wanda": ("sparsify", {"criterion": "wanda"}),
    "sparsegpt": ("sparsify", {"criterion": "sparsegpt"}),
    "gptq": ("quantize", {"quantizer": "gptq", "bits": 4, "group_size": 64}),
}
# TinyLlama's shape: 22 layers of 2048, 1.1 billion parameters.
SHAPE = {"vocab_size": 32000, "hidden_size": 2048, "intermediate_size": 5632,
         "num_hidden_layers": 22, "num_attention_heads": 32, "num_key_value_heads": 4,
         "max_position_embeddings": 2048, "bos_token_id": 1, "eos_token_id": 2,
         "pad_token_id": 0}  # fmt: skip
WORDS = "the file system could not open a new window because memory is full of many other pieces"
SHARE_ALLOWED = 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", choices=sorted(METHODS), default=list(METHODS))
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--folder", type=Path, help="keep the model here and use it again")
    parser.add_argument("--one", choices=sorted(METHODS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options.folder, options.tokens)))
        return
    with tempfile.TemporaryDirectory(prefix="lcc-memory-") as scratch:
        folder = options.folder or Path(scratch)
        if not (folder / "parent" / "model" / "config.json").is_file():
            build(folder / "parent")
        missed = [m for m in options.methods if not report(m, folder, options.tokens)]
    sys.exit(f"over the bound: {', '.join(missed)}" if missed else 0)


def report(method: str, folder: Path, tokens: int) -> bool:
    """Run one method in a fresh process and print its line; whether it kept to the bound."""
    command = [sys.executable, __file__, "--one", method, "--folder", folder, "--tokens", tokens]
    done = subprocess.run(list(map(str, command)), check=True, stdout=subprocess.PIPE, text=True)
    facts = json.loads(done.stdout.splitlines()[-1])
    bound = SHARE_ALLOWED * model_bytes(folder / "parent" / "model")
    print(
        f"{method:10} {tokens:7} tokens  peak {facts['peak'] / 1e6:6.0f} MB"
        f"  allowed {bound / 1e6:6.0f} MB  ({facts['peak'] / bound:.2f} of it)"
        f"  {facts['seconds']:5.0f} s  gate {facts['gate']:.1g}",
        flush=True,
    )
    return bool(facts["peak"] <= bound)


def model_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def measure(method: str, folder: Path, tokens: int) -> dict[str, Any]:
    """What the step takes beyond its imports, run as the runner's worker runs it."""
    import transformers.models.llama.modeling_llama  # the imports are not what is measured

    from lcc.config.cards import STAGES, decode, find_card
    from lcc.distributed.dist import SINGLE
    from lcc.pipeline.worker import Job, work_step
    from lcc.tasks.task import Task

    imported(transformers)
    kind, options = METHODS[method]
    calibration = {"mode": "sequential", "max_tokens": tokens, "samples": tokens, "max_length": 512}
    stage = decode(find_card(STAGES, kind), {**options, "calibration": calibration}, kind)
    task = decode(
        Task, {"name": "generation", "head": "causal", "fields": ["text"], "answer": "{text}"}, "task"
    )
    parent = folder / "parent"
    before, started = memory("VmRSS"), time.monotonic()
    with tempfile.TemporaryDirectory(dir=folder) as work:
        job = Job(
            kind,
            stage,
            Path(work),
            {"model": parent, "data": parent},
            task=task,
            seed=0,
            device="cpu",
            dtype="float32",
            threads=None,
            tracker=None,
            run="memory",
            checkpoint=kind,
        )
        facts = work_step(SINGLE, job)
    gate = facts["measures"]["reload_max_logit_difference"]["value"]
    seconds = time.monotonic() - started
    return {"peak": memory("VmHWM") - before, "seconds": seconds, "gate": gate}


def imported(*_modules: Any) -> None:
    """Bring in what is only imported at first use."""
    import accelerate
    import compressed_tensors
    import numba
    import safetensors.torch
    import tokenizers

    import lcc.kernels.obs_columns

    assert all((accelerate, compressed_tensors, numba, safetensors, tokenizers, lcc))


def memory(field: str) -> int:
    status = Path(f"/proc/{os.getpid()}/status").read_text(encoding="utf-8")
    return int(next(row for row in status.splitlines() if row.startswith(field)).split()[1]) * 1024


def build(parent: Path) -> None:
    """A random Llama in bfloat16, its tokenizer, and text for it, tensor by tensor."""
    import torch
    import transformers
    from accelerate import init_empty_weights

    from lcc.models.safetensors_io import TensorEntry, write_model

    config = transformers.LlamaConfig(**SHAPE)
    with init_empty_weights():
        model = transformers.LlamaForCausalLM(config)
    draws = torch.Generator().manual_seed(0)

    def drawn(shape: tuple[int, ...]) -> torch.Tensor:
        if len(shape) == 1:
            return torch.ones(shape, dtype=torch.bfloat16)
        return (torch.randn(shape, generator=draws) * 0.02).bfloat16()

    entries = [
        TensorEntry(name, "bfloat16", tuple(p.shape), lambda p=p: drawn(tuple(p.shape)))
        for name, p in model.named_parameters()
    ]
    folder = parent / "model"
    folder.mkdir(parents=True)
    write_model(entries, folder)
    config.architectures, config.dtype = ["LlamaForCausalLM"], "bfloat16"
    config.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    write_text(parent / "data")


def tokenizer() -> Any:
    import tokenizers
    import transformers

    words = {word: i for i, word in enumerate(["<pad>", "<s>", "</s>", *sorted(WORDS.split())])}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<pad>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


def write_text(folder: Path, num_rows: int = 400) -> None:
    folder.mkdir(parents=True)
    draw = random.Random(0)
    rows = [
        {"id": str(i), "doc": str(i), "text": " ".join(draw.choices(WORDS.split(), k=512))}
        for i in range(num_rows)
    ]
    for split in ("train", "validation", "test"):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(text, encoding="utf-8")
    counts = {"read": num_rows, "removed": {}, "left_out": {}, "rows": {}, "documents": {}}
    (folder / "counts.json").write_text(json.dumps(counts), encoding="utf-8")


if __name__ == "__main__":
    main()
