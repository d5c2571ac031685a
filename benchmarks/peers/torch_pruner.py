"""A share of the FFN channels cut by torch-pruning's own magnitude importance, nothing repaired.

`python torch_pruner.py JOB.json`; the job: model, out, ratio, threads. Never imports lcc.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any


def prune(model: Any, ratio: float) -> None:
    """As its own example for language models does, on the FFN alone."""
    import torch
    import torch_pruning

    linears = {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    is_ffn = [m for n, m in linears.items() if n.endswith(("gate_proj", "intermediate.dense"))]
    kept = [m for n, m in linears.items() if "mlp" not in n and "intermediate" not in n]
    pruner = torch_pruning.pruner.BasePruner(
        model,
        example_inputs=torch.ones(1, 8, dtype=torch.long),
        global_pruning=False,
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=0.0,
        pruning_ratio_dict={m: ratio for m in is_ffn},
        ignored_layers=kept,
        output_transform=lambda out: out[0],
    )
    pruner.step()
    model.config.intermediate_size = is_ffn[0].out_features


def main() -> None:
    import torch
    import transformers

    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(job["threads"])
    out = Path(job["out"])
    shutil.rmtree(out, ignore_errors=True)
    started = time.perf_counter()
    kind = getattr(transformers, job.get("auto_class", "AutoModelForCausalLM"))
    model = kind.from_pretrained(job["model"], dtype="float32")
    prune(model, job["ratio"])
    model.save_pretrained(out / "model")
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        if (Path(job["model"]) / name).is_file():
            shutil.copy(Path(job["model"]) / name, out / "model" / name)
    print(json.dumps({"seconds": time.perf_counter() - started}))


if __name__ == "__main__":
    main()
