"""What every method keeps of a model, beside other tools on the same weights and tokens.

    python benchmarks/quality.py --text wikitext2.test.txt
    python benchmarks/quality.py --text wikitext2.test.txt --only w4_gptq_g64,peer_gptq_g64
    python benchmarks/quality.py --model minilm_l6        accuracy of a classifier, without a text

Perplexity on the first half of the text, calibration on the second; KL divergence and flips (share
of positions whose likeliest token changes) against the model before compression. Rows that were
measured are kept in the work folder; the table goes into docs/results.md.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import material
import running
from results import write_section
from subjects import TRAINED_ON, Subject, subject

SEEDED = ("w4_gptq_g64", "sparse50_sparsegpt", "width25")  # measured with three seeds
HEAL = {"kind": "finetune", "method": {"name": "full"}, "epochs": 1, "batch_tokens": 1024,
        "max_length": 512, "lr": 3e-5}  # fmt: skip


def quantized(quantizer: Any, bits: int, group: Any, **more: Any) -> dict[str, Any]:
    return {"quantize": {"quantizer": quantizer, "bits": bits, "group_size": group, **more}}


def sparse(criterion: Any, pattern: str = "unstructured", **more: Any) -> dict[str, Any]:
    return {"sparsify": {"criterion": criterion, "pattern": pattern, **more}}


def narrow(criterion: str, **more: Any) -> dict[str, Any]:
    return {"width": {"criterion": criterion, "ratio": 0.25, "repair": "ridge", **more}}


# No group of 32: the weights were stored on such a grid, and rounding to it again loses nothing.
OURS: dict[str, dict[str, Any]] = {
    "w8_nearest": quantized("nearest", 8, 64),
    "w4_nearest_g64": quantized("nearest", 4, 64),
    "w4_scale_search_g64": quantized("scale_search", 4, 64),
    "w4_gptq_g64": quantized("gptq", 4, 64),
    "w4_awq_g64": quantized("awq", 4, 64),
    "w4_gptq_g64_asymmetric": quantized("gptq", 4, 64, symmetric=False),
    "w4_gptq_channel": quantized("gptq", 4, "channel"),
    "w3_gptq_g64": quantized("gptq", 3, 64),
    "w2_gptq_g64": quantized("gptq", 2, 64, accept_damage=True),
    "w4_mixed": quantized("scale_search", 4, 64, average_bits=4.5),
    "w8a8_smoothquant": quantized("smoothquant", 8, "channel"),
    "nf4": {"quantize": {"quantizer": "nf4", "bits": 4}},
    "int8_bnb": {"quantize": {"quantizer": "bnb_int8", "bits": 8}},
    "sparse50_magnitude": sparse("magnitude"),
    "sparse50_wanda": sparse("wanda"),
    "sparse50_ria": sparse("ria"),
    "sparse50_sparsegpt": sparse("sparsegpt"),
    "sparse50_wanda_owl": sparse("wanda", allocation="owl"),
    "sparse50_wanda_atp": sparse("wanda", allocation="atp"),
    "sparse24_wanda": sparse("wanda", "2:4"),
    "sparse24_sparsegpt": sparse("sparsegpt", "2:4"),
    "sparse48_sparsegpt": sparse("sparsegpt", "4:8"),
    "sparse20_block16": sparse("wanda", "block16", sparsity=0.2),
    "sparse24_w4": quantized({"name": "gptq", "pattern": "2:4"}, 4, 64),
    "width25": narrow("wanda"),
    "width25_magnitude": narrow("magnitude"),
    "width25_flap": narrow("flap"),
    "width25_activation": narrow("activation"),
    "width25_wanda_sp": narrow("wanda_sp"),
    "width25_taylor": narrow("taylor"),
    "width25_global": narrow("wanda", allocation="global"),
    "width25_bias": narrow("flap", repair="bias"),
    "width25_unrepaired": narrow("wanda", repair="none"),
    "heads33": narrow("wanda", dims="heads", ratio=0.33),
    "kv33": narrow("wanda", dims="kv_groups", ratio=0.33),
    "hidden10": narrow("activation", dims="hidden", ratio=0.1),
    "depth20": {"depth": {"ratio": 0.2}},
    "lowrank_compensated_w4": {
        "compensate": {"quantizer": "scale_search", "bits": 4, "group_size": 64, "rank": 32}
    },
    "loftq_w4": {
        "compensate": {"quantizer": "nearest", "bits": 4, "group_size": 64, "rank": 32, "num_turns": 5}
    },
    "factorize20": {"factorize": {"ratio": 0.2, "allow_lcc_loader": True}},
}
LLMC = "llm_compressor"
PEERS: dict[str, tuple[str, dict[str, Any]]] = {
    "peer_nearest_g64": (LLMC, {"name": "nearest", "bits": 4, "group_size": 64}),
    "peer_gptq_g64": (LLMC, {"name": "gptq", "bits": 4, "group_size": 64}),
    "peer_wanda50": (LLMC, {"name": "wanda", "sparsity": 0.5}),
    "peer_sparsegpt50": (LLMC, {"name": "sparsegpt", "sparsity": 0.5}),
    "peer_sparsegpt24": (LLMC, {"name": "sparsegpt", "sparsity": 0.5, "pattern": "2:4"}),
    "peer_auto_round_g64": ("auto_round", {"bits": 4, "group_size": 64}),
    "peer_torch_pruning25": ("torch_pruning", {"ratio": 0.25}),
}
HEALED = {"dense_tuned": {}, "width25_healed": narrow("wanda"),
          "width25_distilled": narrow("wanda"), "peer_torch_pruning25_healed": {}}  # fmt: skip
CACHED = {"kind": "distill", "samples": 120, "distill": {"mode": "cached", "num_samples": 64}}
# Healing and auto-round learn from text; no config of BERT says that heads are gone; the others'
# pages say that they want a decoder.
NOT_FOR_CLASSIFIERS = (*HEALED, "peer_auto_round_g64", "factorize20", "w8a8_smoothquant", "heads33", "kv33")
NOT_FOR_DECODERS = ("width25_bias",)  # Llama has no biases to repair.
NAMES = {LLMC: "llm-compressor 0.14.0.1", "auto_round": "auto-round 0.16.1",
         "torch_pruning": "torch-pruning", "lcc": "lcc"}  # fmt: skip


@dataclass(frozen=True)
class Bench:
    """One model, one text, and a folder that remembers what was measured."""

    options: argparse.Namespace
    subject: Subject
    work: Path

    @property
    def model(self) -> Path:
        return self.subject.model

    def job(self, out: Path, seed: int) -> dict[str, Any]:
        o, data = self.options, self.subject.data
        return {
            "model": str(self.model),
            "data": str(data),
            "out": str(out),
            "seed": seed,
            "tokens": o.tokens,
            "threads": o.threads,
            "mode": o.mode,
            "task": self.subject.task,
            "auto_class": self.subject.auto_class,
        }

    def ids(self, seed: int) -> Path:
        path = self.work / f"ids-{self.options.tokens}-{seed}.json"
        if not path.is_file():
            job = {**self.job(self.work / "ids", seed), "steps": {}, "only": "ids"}
            path.write_text(json.dumps(running.ours(job, self.work)), encoding="utf-8")
        return path

    def make(self, name: str, out: Path, seed: int) -> dict[str, Any]:
        """The model of one row below `out`, and how long it took."""
        if name in OURS or name in HEALED:
            return self._ours(name, out, seed)
        tool, words = PEERS[name]
        job = {**self.job(out, seed), "ids": str(self.ids(seed))}
        if tool == "torch_pruning":
            pruner = "peers/torch_pruner.py"
            return dict(running.run(sys.executable, pruner, {**job, **words}, self.work))
        python = running.environment(tool, Path(self.options.environments))
        if tool == "auto_round":
            words = {**words, "iters": self.options.iters}
            return dict(running.run(python, "peers/auto_rounder.py", {**job, **words}, self.work))
        mode = "data_free" if words["name"] == "nearest" else self.options.mode
        words = {**words, "ignore": list(self.subject.ignore)}
        job = {**job, "method": words, "mode": mode}
        return dict(running.run(python, "peers/llm_compressor.py", job, self.work))

    def _ours(self, name: str, out: Path, seed: int) -> dict[str, Any]:
        steps = OURS.get(name) or HEALED[name]
        job = {**self.job(out, seed), "stats": str(self.work / f"stats-{seed}")}
        if name in HEALED:
            heal = {**HEAL, "max_steps": self.options.heal_steps}
            if name != "dense_tuned":
                heal["teacher"] = "plan_input"
            if name == "width25_distilled":
                heal |= CACHED
            if name.startswith("peer"):
                pruned = self.work / "pruned"
                self.make("peer_torch_pruning25", pruned, seed)
                job["model"], job["teacher"] = str(pruned / "model"), str(self.model)
            steps = {**steps, "heal": heal}
        return dict(running.ours({**job, "steps": steps}, self.work))

    def row(self, name: str, seed: int) -> dict[str, Any]:
        out = self.work / f"{name}-{seed}"
        if name == "parent":
            model, took = self.model, {}
        else:
            took = self.make(name, out, seed)
            model = out / "model" if (out / "model" / "config.json").is_file() else out / "dense"
        job = {
            "model": str(model),
            "parent": str(self.model),
            "threads": self.options.threads,
            "kept": str(self.work / "parent"),
            **self.subject.scoring,
        }
        found = running.run(sys.executable, "scorer.py", job, self.work)
        # An adapter lies in a folder of its own, below a packed base.
        size = sum(f.stat().st_size for f in model.rglob("*.safetensors"))
        shutil.rmtree(out, ignore_errors=True)
        times = {key: value for key, value in took.items() if key.endswith("seconds")}
        return {"name": name, "seed": seed, "bytes": size, **found, **times}


class Kept:
    """Rows measured with the same options, one JSON line each."""

    def __init__(self, path: Path, options: argparse.Namespace) -> None:
        self.path, self.options = path, options
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        rows = [json.loads(line) for line in lines]
        self.rows = [r for r in rows if self.same(r["name"]).items() <= r["options"].items()]

    def same(self, name: str) -> dict[str, Any]:
        """The options that a row's figures depend on."""
        keys = ["tokens", "score_tokens", "mode", "score_rows"]
        keys += ["heal_steps"] if name in HEALED else []
        keys += ["iters"] if name == "peer_auto_round_g64" else []
        return {key: getattr(self.options, key) for key in keys}

    def find(self, name: str, seed: int) -> dict[str, Any] | None:
        return next((r for r in self.rows if (r["name"], r["seed"]) == (name, seed)), None)

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append({**row, "options": self.same(row["name"])})
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(self.rows[-1]) + "\n")


