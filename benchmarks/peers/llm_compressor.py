"""One compression by llm-compressor, timed: runs inside its own environment, never imports lcc.

`python llm_compressor.py JOB.json`; the job: model, ids (JSON file of token rows), out, method,
mode (sequential or dense), threads. Facts as JSON on the last line of stdout.
"""

from __future__ import annotations

import functools
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

PIPELINES = {"sequential": "sequential", "dense": "basic", "data_free": "datafree"}
SOLVERS = (
    ("llmcompressor.modifiers.gptq.base", "quantize_weight"),
    ("llmcompressor.modifiers.pruning.sparsegpt.base", "sparsify_weight"),
    ("llmcompressor.modifiers.pruning.wanda.base", "sparsify_weight"),
)
spent = {"solver": 0.0, "solver_cpu": 0.0}


def clock_solvers() -> None:
    import importlib

    for module, name in SOLVERS:
        try:
            owner = importlib.import_module(module)
        except ImportError:
            continue
        setattr(owner, name, _clocked(getattr(owner, name)))


def _clocked(work: Any) -> Any:
    @functools.wraps(work)
    def clocked(*args: Any, **kwargs: Any) -> Any:
        started, begun = time.perf_counter(), time.process_time()
        try:
            return work(*args, **kwargs)
        finally:
            spent["solver"] += time.perf_counter() - started
            spent["solver_cpu"] += time.process_time() - begun

    return clocked


def modifier(method: dict[str, Any]) -> Any:
    """The recipe of one of lcc's plans in llm-compressor's words."""
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.pruning import SparseGPTModifier, WandaPruningModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier

    name, ignore = method["name"], method.get("ignore", ["re:.*lm_head"])
    if name in ("gptq", "nearest"):
        group = method.get("group_size")
        weights = {
            "num_bits": method["bits"],
            "type": "int",
            "symmetric": True,
            "strategy": "group" if group else "channel",
            "group_size": group,
            "observer": method.get("observer", "memoryless_minmax"),
        }
        groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
        kind = GPTQModifier if name == "gptq" else QuantizationModifier
        return kind(config_groups=groups, ignore=ignore)
    kinds = {"sparsegpt": SparseGPTModifier, "wanda": WandaPruningModifier}
    mask = method.get("pattern", "0:0")
    return kinds[name](sparsity=method["sparsity"], mask_structure=mask, targets=["Linear"], ignore=ignore)


def dataset(path: str) -> Any:
    from datasets import Dataset

    rows = json.loads(Path(path).read_text(encoding="utf-8"))
    return Dataset.from_dict({"input_ids": rows, "attention_mask": [[1] * len(r) for r in rows]})


def run(job: dict[str, Any]) -> dict[str, Any]:
    import importlib

    import transformers
    from llmcompressor import oneshot

    config = json.loads((Path(job["model"]) / "config.json").read_text(encoding="utf-8"))
    family = config["model_type"]
    importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    clock_solvers()
    rows = dataset(job["ids"])
    out = Path(job["out"])
    shutil.rmtree(out, ignore_errors=True)
    kind = getattr(transformers, job.get("auto_class", "AutoModelForCausalLM"))
    started, worked = time.perf_counter(), time.process_time()
    model = kind.from_pretrained(job["model"], dtype="float32")
    options: dict[str, Any] = {}
    if job["method"]["name"] != "nearest":
        options = {
            "dataset": rows,
            "num_calibration_samples": len(rows),
            "max_seq_length": 4096,
            "shuffle_calibration_samples": False,
        }
    oneshot(model=model, recipe=modifier(job["method"]), pipeline=PIPELINES[job["mode"]], **options)
    model.save_pretrained(out / "model", save_compressed=True)
    seconds, cpu = time.perf_counter() - started, time.process_time() - worked
    return {
        "seconds": seconds,
        "cpu_seconds": cpu,
        "solver_seconds": spent["solver"],
        "solver_cpu_seconds": spent["solver_cpu"],
    }


def main() -> None:
    import torch

    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(job["threads"])
    print(json.dumps(run(job)))


if __name__ == "__main__":
    main()
