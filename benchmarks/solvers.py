"""Time the solvers alone: the same weights and Grams, lcc and llm-compressor in turns.

    python benchmarks/solvers.py --text wikitext2.test.txt --blocks 3

Takes the first few blocks of the model and what calibration saw at their inputs; prints processor
seconds and the relative error of the layers' outputs, tr(ΔW·H·ΔWᵀ) / tr(W·H·Wᵀ), of both.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import material
import ours
import running
from compress import METHODS
from results import write_section

TITLES = ["method", "CPU s lcc", "peer", "ratio", "layer error lcc", "peer"]


def layers_of(options: argparse.Namespace, work: Path) -> Path:
    """A file with the weights of the first blocks and the Gram of each input."""
    from safetensors.torch import save_file

    from lcc.calibration.calibrate import stored_groups
    from lcc.calibration.statistics import StoredStats
    from lcc.models.blocks import block_linears, blocks
    from lcc.models.bundle import open_bundle

    path = work / f"layers-{options.blocks}-{options.tokens}.safetensors"
    if path.is_file():
        return path
    text = material.text_of(options.text)
    model = material.model_folder(options.model, work)
    data = material.write_data(text, work / "data")
    job = {"model": str(model), "data": str(data), "seed": 0}
    bundle = open_bundle(model)
    bundle.load()
    [(_, stage)] = ours.stages(METHODS["gptq"][0], tokens=options.tokens, mode="dense")
    stats = StoredStats(ours.statistics(bundle, job, stage, work / "stats-0") / "stats")
    chosen = list(blocks(bundle.module))[: options.blocks]
    layers = {
        n: m
        for n, m in block_linears(bundle.module).items()
        if any(n.startswith(f"{block}.") for block in chosen)
    }
    tensors = {}
    for number, group in enumerate(stored_groups(stats, layers)):
        assert group.stats is not None and group.stats.gram is not None
        tensors[f"{number}.gram"] = group.stats.gram
        tensors[f"{number}.diagonal"] = group.stats.diagonal
        tensors |= {f"{number}.weight.{n}": m.weight.detach().contiguous() for n, m in group.layers.items()}
    save_file(tensors, path, {"tokens": str(stats[next(iter(layers))].num_tokens)})
    return path


def solve(job: dict[str, Any]) -> dict[str, Any]:
    """Our side: layers that read one input are stacked and solved together."""
    import torch
    from safetensors.torch import load_file, save_file

    from lcc.calibration.statistics import LayerStats
    from lcc.compression.quantization_grid import IntGrid
    from lcc.compression.sparsity import Pattern

    tensors = load_file(job["layers"])
    [(_, stage)] = ours.stages(METHODS[job["method"]][0], tokens=1, mode="dense")
    ours.warm(stage)
    seconds, lost, whole, solved = 0.0, 0.0, 0.0, dict[str, Any]()
    for number in dict.fromkeys(name.partition(".")[0] for name in tensors):
        named = {n: t for n, t in tensors.items() if n.startswith(f"{number}.weight.")}
        weights = list(named.values())
        gram, diagonal = tensors[f"{number}.gram"], tensors[f"{number}.diagonal"]
        empty = torch.zeros_like(diagonal)
        stats = LayerStats(1, empty, empty, empty, diagonal, gram=gram)
        begun = time.process_time()
        weight = torch.cat(weights)
        if hasattr(stage, "quantizer"):
            new = stage.quantizer.quantize(weight, stats, IntGrid(4, 64, "bfloat16")).dense().float()
        elif hasattr(stage.criterion, "prune"):
            patterns = [Pattern(stage.pattern, stage.sparsity)] * len(weights)
            new = stage.criterion.prune(weight, stats, patterns, [len(w) for w in weights])
        else:
            pattern = Pattern(stage.pattern, stage.sparsity)
            new = weight * pattern.mask(stage.criterion.score(weight, stats))
        seconds += time.process_time() - begun
        change = new - weight
        lost += float(((change @ gram) * change).sum())
        whole += float(((weight @ gram) * weight).sum())
        solved |= dict(zip(named, new.split([len(w) for w in weights]), strict=True))
    if "out" in job:
        save_file({n: t.contiguous() for n, t in solved.items()}, job["out"])
    return {"cpu_seconds": seconds, "layer_error": lost / whole}


def compare(options: argparse.Namespace, method: str, layers: Path, work: Path) -> list[str]:
    """One method: both in turns, the best time of each."""
    python = running.environment("llm_compressor", Path(options.environments))
    job = {"layers": str(layers), "threads": options.threads, "method": method}
    peer = {**job, "method": METHODS[method][1]}
    mine, theirs = [], []
    for _ in range(options.rounds):
        mine.append(running.run(sys.executable, "solvers.py", job, work))
        theirs.append(running.run(python, "peers/llm_solver.py", peer, work))
    ours_, peers = (min(r["cpu_seconds"] for r in found) for found in (mine, theirs))
    errors = (f"{found[-1]['layer_error']:.4%}" for found in (mine, theirs))
    return [method, f"{ours_:.2f}", f"{peers:.2f}", f"{peers / max(ours_, 1e-9):.1f}×", *errors]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2_135m", help="a folder or a model card")
    parser.add_argument("--text", help="WikiText-2 test as one file")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--blocks", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("docs/results.md"))
    parser.add_argument("--work", type=Path, default=material.default_work())
    parser.add_argument("--environments", default=str(material.default_work() / "environments"))
    return parser.parse_args()


def main() -> None:
    import torch

    if len(sys.argv) == 2 and sys.argv[1].endswith(".json"):  # a job of the script itself
        job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
        torch.set_num_threads(job["threads"])
        print(json.dumps(solve(job)))
        return
    options = arguments()
    work = options.work / f"quality-{Path(options.model).name}"
    layers = layers_of(options, work)
    rows = []
    for method in options.methods.split(","):
        rows.append(compare(options, method, layers, work))
        print(*rows[-1], flush=True)
    told = (
        f"## Solvers alone beside llm-compressor 0.14.0.1 ({options.model})\n\n"
        f"    python benchmarks/solvers.py --text wikitext2.test.txt --blocks {options.blocks}\n\n"
        f"The same weights and Grams ({options.tokens} tokens) of the first {options.blocks}"
        f" blocks, {options.threads} thread(s), best of {options.rounds} rounds in turns,"
        " processor time. Layer error: the share of the outputs' energy that is lost.\n\n"
        + running.table(TITLES, rows)
    )
    write_section(options.out, "solvers", told)


if __name__ == "__main__":
    main()