def text_of_rows(kept: Kept, options: argparse.Namespace) -> str:
    """The section for docs/results.md."""
    names = list(dict.fromkeys(r["name"] for r in kept.rows))
    order = ["parent", *OURS, *PEERS, *HEALED]
    is_classifier = any("accuracy" in r for r in kept.rows)
    figures = (("accuracy", "{:.1%}"), *FIGURES[1:]) if is_classifier else FIGURES
    lines = []
    for name in sorted(names, key=order.index):
        rows = [r for r in kept.rows if r["name"] == name]
        tool = PEERS[name][0] if name in PEERS else "lcc"
        before = "before" if is_classifier else "dequantized Q4_1 (before)"
        lines.append(
            [
                before if name == "parent" else name,
                NAMES[tool],
                f"{rows[0]['bytes'] / 1e6:.0f} MB",
                *(_figure(rows, key, form) for key, form in figures),
            ]
        )
    titles = ["setting", "by", "on disk", *(key.replace("_", " ") for key, _ in figures)]
    told = _about_classifier(options) if is_classifier else _about_language(options)
    return f"## {options.model}\n\n{told}\n\n{running.table(titles, lines)}"


def _about_language(options: argparse.Namespace) -> str:
    return (
        f"    python benchmarks/quality.py --text wikitext2.test.txt --model {options.model}"
        f" --tokens {options.tokens} --score-tokens {options.score_tokens}\n\n"
        f"WikiText-2 test, first half of the articles: {options.score_tokens} tokens in windows of"
        f" 512. Calibration: {options.tokens} tokens of the second half, {options.mode}. KLD in"
        " nats to the model before. Rows with ± are mean and standard deviation of three"
        f" calibration seeds. auto-round: {options.iters} iterations (its default is 200). Healed"
        f" rows: {options.heal_steps} steps of 1,024 tokens, learning from the model before (the"
        " dense one: from the text)."
    )


