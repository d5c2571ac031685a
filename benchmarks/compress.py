"""Time lcc's compression against llm-compressor's, at equal quality first.

    python benchmarks/compress.py --text wikitext2.test.txt
    python benchmarks/compress.py --text wikitext2.test.txt --tokens 131072 --methods gptq
    python benchmarks/compress.py --text wikitext2.test.txt --sweep

Both tools get the same weights, token ids, threads and mode, in turns; a run that is not as good
(perplexity within 0.5 %) is marked. Times leave imports out; "solver" is the methods' own
arithmetic within the same runs.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import material
import running
from floors import Floors, floors
from results import write_section

WITHIN = 0.005  # of perplexity: as good
GOALS = {"solver": 5.0, "sequential": 1.5, "dense": 2.0}
METHODS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # ours, theirs
    "gptq": (
        {"quantize": {"quantizer": "gptq", "bits": 4, "group_size": 64}},
        {"name": "gptq", "bits": 4, "group_size": 64},
    ),
    "sparsegpt50": (
        {"sparsify": {"criterion": "sparsegpt", "sparsity": 0.5}},
        {"name": "sparsegpt", "sparsity": 0.5},
    ),
    "sparsegpt24": (
        {"sparsify": {"criterion": "sparsegpt", "pattern": "2:4"}},
        {"name": "sparsegpt", "sparsity": 0.5, "pattern": "2:4"},
    ),
    "wanda50": ({"sparsify": {"criterion": "wanda", "sparsity": 0.5}}, {"name": "wanda", "sparsity": 0.5}),
}
SWEEP = ("w8", "w4", "w4_gptq", "w4_awq", "sparse50_wanda", "sparse50_sparsegpt",
         "sparse24_sparsegpt", "sparse24_w4")  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """What one comparison is about, and where it works."""

    options: argparse.Namespace
    model: Path
    text: material.Text
    data: Path
    work: Path

    def ids(self) -> Path:
        """The calibration tokens that lcc would take, written for the peer."""
        path = self.work / f"ids-{self.options.tokens}-{self.options.seed}.json"
        if not path.is_file():
            rows = running.ours({**self.job({}), "out": str(self.work / "ids"), "only": "ids"}, self.work)
            path.write_text(json.dumps(rows), encoding="utf-8")
        return path

    def job(self, steps: dict[str, Any]) -> dict[str, Any]:
        options = self.options
        return {
            "model": str(self.model),
            "data": str(self.data),
            "steps": steps,
            "tokens": options.tokens,
            "seed": options.seed,
            "threads": options.threads,
        }

    def perplexity(self, folder: Path) -> float:
        scored = self.work / "scored.txt"
        scored.write_text(self.text.scored, encoding="utf-8")
        found = running.score(
            folder,
            parent=self.model,
            text=scored,
            tokens=self.options.score_tokens,
            threads=self.options.threads,
            work=self.work,
        )
        return float(found["perplexity"])


def compare(setting: Setting, method: str, mode: str) -> dict[str, Any]:
    """Both tools in turns; the best time of each, and how good their last results are."""
    steps, words = METHODS[method]
    python = running.environment("llm_compressor", Path(setting.options.environments))
    out = {tool: setting.work / f"{tool}-{method}-{mode}" for tool in ("lcc", "peer")}
    times: dict[str, list[dict[str, Any]]] = {"lcc": [], "peer": []}
    ids = setting.ids()
    for _ in range(setting.options.rounds):
        mine = {**setting.job(steps), "mode": mode, "out": str(out["lcc"])}
        theirs = {
            "model": str(setting.model),
            "ids": str(ids),
            "method": words,
            "mode": mode,
            "threads": setting.options.threads,
            "out": str(out["peer"]),
        }
        times["lcc"].append(running.ours(mine, setting.work))
        times["peer"].append(running.run(python, "peers/llm_compressor.py", theirs, setting.work))
    best = {
        tool: {
            key: min(one[key] for one in found) for key in found[0] if "seconds" in key and key in found[0]
        }
        for tool, found in times.items()
    }
    good = {tool: setting.perplexity(folder / "model") for tool, folder in out.items()}
    for folder in out.values():
        shutil.rmtree(folder, ignore_errors=True)
    return {"method": method, "mode": mode, "best": best, "perplexity": good}


def row(found: dict[str, Any], floor: Floors) -> list[str]:
    best, good = found["best"], found["perplexity"]
    mine, theirs = best["lcc"], best["peer"]
    is_good = good["lcc"] <= good["peer"] * (1 + WITHIN)
    whole, solver = (theirs[k] / max(mine[k], 1e-9) for k in ("cpu_seconds", "solver_cpu_seconds"))
    return [
        found["method"],
        found["mode"],
        f"{good['lcc']:.2f}",
        f"{good['peer']:.2f}",
        "yes" if is_good else "**no**",
        f"{mine['seconds']:.1f}",
        f"{theirs['seconds']:.1f}",
        f"{mine['cpu_seconds']:.1f}",
        f"{theirs['cpu_seconds']:.1f}",
        f"{whole:.2f}×",
        f"{floor.whole(found['method'], found['mode']):.1f}",
        f"{mine['solver_cpu_seconds']:.2f}",
        f"{theirs['solver_cpu_seconds']:.2f}",
        f"{solver:.1f}×",
        f"{floor.solver(found['method']):.2f}",
    ]


TITLES = ["method", "mode", "perplexity lcc", "peer", "as good", "wall s lcc", "peer", "CPU s lcc",
          "peer", "ratio", "floor s", "solver CPU s lcc", "peer", "ratio", "floor s"]  # fmt: skip


def sweep(setting: Setting) -> str:
    """Eight plans by one sweep and by eight runs that share nothing, with the command itself."""
    options = setting.options
    rows = setting.work / "rows.jsonl"
    lines = (json.dumps(row, ensure_ascii=False) for row in setting.text.rows())
    rows.write_text("\n".join(lines), encoding="utf-8")
    base = [
        f"model={setting.model}",
        "task=generation",
        f"threads={options.threads}",
        "dataset=local",
        f"dataset.source.path={rows}",
        "dataset.cleaning.max_words=2000",
        "stages.compress={}",
    ]
    plans = options.plans.split(",")
    together = _command(setting, ["run", "-m", *base, f"plan={','.join(plans)}"], "sweep")
    alone = sum(_command(setting, ["run", *base, f"plan={plan}"], plan) for plan in plans)
    return (
        f"sweep of {len(plans)} plans: {together:.0f} s; as single runs: {alone:.0f} s; "
        f"ratio {alone / together:.2f}×"
    )


def _command(setting: Setting, words: list[str], name: str) -> float:
    folder = setting.work / "sweep" / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    started = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "lcc", *words],
        cwd=folder,
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    seconds = time.perf_counter() - started
    shutil.rmtree(folder, ignore_errors=True)
    return seconds


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2_135m", help="a folder or a model card")
    parser.add_argument("--text", help="WikiText-2 test as one file")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--modes", default="dense,sequential")
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--score-tokens", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sweep", action="store_true", help="time a sweep against single runs")
    parser.add_argument("--plans", default=",".join(SWEEP), help="plans of the sweep")
    parser.add_argument("--out", type=Path, default=Path("docs/results.md"))
    parser.add_argument("--work", type=Path, default=material.default_work())
    parser.add_argument("--environments", default=str(material.default_work() / "environments"))
    return parser.parse_args()


class Kept:
    """Cells measured so far, one JSON line each; the newest of a kind counts."""

    def __init__(self, path: Path) -> None:
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        self.path, self.cells = path, [json.loads(line) for line in lines]

    def add(self, cell: dict[str, Any]) -> None:
        self.cells.append(cell)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(cell) + "\n")

    def tables(self, model: Path) -> str:
        """One table for every number of tokens and threads, each with its machine."""
        newest = {(c["tokens"], c["threads"], c["method"], c["mode"]): c for c in self.cells}
        parts = []
        for tokens, threads in dict.fromkeys(key[:2] for key in newest):
            cells = [c for key, c in newest.items() if key[:2] == (tokens, threads)]
            machine = cells[-1]["machine"]
            floor = floors(model, tokens, machine)
            parts.append(
                f"{tokens} tokens, {threads} thread(s); this machine meanwhile:"
                f" {machine['flops'] / 1e9:.0f} GFLOP/s float32, {machine['bandwidth'] / 1e9:.1f}"
                f" GB/s; best of {cells[-1]['rounds']} round(s) in turns.\n\n"
                + running.table(TITLES, [row(cell, floor) for cell in cells])
            )
        return "\n\n".join(parts)


def told(options: argparse.Namespace, tables: str) -> str:
    """The section for docs/results.md."""
    goals = ", ".join(f"{name} ≥ {goal:g}×" for name, goal in GOALS.items())
    return (
        f"## Speed of compression beside llm-compressor 0.14.0.1 ({options.model})\n\n"
        f"    python benchmarks/compress.py --text wikitext2.test.txt --tokens {options.tokens}\n\n"
        f"Goals at equal quality (within {WITHIN:.1%} of perplexity, or better): {goals}. Ratios"
        " are of processor time, which other work on the machine hardly changes. The floor is the"
        " method's multiplications at the measured matrix rate.\n\n" + tables
    )


def main() -> None:
    options = arguments()
    text = material.text_of(options.text)
    work = options.work / "compress"
    model = material.model_folder(options.model, work)
    setting = Setting(options, model, text, material.write_data(text, work / "data"), work)
    if options.sweep:
        found = sweep(setting)
        print(found)
        write_section(options.out, "sweep", f"## A sweep beside single runs\n\n{found}")
        return
    kept = Kept(work / f"cells-{Path(options.model).name}.jsonl")
    for method in options.methods.split(","):
        for mode in options.modes.split(","):
            cell = compare(setting, method, mode)
            cell["machine"] = running.machine(options.threads, work)
            kept.add({**cell, "tokens": options.tokens, "threads": options.threads, "rounds": options.rounds})
            print(json.dumps(cell), file=sys.stderr, flush=True)
            write_section(options.out, "speed of compression", told(options, kept.tables(model)))
    print(told(options, kept.tables(model)))


if __name__ == "__main__":
    main()
