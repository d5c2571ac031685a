"""Real worker processes measure tiny models in turns; nothing is claimed that was not seen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import compressing as tiny
import pytest
import torch
import transformers
from quantizing import quantized
from test_eval import save, task

from lcc.config.cards import decode
from lcc.core.errors import RecipeError
from lcc.core.progress import Progress
from lcc.distributed.dist import SINGLE
from lcc.inference.benchmark import BenchmarkedModel, MeasuringProcess, verdicts
from lcc.methods.trackers.none import NoneTracker
from lcc.pipeline.stage import Context, Outcome
from lcc.stages.bench import Bench

BENCH = {"rounds": 2, "requests": 2, "new_tokens": 4, "batch_sizes": [1, 3]}


def llama(folder: Path, layers: int) -> Path:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    save(transformers.LlamaForCausalLM(config), folder / "model")
    return folder


def bert(folder: Path) -> Path:
    config = transformers.BertConfig(
        vocab_size=300,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=48,
        num_labels=3,
    )
    save(transformers.BertForSequenceClassification(config), folder / "model")
    return folder


def run(folder: Path, name: str, **inputs: Path) -> Outcome:
    checkpoints = {key.replace("__", "."): path for key, path in inputs.items()}
    context = Context(
        folder=folder,
        seed=0,
        device="cpu",
        dtype="float32",
        dist=SINGLE,
        progress=Progress(quiet=True),
        tracker=NoneTracker(),
        task=task(name),
        inputs=checkpoints,
    )
    return decode(Bench, BENCH).run(None, context)


def test_checkpoints_take_turns_and_get_a_row_per_batch_size(tmp_path: Path) -> None:
    small, large = llama(tmp_path / "s", 1), llama(tmp_path / "l", 8)
    outcome = run(tmp_path, "translation", checkpoint__large=large, checkpoint__small=small)
    rows = outcome.tables["speed"]
    assert [(r["checkpoint"], r["batch_size"]) for r in rows] == [
        ("large", 1),
        ("large", 3),
        ("small", 1),
        ("small", 3),
    ]
    for row in rows:
        assert row["decode_tokens_per_second"] > 0
        assert 0 < row["latency_p50_seconds"] <= row["latency_p99_seconds"]
        assert row["num_requests"] == 4
        assert row["peak_memory_bytes"] > row["model_memory_bytes"]
    assert rows[0]["parameters"] > rows[2]["parameters"]
    files = (large / "model").rglob("*")
    assert rows[0]["disk_bytes"] == sum(f.stat().st_size for f in files)
    assert rows[2]["decode_tokens_per_second"] > rows[0]["decode_tokens_per_second"]
    assert outcome.measures["memory_bandwidth"].value > 1e8  # type: ignore[operator]
    assert outcome.measures["matrix_product"].unit == "FLOP/s"
    assert any(note.startswith("small: decoding is") for note in outcome.notes)
    json.dumps(outcome.tables)


def test_a_packed_model_runs_as_lcc_runs_it_and_in_its_own_format(tmp_path: Path) -> None:
    quantized(tiny.llama(), tmp_path / "q", bits=8, quantizer="nearest", group_size=16)
    outcome = run(
        tmp_path,
        "translation",
        checkpoint__base=llama(tmp_path / "b", 1),
        checkpoint__quantize=tmp_path / "q",
    )
    rows = outcome.tables["speed"]
    # Too small for its codes to be worth reading as they are stored.
    assert [(r["checkpoint"], r["backend"], r["batch_size"]) for r in rows] == [
        ("base", "dense", 1),
        ("base", "dense", 3),
        ("quantize", "dequantized", 1),
        ("quantize", "dequantized", 3),
        ("quantize", "compressed-tensors", 1),
    ]
    assert rows[2]["parameters"] == sum(p.numel() for p in tiny.llama().parameters())
    assert any("transformers reads it as compressed-tensors" in note for note in outcome.notes)


def test_an_encoder_has_a_forward_latency_and_no_decoding(tmp_path: Path) -> None:
    outcome = run(tmp_path, "sentiment", checkpoint__base=bert(tmp_path / "b"))
    for row in outcome.tables["speed"]:
        assert row["decode_tokens_per_second"] is None
        assert row["texts_per_second"] > 0
        assert row["latency_p50_seconds"] > 0


def test_a_worker_hands_back_the_users_mistake(tmp_path: Path) -> None:
    worker = MeasuringProcess(tmp_path / "log")
    (tmp_path / "model").mkdir()
    try:
        with pytest.raises(RecipeError, match=r"no config\.json"):
            worker.ask(
                "load", model=str(tmp_path / "model"), native=False, device="cpu", dtype="float32", slots=1
            )
        assert worker.ask("start", threads=1, cpus=[])["threads"] == 1
    finally:
        worker.close()


def benchmarked(name: str, seconds: list[float], **options: Any) -> BenchmarkedModel:
    backend = options.pop("backend", "dense")
    one = BenchmarkedModel(name, Path(name), [[1, 2]], 3, (1,), **options)
    one.opened({"backend": backend, "context": None})
    for s in seconds:
        one.turns.setdefault(1, []).append({"first_seconds": [1.0], "whole_seconds": [1.0 + s]})
    return one


def test_only_what_every_round_shows_is_claimed() -> None:
    base = benchmarked("base", [2.0, 2.0, 2.0])
    fast, mixed = benchmarked("fast", [1.0, 1.1, 1.0]), benchmarked("mixed", [1.0, 2.2, 1.0])
    slow = benchmarked("slow", [4.0, 3.0, 4.0])
    packed = benchmarked("packed", [1.9, 2.1, 2.0], backend="dequantized")
    native = benchmarked("packed", [20.0], backend="compressed-tensors", native=True)
    told = verdicts([base, fast, mixed, slow, packed, native])
    assert told[0].startswith("fast: decoding is 2.00 × as fast")
    assert told[1].startswith("mixed: no clear difference")
    assert told[2].startswith("slow: decoding is slower")
    assert told[4] == (
        "packed: transformers reads it as compressed-tensors, at 0.10 × the speed that it has here."
    )
    assert len(told) == 5
    once = verdicts([benchmarked("base", [2.0]), benchmarked("fast", [1.0])])
    assert "which shows nothing" in once[0]