def _about_classifier(options: argparse.Namespace) -> str:
    return (
        f"    python benchmarks/quality.py --model {options.model} --tokens {options.tokens}"
        f" --score-rows {options.score_rows}\n\n"
        f"Trained on {TRAINED_ON} movie reviews by recipe sentiment_en (all weights); judged on"
        f" {options.score_rows} test rows. Calibration: {options.tokens} tokens of the training"
        f" split, {options.mode}. KLD in nats to the model before."
    )


FIGURES = (("perplexity", "{:.2f}"), ("kld_mean", "{:.4f}"), ("kld_p99", "{:.3f}"), ("flips", "{:.1%}"))


def _figure(rows: list[dict[str, Any]], key: str, form: str) -> str:
    values = [row[key] for row in rows]
    mean = sum(values) / len(values)
    if len(values) == 1:
        return form.format(mean)
    spread = (sum((v - mean) ** 2 for v in values) / (len(values) - 1)) ** 0.5
    return f"{form.format(mean)} ± {form.format(spread)}"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2_135m", help="a folder or a model card")
    parser.add_argument("--text", help="WikiText-2 test as one file")
    parser.add_argument("--only", help="rows to measure, by name; all without it")
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--score-tokens", type=int, default=8192)
    parser.add_argument("--score-rows", type=int, default=1000, help="of a classifier")
    parser.add_argument("--seeds", type=int, default=3, help="of the headline rows")
    parser.add_argument("--iters", type=int, default=200, help="of auto-round")
    parser.add_argument("--heal-steps", type=int, default=40)
    parser.add_argument("--mode", choices=("dense", "sequential"), default="dense")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, default=material.default_work())
    parser.add_argument("--environments", default=str(material.default_work() / "environments"))
    parser.add_argument("--out", type=Path, default=Path("docs/results.md"))
    return parser.parse_args()


def main() -> None:
    options = arguments()
    work = options.work / f"quality-{Path(options.model).name}"
    work.mkdir(parents=True, exist_ok=True)
    bench = Bench(options, subject(options, work), work)
    kept = Kept(work / "rows.jsonl", options)
    wanted = options.only.split(",") if options.only else ["parent", *OURS, *PEERS, *HEALED]
    if not options.only:
        left = NOT_FOR_CLASSIFIERS if bench.subject.is_classifier else NOT_FOR_DECODERS
        wanted = [name for name in wanted if name not in left]
    for name in wanted:
        for seed in range(options.seeds if name in SEEDED else 1):
            if kept.find(name, seed) is None:
                try:
                    kept.add(bench.row(name, seed))
                except RuntimeError as error:
                    print(f"{name}: {error}", file=sys.stderr, flush=True)
                    continue
                found = kept.rows[-1]
                told = [f"{k}={v:.4g}" for k, v in found.items() if isinstance(v, float)]
                print(name, seed, *told, flush=True)
                write_section(options.out, f"quality of {options.model}", text_of_rows(kept, options))
    write_section(options.out, f"quality of {options.model}", text_of_rows(kept, options))


if __name__ == "__main__":
    main()
