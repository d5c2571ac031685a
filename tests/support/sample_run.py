"""A realistic finished run written by hand, as runner and store leave one on disk."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

MACHINE = {"system": "Linux", "architecture": "x86_64", "processor": "Xeon 8488C", "cores": 2,
           "memory_bytes": 25_276_502_016, "accelerators": []}  # fmt: skip
VERSIONS = {"python": "3.11.7", "lcc": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0",
            "sacrebleu": "2.6.0"}  # fmt: skip
MODELS = {  # checkpoint: step, kind, parameters, bytes, BLEU, chrF, bits per byte, tokens/s
    "base": ("base", "base", 268_098_176, 570_400_000, 21.6, 26.1, 1.312, 11.2),
    "vocab": ("vocab", "vocab", 111_043_712, 244_300_000, 21.5, 26.0, 1.312, 19.4),
    "finetune": ("finetune.merged", "merge", 111_043_712, 244_300_000, 37.4, 35.8, 0.871, 19.3),
    "width": ("width", "width", 97_100_000, 215_900_000, 28.9, 30.2, 1.004, 21.8),
    "heal": ("heal.merged", "merge", 97_100_000, 215_900_000, 35.6, 34.7, 0.899, 21.9),
    "quantize": ("quantize", "quantize", 97_100_000, 120_700_000, 35.1, 34.5, 0.903, 12.1),
}
SAMPLES = [
    ("Select the cells that you want to format.", "选择要格式化的单元格。",
     "选择你想格式化的细胞。", "选择要设置格式的单元格。", "选择要设置格式的单元格。"),
    ("The file <script>alert(1)</script> could not be opened.",
     "无法打开文件 <script>alert(1)</script>。", "<script>alert('base')</script>",
     "无法打开文件 <script>alert(1)</script>。", "无法打开该文件 <b>script</b>。"),
    ("Displays the current page number | at this position.", "在该位置显示当前页码。", "",
     "在此位置显示当前页码。", "显示此位置的当前页码。"),
    ("Enter the name of the new toolbar, then click OK.", "输入新工具栏的名称,然后单击“确定”。",
     "输入新的工具栏名称", "输入新工具栏的名称,然后单击“确定”。",
     "输入新工具栏的名称,然后单击“确定”。"),
]  # fmt: skip


def key_of(name: str) -> str:
    """A key such as the pipeline would give."""
    return "".join(f"{ord(c):02x}" for c in name).ljust(64, "0")[:64]


def write_sample_run(root: Path, *, command: str = "lcc run +recipe=mt_en_zh_small") -> Path:
    """Write runs/ below `root`; returns the run's folder."""
    store, run = root / "runs" / "store", root / "runs" / "mt_en_zh_small-1a2b3c4d"
    steps = list(_steps())
    run.mkdir(parents=True)
    listed = []
    for index, report in enumerate(steps, 1):
        folder = store / report["key"]
        folder.mkdir(parents=True)
        (folder / "report.json").write_text(json.dumps(report), encoding="utf-8")
        _write_lines(folder, report)
        link = run / f"{index:02d}-{report['name']}"
        link.symlink_to(Path("..") / "store" / report["key"])
        checkpoint = next((c for c, m in MODELS.items() if m[0] == report["name"]), None)
        listed.append(
            {
                "name": report["name"],
                "kind": report["kind"],
                "key": report["key"],
                "status": "finished",
                "seconds": report["seconds"],
                "folder": link.name,
                "checkpoint": checkpoint,
                "model_bytes": report["model_bytes"],
            }
        )
    recipe = {
        "name": "mt_en_zh_small",
        "seed": 0,
        "model": {"name": "gemma3_270m"},
        "dataset": {"name": "gettext_en_zh"},
        "task": {"name": "translation"},
    }
    facts = {
        "format": 1,
        "run": run.name,
        "recipe_name": "mt_en_zh_small",
        "recipe": recipe,
        "command": command,
        "status": "finished",
        "started": "2026-11-23T20:11:04Z",
        "seconds": 1312.4,
        "steps": listed,
    }
    (run / "run.json").write_text(json.dumps(facts), encoding="utf-8")
    (root / "runs" / "last").write_text(run.name + "\n", encoding="utf-8")
    return run


