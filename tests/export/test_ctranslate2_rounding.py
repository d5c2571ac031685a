"""What eight bits explain is what the same rounding costs in PyTorch, a quarter more at most."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exports import exported, prompts, saved, told

from lcc.core.errors import GateError
from lcc.export.ctranslate2 import EightBitConv1d, EightBitLinear, by_row
from lcc.export.publish import FACTOR, LEAST, ParityTrial, publish, tolerance
from lcc.methods.exporters.ctranslate2 import Ctranslate2
from lcc.models.bundle import open_bundle


def test_rows_take_255_numbers_and_zeros_stay() -> None:
    row = torch.tensor([[1.0, -2.0, 0.015, 0.0], [0.0, 0.0, 0.0, 0.0]])
    codes = by_row(row) / (2.0 / 127)
    assert torch.allclose(codes[0], torch.tensor([64.0, -127.0, 1.0, 0.0]), atol=1e-5)
    assert not by_row(row)[1].any()
    assert torch.allclose(by_row(by_row(row)), by_row(row))


def test_products_round_weights_by_row_and_inputs_by_token() -> None:
    torch.manual_seed(0)
    weight, inputs = torch.randn(4, 8), torch.randn(3, 8)
    slow = torch.stack(
        [
            torch.stack(
                [sum(by_row(x[None])[0, i] * by_row(w[None])[0, i] for i in range(8)) for w in weight]
            )
            for x in inputs
        ]
    )
    assert torch.allclose(EightBitLinear(weight, None)(inputs), slow, atol=1e-5)
    conv = torch.nn.Conv1d(2, 3, 3, stride=2, padding=1)
    sound = torch.randn(1, 2, 10)
    with torch.no_grad():
        rounded, exact = EightBitConv1d(conv)(sound), conv(sound)
    assert rounded.shape == exact.shape and 0 < (rounded - exact).abs().max() < 0.05


def large_inputs(folder: Path) -> Path:
    """A Llama three of whose hidden values are large in every token, as trained ones have them."""
    source = saved("llama", folder)
    module = open_bundle(source).load()
    state = module.state_dict()
    for name in state:
        if name.endswith(("input_layernorm.weight", "post_attention_layernorm.weight")):
            state[name][:3] = 60.0
    module.save_pretrained(source)
    return source


def test_a_model_with_large_inputs_passes_by_what_its_rounding_costs(tmp_path: Path) -> None:
    pytest.importorskip("ctranslate2", reason="CTranslate2 is not installed: lcc[ctranslate2]")
    made = exported(large_inputs(tmp_path / "model"), tmp_path / "out", "ctranslate2")
    parity = made.parity
    assert parity.rehearsed_error is not None and parity.rehearsed_error > 0.05, told(parity)
    assert abs(parity.logit_error / parity.rehearsed_error - 1) < 0.1, told(parity)
    assert parity.tolerance == pytest.approx(FACTOR * parity.rehearsed_error)
    report = json.loads((tmp_path / "out" / "export.json").read_text())
    assert report["parity"]["rehearsed_error"] == parity.rehearsed_error


class Coarse(Ctranslate2):
    """The real exporter, which then drops the last four bits of a layer's codes."""

    def write(self, source: Path, target: Path) -> Mapping[str, Any]:
        facts, file = super().write(source, target), target / "model.bin"
        whole = bytearray(file.read_bytes())
        first = whole.index(b"layer_1/ffn/linear_0/weight") + 100
        codes = np.frombuffer(bytes(whole[first : first + 8000]), np.int8)
        whole[first : first + 8000] = (codes // 16 * 16).astype(np.int8).tobytes()
        file.write_bytes(bytes(whole))
        return facts


def test_an_error_that_rounding_does_not_explain_closes_the_gate(tmp_path: Path) -> None:
    pytest.importorskip("ctranslate2", reason="CTranslate2 is not installed: lcc[ctranslate2]")
    source = saved("llama", tmp_path / "model")
    trial = ParityTrial(prompts=prompts(source, 16), new_tokens=4)
    with pytest.raises(GateError, match=r"more than the 0\.0[12].* that the format explains") as said:
        publish(source, tmp_path / "out", Coarse(), trial=trial)
    assert said.value.exit_code == 9
    kept = json.loads((tmp_path / "out.failed" / "export.json").read_text())["parity"]
    assert kept["tolerance"] < kept["logit_error"] < 0.1


def test_what_is_allowed_has_bounds() -> None:
    exporter = Ctranslate2()
    assert tolerance(exporter, None) == tolerance(exporter, 9.0) == 0.4
    assert tolerance(exporter, 0.0) == LEAST
    assert tolerance(exporter, 0.1) == pytest.approx(0.125)
