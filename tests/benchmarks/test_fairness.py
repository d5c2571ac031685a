"""The benchmarks measure what they say: same tokens, one scorer, floors by hand, rows kept."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import compressing as tiny
import floors
import material
import ours
import pytest
import results
import running
import scorer
import torch

from lcc.data.dataset import PreparedData
from lcc.models import checkpoint
from lcc.models.bundle import open_bundle

WORDS = " ".join(tiny.WORDS.split()[:12])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parent") / "model"
    checkpoint.save(tiny.bundle(tiny.llama()), folder)
    return folder


@pytest.fixture
def text(tmp_path: Path) -> material.Text:
    articles = [f" = Title {i} = \n\n {f'{WORDS} {i} ' * 120}\n" for i in range(4)]
    path = tmp_path / "text.txt"
    path.write_text("".join(articles), encoding="utf-8")
    return material.text_of(str(path))


def job(model: Path, text: material.Text, folder: Path, **changes: Any) -> dict[str, Any]:
    data = material.write_data(text, folder / "data")
    return {
        "model": str(model),
        "data": str(data),
        "out": str(folder / "out"),
        "tokens": 512,
        "seed": 0,
        "threads": 1,
        **changes,
    }


def test_what_is_scored_never_calibrates(text: material.Text, tmp_path: Path) -> None:
    assert "Title 0" in text.scored and "Title 2" not in text.scored
    rows = PreparedData.open(material.write_data(text, tmp_path) / "data").rows("train")
    assert rows and all(row["text"] not in text.scored for row in rows)


def test_without_a_text_it_says_what_to_give() -> None:
    with pytest.raises(SystemExit, match="--text FILE"):
        material.text_of(None)


def test_the_peer_gets_the_very_tokens_that_lcc_sees(
    model: Path, text: material.Text, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = job(model, text, tmp_path, steps={"sparsify": {"criterion": "wanda"}})
    rows = ours.calibration_ids(given)
    assert sum(map(len, rows)) == 512
    seen: list[list[int]] = []
    from lcc.stages import calibrate

    real = calibrate.text_batches

    def spied(*args: Any) -> Any:
        batches = real(*args)
        pairs = (p for b in batches for p in zip(b["input_ids"], b["attention_mask"], strict=True))
        seen.extend(ids[mask.bool()].tolist() for ids, mask in pairs)
        return batches

    monkeypatch.setattr(calibrate, "text_batches", spied)
    ours.compress(given)
    assert seen == rows


def test_times_of_the_solver_lie_within_the_whole(model: Path, text: material.Text, tmp_path: Path) -> None:
    given = job(model, text, tmp_path, steps={"sparsify": {"criterion": "wanda", "sparsity": 0.5}})
    facts = ours.compress(given)
    assert 0 < facts["solver_seconds"] < facts["seconds"]
    made = open_bundle(tmp_path / "out" / "model").load()
    weight = made.model.layers[0].mlp.up_proj.weight
    assert (weight == 0).float().mean() == pytest.approx(0.5)


def test_the_parent_does_not_diverge_from_itself(model: Path, tmp_path: Path) -> None:
    ids = [(7 * i) % 390 + 4 for i in range(700)]
    found = scorer.scores(model, model, ids, tmp_path / "parent.safetensors")
    assert found["kld_mean"] < 1e-5 and found["flips"] < 0.01
    assert found["num_tokens"] == 511 + 187
    module = open_bundle(model).load()
    nats = 0.0
    for window in (ids[:512], ids[512:]):
        given = torch.tensor([window])
        with torch.no_grad():
            nats += float(module(input_ids=given, labels=given).loss) * (len(window) - 1)
    assert found["perplexity"] == pytest.approx(math.exp(nats / 698), rel=1e-5)


def test_the_floor_counts_every_product_once(tmp_path: Path) -> None:
    config = {
        "hidden_size": 4,
        "intermediate_size": 8,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "num_hidden_layers": 3,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = floors.floors(tmp_path, 10, {"flops": 1.0, "bandwidth": 1.0})
    layers = [(8, 4), (4, 4), (16, 4), (4, 8)]  # q, k and v; o; gate and up; down
    products = 3 * sum(i**3 / 3 + o * i * i for o, i in layers)
    assert found.solver("gptq") == pytest.approx(products)
    assert found.whole("gptq", "dense") == pytest.approx(
        products + 3 * sum(2 * o * i * 10 + 10 * i * i for o, i in layers)
    )
    assert found.solver("wanda50") == 8 * 3 * sum(o * i for o, i in layers)


def test_a_section_is_replaced_and_the_rest_stays(tmp_path: Path) -> None:
    path = tmp_path / "results.md"
    results.write_section(path, "one", "first")
    results.write_section(path, "two", "second")
    results.write_section(path, "one", r"third \1")
    text = path.read_text(encoding="utf-8")
    assert "first" not in text and r"third \1" in text and "second" in text
    assert text.startswith("# Measured results") and text.count("<!-- one -->") == 1


def test_a_failing_job_says_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"gauge\.py failed \(1\): .*KeyError: 'threads'"):
        running.run(sys.executable, "gauge.py", {}, tmp_path)
