"""What does every fine-tuning method keep, train, need and cost, on one task?

    lcc fetch +recipe=sentiment_en
    python benchmarks/tuning.py                    all methods, three seeds: reckoned 16 CPU-minutes
    python benchmarks/tuning.py --only lora,full --seeds 0 --rows 100

Every method runs with the rank, targets and rate of its own card, on the same rows in the same
order, one process each; accuracy is of the reloaded checkpoint on the test split.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import material
import running
from results import write_section

from lcc.config.yaml_files import choices

PRELOADED = ["torch", "transformers.models.auto.modeling_auto", "peft", "bitsandbytes",
             "lcc.stages.finetune", "lcc.stages.merge", "lcc.stages.eval",
             "lcc.pipeline.runner"]  # fmt: skip
TITLES = ("method", "accuracy", "trained parameters", "of all", "peak memory", "tokens/s", "rate")
NOTE = """MiniLM L6 on movie sentiment: {rows} training rows of about 27 tokens, {epochs} epochs in
batches of {batch} tokens, {samples} test rows, {seeds} seeds (mean ± standard deviation), {threads}
thread. Each method with its card's own rate. The head of {head} parameters is trained whole by all
of them and counted. Peak memory is the training process's, libraries included; tokens per second
are of training, by processor time. A model that always says the most frequent class has
{majority:.1f} %."""
HEAD = 770  # 384 weights and a bias for each of two classes


def main() -> None:
    options = _options()
    work = (options.work or material.default_work()) / "peft"
    methods = options.only.split(",") if options.only else choices("method")
    seeds = [int(seed) for seed in options.seeds.split(",")]
    measured = {name: [_measured(name, seed, options, work) for seed in seeds] for name in methods}
    text = running.table(TITLES, [_row(name, found) for name, found in measured.items()])
    print(text)
    if options.write:
        note = NOTE.format(
            rows=options.rows,
            epochs=options.epochs,
            batch=options.batch_tokens,
            head=HEAD,
            samples=options.samples,
            seeds=len(seeds),
            threads=options.threads,
            majority=100 * measured[methods[0]][0]["majority"],
        )
        title = "## Fine-tuning methods (minilm_l6, sentiment)\n\n    python benchmarks/tuning.py"
        write_section(options.write, "peft", f"{title}\n\n{note}\n\n{text}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="", help="method cards, with commas between")
    parser.add_argument("--seeds", default="0,1,2", help="with commas between")
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-tokens", type=int, default=256)
    parser.add_argument("--samples", type=int, default=300)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--lr", type=float, help="one rate for all, in place of the cards' own")
    parser.add_argument("--work", type=Path, help="where runs are kept")
    parser.add_argument("--write", type=Path, help="the results page to write the table into")
    return parser.parse_args()


def _words(method: str, seed: int, options: argparse.Namespace) -> list[str]:
    words = [
        "+recipe=sentiment_en",
        "~plan",
        "~stages.compress",
        "~stages.bench",
        f"seed={seed}",
        f"method={method}",
        f"threads={options.threads}",
        "stages.finetune.lr=null",
        f"stages.finetune.samples={options.rows}",
        f"stages.finetune.epochs={options.epochs}",
        f"stages.finetune.batch_tokens={options.batch_tokens}",
        "stages.finetune.eval_samples=50",
        f"stages.eval.samples={options.samples}",
    ]
    if method == "houlsby":
        words.append("method.allow_lcc_loader=true")
    if options.lr is not None:
        words[words.index("stages.finetune.lr=null")] = f"stages.finetune.lr={options.lr}"
    return words


def _measured(method: str, seed: int, options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """One run in a process of its own, so that its peak of memory is its own too."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    answer, theirs = context.Pipe()
    job = context.Process(target=_run, args=(theirs, _words(method, seed, options), str(work)))
    job.start()
    theirs.close()
    try:
        found: dict[str, Any] = json.loads(answer.recv())
    except EOFError:
        sys.exit(f"{method}, seed {seed}: the run ended without a result; see {work}.")
    job.join()
    print(method, seed, json.dumps(found), file=sys.stderr, flush=True)
    return found


def _run(pipe: Any, words: list[str], work: str) -> None:
    from lcc.pipeline.runner import run_words

    os.environ["HF_HUB_OFFLINE"] = "1"
    # Neighbours take wall time, not processor time; on one quiet thread both are the same.
    time.monotonic = time.process_time
    with material.inside(Path(work)):
        made = run_words(words, verb="eval", quiet=True).artifacts
        trained = made["finetune"].report
        base = made["base"].report["measures"]["parameters"]["value"]
        measures = {key: m["value"] for key, m in trained["measures"].items()}
        scores, before = (made[f"eval.{n}"].report["measures"] for n in ("finetune", "base"))
    pipe.send(
        json.dumps(
            {
                "accuracy": scores["accuracy"]["value"],
                "trained": measures["trainable_parameters"],
                "base": base,
                "memory": trained["peak_memory_bytes"],
                "lr": measures["lr"],
                "speed": measures["tokens_per_second"],
                "loss": measures["validation_loss_after"],
                "majority": before["accuracy"]["value"],
            }
        )
    )


def _row(name: str, found: list[dict[str, Any]]) -> list[str]:
    scores = [100 * one["accuracy"] for one in found]
    spread = f" ± {statistics.stdev(scores):.1f}" if len(scores) > 1 else ""
    first = found[0]
    share = 100 * first["trained"] / first["base"]
    memory = statistics.median(one["memory"] for one in found) / 1e6
    speed = statistics.median(one["speed"] for one in found)
    return [
        f"`{name}`",
        f"{statistics.mean(scores):.1f} %{spread}",
        f"{first['trained']:,}",
        f"{share:.2f} %",
        f"{memory:.0f} MB",
        f"{speed:.0f}",
        f"{first['lr']:g}",
    ]


if __name__ == "__main__":
    main()
