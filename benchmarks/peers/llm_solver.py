"""llm-compressor's solvers on given weights and Grams: runs in its own environment, without lcc.

`python llm_solver.py JOB.json`; the job: layers (safetensors), method, threads, and out (a file for
the solved weights) where they are wanted.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any


def gptq(weight: Any, gram: Any, method: dict[str, Any]) -> Any:
    """Scales from least to largest, as its default observer takes them; static order of columns."""
    import torch
    from compressed_tensors.quantization import QuantizationArgs
    from llmcompressor.modifiers.gptq.gptq_quantize import quantize_weight

    group = method["group_size"]
    args = QuantizationArgs(
        num_bits=method["bits"],
        type="int",
        symmetric=True,
        strategy="group",
        group_size=group,
        actorder="static",
    )
    groups = weight.view(len(weight), -1, group)
    span = groups.amax(-1).abs().maximum(groups.amin(-1).abs())
    scale = (2 * span / (2 ** method["bits"] - 1)).to(torch.bfloat16).float()
    zero = torch.zeros_like(scale)
    found, _, _ = quantize_weight(
        weight[None].clone(), gram[None].clone(), scale[None], zero[None], None, args
    )
    return found[0]


def pruned(weight: Any, gram: Any, method: dict[str, Any]) -> Any:
    import torch

    layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight.data = weight
    keep, _, of = method.get("pattern", "0:0").partition(":")
    if method["name"] == "wanda":
        from llmcompressor.modifiers.pruning.wanda.wanda_sparsify import sparsify_weight

        return sparsify_weight(
            layer, {layer: gram.diagonal().clone()}, method["sparsity"], int(keep), int(of)
        )
    from llmcompressor.modifiers.pruning.sparsegpt.sgpt_sparsify import sparsify_weight as solve

    with torch.no_grad():
        _, found = solve(
            layer, {layer: gram.clone()}, method["sparsity"], int(keep), int(of), 128, 0.01, False
        )
    return found


def main() -> None:
    import torch
    from safetensors.torch import load_file, save_file

    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(job["threads"])
    tensors = load_file(job["layers"])
    work = gptq if job["method"]["name"] == "gptq" else pruned
    square = torch.randn(128, 256)
    work(torch.randn(128, 128), square @ square.T, job["method"])  # imports, outside the clock
    seconds, lost, whole, solved = 0.0, 0.0, 0.0, dict[str, Any]()
    for name, weight in tensors.items():
        number, kind, _ = [*name.split(".", 2), ""][:3]
        if kind != "weight":
            continue
        gram = tensors[f"{number}.gram"]
        before = weight.clone()
        begun = time.process_time()
        with torch.no_grad():
            found = work(weight, gram, job["method"])
        seconds += time.process_time() - begun
        solved[name] = found.contiguous()
        change = found.float() - before
        lost += float(((change @ gram) * change).sum())
        whole += float(((before @ gram) * before).sum())
    if "out" in job:
        save_file(solved, job["out"])
    print(json.dumps({"cpu_seconds": seconds, "layer_error": lost / whole}))


if __name__ == "__main__":
    main()