def change_report(run: Path, step: str, **changes: Any) -> None:
    """Rewrite fields of one step's report in place."""
    path = next(run.glob(f"*-{step}")) / "report.json"
    facts = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**facts, **changes}), encoding="utf-8")


def _steps() -> Any:
    previous = ""
    yield _report(
        "data",
        "prepare",
        node={"spec": {"name": "gettext_en_zh", "licence": "BSD-3"}},
        notes=["3,305 pairs read; 412 exact duplicates removed."],
    )
    for name, kind in [
        ("base", "base"),
        ("vocab", "vocab"),
        ("finetune", "finetune"),
        ("finetune.merged", "merge"),
        ("width", "width"),
        ("heal", "finetune"),
        ("heal.merged", "merge"),
        ("quantize", "quantize"),
    ]:
        model = next((m for m in MODELS.values() if m[0] == name), None)
        inputs = {"model": key_of(previous)} if previous else {}
        if kind == "merge":
            inputs["adapter"] = key_of(name.removesuffix(".merged"))
        measures = {"parameters": _m(model[2], "count")} if model else {}
        measures |= _training() if kind == "finetune" else {}
        yield _report(
            name,
            kind,
            inputs=inputs,
            measures=measures,
            node=_node(name, kind),
            model_bytes=model[3] if model else None,
            notes=_notes(name),
            warnings=_warnings(name),
        )
        previous = name if model else previous
    for checkpoint in MODELS:
        yield _evaluation(checkpoint)
    yield _report(
        "bench",
        "bench",
        tables={"speed": list(_speeds()), "machine": []},
        measures={"memory_bandwidth": _m(14.5e9, "bytes/s")},
    )


def _training() -> dict[str, Any]:
    return {
        "steps": _m(560, "count"),
        "lr": _m(1e-3),
        "train_loss": _m(1.41, "nats"),
        "validation_loss_before": _m(3.42, "nats"),
        "validation_loss_after": _m(1.507, "nats"),
        "clip_threshold": _m(0.5),
        "clipped_share": _m(0.375, "share"),
        "clipped_share_counts": _m("steps"),
        "clipped_steps_share": _m(0.375, "share"),
        "nonfinite_steps": _m(0, "count"),
    }


def _report(name: str, kind: str, **facts: Any) -> dict[str, Any]:
    blank = {
        "inputs": {},
        "node": {"name": kind},
        "measures": {},
        "tables": {},
        "notes": [],
        "warnings": [],
        "model_bytes": None,
    }
    return {
        "format": 1,
        "name": name,
        "kind": kind,
        "key": key_of(name),
        **blank,
        "seconds": {"finetune": 402.7, "heal": 311.2}.get(name, 8.31),
        "peak_memory_bytes": 1_913_000_000,
        "finished": "2026-11-23T20:31:00Z",
        "versions": VERSIONS,
        "machine": MACHINE,
        "device": "cpu",
        "dtype": "float32",
        "threads": 2,
        "seed": 0,
        **facts,
    }


def _evaluation(checkpoint: str) -> dict[str, Any]:
    step, _, _, _, bleu, chrf, bits, _ = MODELS[checkpoint]
    measures = {
        **_with_interval("bleu", bleu, 3.1, "BLEU"),
        **_with_interval("chrf", chrf, 2.2, "chrF"),
        "bits_per_byte": _m(bits, "bits/byte"),
        "num_empty": _m(1, "count"),
        "num_samples": _m(400, "count"),
        "num_shots": _m(2 if checkpoint in ("base", "vocab") else 0, "count"),
        "bleu_signature": _m("nrefs:1|case:mixed|tok:zh|smooth:exp", ""),
    }
    inputs = {"model": key_of(step)}
    if checkpoint != "base":
        reference = (
            "finetune"
            if checkpoint in ("width", "heal", "quantize")
            else ("base" if checkpoint == "vocab" else "vocab")
        )
        inputs |= {"base": key_of("eval.base"), "reference": key_of(f"eval.{reference}")}
        delta = bleu - MODELS[reference][4]
        measures |= _with_interval("bleu_delta_reference", delta, 1.6, "BLEU")
        measures |= _with_interval("bleu_delta_base", bleu - 21.6, 2.4, "BLEU")
        word = "gained" if delta > 3 else "lost" if delta < -3 else "unclear"
        measures |= {
            "bleu_verdict_reference": _m(word),
            "verdict": _m(word),
            "verdict_base": _m("gained" if bleu > 25 else "kept"),
        }
    return _report(f"eval.{checkpoint}", "eval", inputs=inputs, measures=measures)


