"""How fast fine-tuning is beside TRL and transformers, at equal losses.

    python benchmarks/finetune.py --text wikitext2.test.txt

First the losses: on one batch, three steps, every system must say the same. Then useful tokens (no
padding) per processor second of LoRA and full fine-tuning of SmolLM2 and of a random T5, on rows of
skewed lengths, all systems in turns; beside them the time that the products alone would take.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import lengths
import material
import running
from products import seconds_of
from results import write_section

CAUSAL = ["lcc", "lcc_compiled", "trl_packed", "trl_grouped", "trainer_grouped", "trainer"]
CASES = {  # name → method, head, systems; the first is ours
    "lora": ("lora", "causal", CAUSAL),
    "full": ("full", "causal", CAUSAL),
    "pairs": ("full", "seq2seq", ["lcc", "trainer_grouped", "trainer"]),
}
OURS = {"causal": {"packing": True}, "seq2seq": {}}
COMPILED = {"compile": True}
TITLES = ["case", "system", "useful tokens / CPU s", "lcc faster by", "wall s", "peak GB",
          "share of the GEMM limit"]  # fmt: skip
CLOSE = 2e-3  # of a loss: the systems' float32 sums differ in order


def job_of(case: str, rows: Path, options: argparse.Namespace, model: Path) -> dict[str, Any]:
    method, head, _ = CASES[case]
    lines = json.loads(rows.read_text(encoding="utf-8"))
    own = [len(r["input_ids"]) + (len(r["labels"]) if head == "seq2seq" else 0) for r in lines]
    return {
        "model": str(model),
        "rows": str(rows),
        "method": method,
        "head": head,
        "seed": 0,
        "batch_tokens": options.batch_tokens,
        "epochs": 1,
        "lr": 1e-4,
        "batch_rows": max(1, round(options.batch_tokens / statistics.mean(own))),
        "threads": options.threads,
        "options": OURS[head],
    }


def run(system: str, job: dict[str, Any], options: argparse.Namespace, work: Path) -> Any:
    if system.startswith("lcc"):
        own = job["options"] | (COMPILED if system == "lcc_compiled" else {})
        return running.run(running.sys.executable, "our_training.py", job | {"options": own}, work)
    python = running.environment("trl", Path(options.environments))
    return running.run(python, "peers/trainers.py", {**job, "system": system}, work)


def check_losses(case: str, options: argparse.Namespace, model: Path, work: Path) -> list[Any]:
    """Three steps on one batch of all rows; raises where a system's losses are others."""
    rows = rows_of(case, options, model, work, tokens=options.batch_tokens // 2)
    job = job_of(case, rows, options, model) | {"epochs": 3, "batch_rows": 10_000}
    found = {s: run(s, job, options, work)["losses"] for s in CASES[case][2]}
    ours = found["lcc"]
    for system, losses in found.items():
        apart = max(abs(a - b) for a, b in zip(ours, losses, strict=True))
        assert apart < CLOSE, f"{case}: {system} has losses {losses}, lcc {ours}"
    print(case, "losses", {s: [round(x, 4) for x in v] for s, v in found.items()}, flush=True)
    return [[case, s, *(f"{x:.4f}" for x in v)] for s, v in found.items()]


def rows_of(case: str, options: argparse.Namespace, model: Path, work: Path, *, tokens: int) -> Path:
    if CASES[case][1] == "seq2seq":
        rows = lengths.pair_rows(tokens=tokens, seed=0)
    else:
        import transformers

        tokenizer = transformers.AutoTokenizer.from_pretrained(model)
        text = material.text_of(options.text).path.read_text(encoding="utf-8")
        rows = lengths.causal_rows(tokenizer, text, tokens=tokens, seed=0)
    return lengths.write(rows, work / f"rows-{case}-{tokens}.json")


def measure(case: str, options: argparse.Namespace, model: Path, work: Path) -> list[list[str]]:
    """All systems in turns, the best of the rounds of each."""
    rows = rows_of(case, options, model, work, tokens=options.tokens)
    job = job_of(case, rows, options, model)
    systems = CASES[case][2]
    chosen = [s for s in systems if not options.systems or s in options.systems.split(",")]
    found: dict[str, list[Any]] = {system: [] for system in chosen}
    limits = []
    for _ in range(options.rounds):
        for system in chosen:
            found[system].append(run(system, job, options, work))
            print(case, system, found[system][-1] | {"losses": 0}, flush=True)
        limits.append(running.machine(options.threads, work))
    flops = max(limit["flops"] for limit in limits)
    limit = seconds_of(model, rows, CASES[case][0], flops=flops)
    print(case, f"{flops / 1e9:.0f} GFLOP/s, {max(x['bandwidth'] for x in limits) / 1e9:.1f} GB/s")
    best = {s: min(r, key=lambda facts: facts["cpu_seconds"] / facts["tokens"]) for s, r in found.items()}
    speeds = {s: facts["tokens"] / facts["cpu_seconds"] for s, facts in best.items()}
    return [
        [
            case,
            s,
            f"{speeds[s]:.0f}",
            f"{speeds['lcc'] / speeds[s]:.2f}×",
            f"{best[s]['seconds']:.1f}",
            f"{best[s]['peak_bytes'] / 1e9:.1f}",
            f"{limit * speeds[s]:.2f}",
        ]
        for s in chosen
    ]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2_135m", help="a folder or a model card")
    parser.add_argument("--text", help="WikiText-2 test as one file")
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--systems", default="", help="only these, separated by commas")
    parser.add_argument("--tokens", type=int, default=12288)
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only-losses", action="store_true")
    parser.add_argument("--without-losses", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("docs/results.md"))
    parser.add_argument("--work", type=Path, default=material.default_work() / "finetune")
    parser.add_argument("--environments", default=str(material.default_work() / "environments"))
    return parser.parse_args()


def main() -> None:
    options = arguments()
    losses, table = [], []
    for case in options.cases.split(","):
        pairs = CASES[case][1] == "seq2seq"
        folder = options.work / "pairs"
        model = lengths.pair_model(folder) if pairs else material.model_folder(options.model, options.work)
        if not options.without_losses:
            losses += check_losses(case, options, model, options.work)
        if not options.only_losses:
            table += measure(case, options, model, options.work)
    told = (
        "## Fine-tuning beside TRL 1.16.0 and transformers 5.23.0\n\n"
        f"    python benchmarks/finetune.py --text FILE --tokens {options.tokens}\n\n"
        f"{options.threads} thread(s), float32, {options.batch_tokens} tokens a step, best of"
        f" {options.rounds} rounds in turns, the first step left out. Losses of three steps on one"
        " batch:\n\n"
        + running.table(["case", "system", "step 1", "step 2", "step 3"], losses)
        + "\n\n"
        + running.table(TITLES, table)
    )
    print(told)
    write_section(options.out, "finetune", told)


if __name__ == "__main__":
    main()
