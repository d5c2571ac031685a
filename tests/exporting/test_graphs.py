"""Graphs say in ONNX Runtime and OpenVINO what their source says in PyTorch."""

from __future__ import annotations

from pathlib import Path

import pytest
from exports import exported, prompts, saved, told

from lcc.core.catalog import card
from lcc.core.errors import DataError, RecipeError
from lcc.inference.answers import greedy
from lcc.inference.requests import Request
from lcc.inference.sessions import Opening

# Threads of the runtimes are still ending while torch's warnings about exporters are told.
pytestmark = pytest.mark.filterwarnings("ignore")


def _need(*packages: str) -> None:
    for package in packages:
        pytest.importorskip(
            package, reason=f"{package} is not installed: see lcc[onnx], [openvino]"
        )


def test_a_decoder_is_the_same_in_onnx_runtime_and_rows_join(tmp_path: Path) -> None:
    _need("onnxruntime", "onnxscript")
    source = saved("llama", tmp_path / "model")
    made = exported(source, tmp_path / "out", "onnx")
    assert made.parity.logit_error < 1e-4 and made.parity.agreement == 1.0, told(made.parity)
    assert [f.name for f in (tmp_path / "out" / "graph").glob("*.onnx")] == ["model.onnx"]
    session = card("engines", "onnxruntime")().open(tmp_path / "out", Opening(threads=1, slots=2))
    asked = prompts(source, 4)
    assert [a.ids for a in greedy(session, asked, 4)] == [
        greedy(session, [prompt], 4)[0].ids for prompt in asked
    ]
    session.close()


def test_a_classifier_is_the_same_at_eight_bits(tmp_path: Path) -> None:
    _need("onnxruntime", "onnxscript")
    made = exported(saved("bert", tmp_path / "model"), tmp_path / "out", "onnx", weights="int8")
    assert made.parity.kind == "labels" and made.parity.logit_error < 0.1, told(made.parity)
    session = card("engines", "onnxruntime")().open(tmp_path / "out", Opening(threads=1))
    with pytest.raises(DataError, match="writes no answers"):
        session.start(Request((5, 6), 2))


def test_a_decoder_is_the_same_in_openvino_at_eight_bits(tmp_path: Path) -> None:
    _need("openvino", "nncf")
    made = exported(
        saved("qwen3", tmp_path / "model"), tmp_path / "out", "openvino", weights="int8"
    )
    assert 0 < made.parity.logit_error < 0.05, told(made.parity)


def test_other_heads_are_refused(tmp_path: Path) -> None:
    _need("onnxruntime", "onnxscript")
    with pytest.raises(RecipeError, match="graphs are made of models with a causal, classify"):
        exported(saved("t5", tmp_path / "model"), tmp_path / "out", "onnx")