def _with_interval(name: str, value: float, width: float, unit: str) -> dict[str, Any]:
    return {
        name: _m(value, unit),
        f"{name}_low": _m(value - width, unit),
        f"{name}_high": _m(value + 1.1 * width, unit),
    }


def _speeds() -> Any:
    for checkpoint, (_, _, parameters, size, _, _, _, decode) in MODELS.items():
        for batch in (1, 8):
            yield {
                "checkpoint": checkpoint,
                "batch_size": batch,
                "backend": "dequantized" if checkpoint == "quantize" else "dense",
                "prefill_tokens_per_second": 612.0 * batch**0.3,
                "decode_tokens_per_second": decode * batch**0.7,
                "latency_p50_seconds": batch**0.3 / decode,
                "latency_p99_seconds": 1.4 * batch**0.3 / decode,
                "peak_memory_bytes": 4 * parameters + 3e8,
                "parameters": parameters,
                "disk_bytes": size,
            }
    yield {
        "checkpoint": "quantize",
        "batch_size": 1,
        "backend": "compressed-tensors",
        "decode_tokens_per_second": 1.1,
        "latency_p50_seconds": 2.9,
        "latency_p99_seconds": 3.1,
    }


def _node(name: str, kind: str) -> dict[str, Any]:
    if name == "base":
        return {
            "name": "base",
            "revision": 1,
            "spec": {
                "name": "gemma3_270m",
                "licence": "Gemma terms of use",
                "origin": "dequantized Q4_K_M",
                "head": "causal",
            },
        }
    if kind == "finetune":
        return {
            "name": "finetune",
            "epochs": 1,
            "lr": 0.001,
            "batch_tokens": 2048,
            "method": {"name": "lora", "rank": 16},
            "clip": {"name": "norm", "max_norm": 0.5},
        }
    return {"name": kind, "revision": 1, "ratio": 0.25} if kind == "width" else {"name": kind}


def _notes(name: str) -> list[str]:
    return {
        "quantize": ["int8 has no fast kernel on this machine: no speed is claimed."],
        "vocab": ["17,013 of 262,144 tokens kept; 0.3 % of held-out tokens fall back."],
    }.get(name, [])


def _warnings(name: str) -> list[str]:
    return ["width: heads are not pruned in a model with q/k norms."] if name == "width" else []


def _write_lines(folder: Path, report: dict[str, Any]) -> None:
    if report["kind"] == "finetune":
        _write(folder / "curves.jsonl", _curve())
    if report["kind"] == "eval":
        column = {"base": 2, "vocab": 2, "finetune": 3}.get(report["name"].partition(".")[2], 4)
        rows = [
            {
                "id": f"s{i}",
                "source": {"source": s[0]},
                "reference": s[1],
                "output": s[column],
                "scores": {"chrf": 30.0},
            }
            for i, s in enumerate(SAMPLES)
        ]
        _write(folder / "samples.jsonl", rows)


def _curve() -> list[dict[str, Any]]:
    draw = random.Random(0)
    rows = []
    for step in range(1, 561):
        norm = 0.3 + 1.2 * math.exp(-step / 120) + draw.random() * 0.25
        row: dict[str, Any] = {
            "step": step,
            "loss": 1.4 + 2.2 * math.exp(-step / 90) + draw.gauss(0, 0.12),
            "lr": 1e-3,
            "grad_norm": norm,
            "clip_threshold": 0.5,
            "clipped_share": float(norm > 0.5),
            "tokens": 2048 * step,
            "seconds": 0.7 * step,
        }
        if step % 80 == 0:
            row["validation_loss"] = 1.5 + 1.9 * math.exp(-step / 100)
        rows.append(row)
    return rows


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8")


def _m(value: float | str, unit: str = "") -> dict[str, Any]:
    return {"value": value, "unit": unit}
