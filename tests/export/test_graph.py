"""Graphs say in ONNX Runtime and OpenVINO what their source says in PyTorch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from exports import exported, prompts, saved, told

from lcc.config.cards import find_card
from lcc.core.errors import DataError, GateError, RecipeError
from lcc.inference.backends import graph as graph_session
from lcc.inference.backends.graph import PastKeyValues
from lcc.inference.session import Opening, Request, answers, greedy

# Threads of the runtimes are still ending while torch's warnings about exporters are told.
pytestmark = pytest.mark.filterwarnings("ignore")

# A window of 8, which prompts and answers go beyond, and a layer that sees everything.
WINDOWED = {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]}


def _need(*packages: str) -> None:
    for package in packages:
        pytest.importorskip(package, reason=f"{package} is not installed: see lcc[onnx], [openvino]")


def test_a_decoder_is_the_same_in_onnx_runtime(tmp_path: Path) -> None:
    _need("onnxruntime", "onnxscript")
    made = exported(saved("llama", tmp_path / "model"), tmp_path / "out", "onnx")
    assert made.parity.logit_error < 1e-4 and made.parity.agreement == 1.0, told(made.parity)
    assert [f.name for f in (tmp_path / "out" / "graph").glob("*.onnx")] == ["model.onnx"]


@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_answers_written_together_are_what_their_source_writes_alone(
    format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _need(*{"onnx": ("onnxruntime", "onnxscript"), "openvino": ("openvino", "nncf")}[format])
    source = saved("gemma3", tmp_path / "model", **WINDOWED)
    exported(source, tmp_path / "out", format)
    sizes, run = list[int](), graph_session._run_graph
    monkeypatch.setattr(
        graph_session,
        "_run_graph",
        lambda graph, **inputs: (sizes.append(len(inputs["input_ids"])), run(graph, **inputs))[1],
    )
    mine = find_card("engines", "transformers")().open(source, Opening(threads=1))
    session = find_card("engines", find_card("exporters", format).engine)().open(
        tmp_path / "out", Opening(threads=1, slots=3)
    )
    limits = [3, 12, 7, 9, 5, 12, 1, 8]  # so that rows come and go
    asked = [Request(tuple(row), limit) for row, limit in zip(prompts(source, 8), limits, strict=True)]
    wanted = [answers(mine, [request])[0].ids for request in asked]
    assert [answer.ids for answer in answers(session, asked)] == wanted
    assert len({token for ids in wanted for token in ids}) > 12
    assert max(sizes) == 3
    session.close()


def test_an_export_that_reads_well_and_writes_nonsense_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _need("onnxruntime", "onnxscript")
    inputs = PastKeyValues.inputs

    def misplaced(batch: PastKeyValues, ids: Any) -> dict[str, Any]:
        return {**inputs(batch, ids), "position_ids": torch.arange(len(ids[0]))[None]}

    monkeypatch.setattr(PastKeyValues, "inputs", misplaced)  # right for a text that is read from its start
    with pytest.raises(GateError, match=r"\d% of the tokens that it writes are not what it says"):
        exported(saved("gemma3", tmp_path / "model", **WINDOWED), tmp_path / "out", "onnx")


def test_eight_bits_round_a_decoders_weights_and_not_its_inputs(tmp_path: Path) -> None:
    _need("onnxruntime", "onnxscript")
    made = exported(saved("llama", tmp_path / "model"), tmp_path / "out", "onnx", weights="int8")
    assert 0 < made.parity.logit_error < 0.03, told(made.parity)
    graph = (tmp_path / "out" / "graph" / "model.onnx").read_bytes()
    assert b"MatMulNBits" in graph and b"DynamicQuantizeLinear" not in graph


def test_a_classifier_is_the_same_at_eight_bits(tmp_path: Path) -> None:
    _need("onnxruntime", "onnxscript")
    made = exported(saved("bert", tmp_path / "model"), tmp_path / "out", "onnx", weights="int8")
    assert made.parity.kind == "labels" and made.parity.logit_error < 0.1, told(made.parity)
    session = find_card("engines", "onnxruntime")().open(tmp_path / "out", Opening(threads=1))
    with pytest.raises(DataError, match="writes no answers"):
        session.start(Request((5, 6), 2))


def test_a_decoder_is_the_same_in_openvino_at_eight_bits(tmp_path: Path) -> None:
    _need("openvino", "nncf")
    made = exported(saved("qwen3", tmp_path / "model"), tmp_path / "out", "openvino", weights="int8")
    assert 0 < made.parity.logit_error < 0.05, told(made.parity)


SIZES = {"t5": {"num_layers": 1}, "marian": {}}
CROSSED = [("t5", "openvino", "float32"), ("marian", "onnx", "int8"), ("t5", "openvino", "int4")]


@pytest.mark.parametrize(
    "family, format, weights",
    [
        ("t5", "onnx", "float32"),
        ("marian", "openvino", "int8"),
        *(pytest.param(*each, marks=pytest.mark.slow) for each in CROSSED),
    ],
)
def test_an_encoder_decoder_is_the_same_in_two_graphs_and_rows_join(
    family: str, format: str, weights: str, tmp_path: Path
) -> None:
    _need(*{"onnx": ("onnxruntime", "onnxscript"), "openvino": ("openvino", "nncf")}[format])
    source = saved(family, tmp_path / "model", **SIZES[family])
    made = exported(source, tmp_path / "out", format, weights=weights)
    most = {"float32": 1e-4, "int8": 0.05, "int4": 0.4}[weights]
    assert made.parity.logit_error < most and made.parity.unexplained_share == 0, told(made.parity)
    assert made.parity.num_tokens > made.parity.num_prompts
    name = find_card("exporters", format).engine
    session = find_card("engines", name)().open(tmp_path / "out", Opening(threads=1, slots=2))
    asked = prompts(source, 4)
    alone = [greedy(session, [prompt], 6)[0].ids for prompt in asked]
    assert [answer.ids for answer in greedy(session, asked, 6)] == alone
    if weights == "float32":
        ours = find_card("engines", "transformers")().open(source, Opening(threads=1))
        assert [answer.ids for answer in greedy(ours, asked, 6)] == alone
    session.close()


def test_other_heads_are_refused(tmp_path: Path) -> None:
    _need("onnxruntime", "onnxscript")
    source = saved("bert", tmp_path / "model")
    file = source / "lcc_card.json"
    told_before = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**told_before, "head": "paired"}), encoding="utf-8")
    with pytest.raises(RecipeError, match=r"with a causal, seq2seq, classify, .* not paired"):
        exported(source, tmp_path / "out", "onnx")


SIGNALLED = """
import gc, os, signal, sys
from pathlib import Path
from lcc.config.cards import find_card
from lcc.inference.session import Opening
engine = find_card("engines", "openvino")()
first, second = (engine.open(Path(sys.argv[1]), Opening(threads=1)) for _ in range(2))
first.close(); del first; gc.collect()
second.close(); del second; gc.collect()
signal.signal(signal.SIGTERM, lambda number, frame: print("asked to stop"))
os.kill(os.getpid(), signal.SIGTERM)
"""


def test_a_request_to_stop_after_two_openvino_sessions_is_heard(tmp_path: Path) -> None:
    _need("openvino", "nncf")
    exported(saved("bert", tmp_path / "model"), tmp_path / "out", "openvino", weights="float32")
    command = [sys.executable, "-W", "ignore", "-c", SIGNALLED, str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "asked to stop\n"), done.stderr
