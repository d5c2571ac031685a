"""The adapter makes up for quantization, and packed base and adapter load without lcc."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import compressing as tiny
import pytest
import torch

from lcc.calibration.calibrate import Calibration, InputGroup
from lcc.calibration.statistics import Sums
from lcc.compression.lowrank import Compensation
from lcc.compression.quantization_grid import IntGrid
from lcc.compression.quantize import Rounding
from lcc.config.cards import decode
from lcc.core.errors import RecipeError
from lcc.methods.quantizers.nearest import Nearest
from lcc.models.bundle import open_bundle
from lcc.models.card import read_card
from lcc.models.checkpoint import save
from lcc.models.reload_check import reload_gate
from lcc.stages.compensate import Compensate

STRANGER = """
import sys
sys.modules["lcc"] = None
import json, torch, transformers, peft
folder = sys.argv[1]
base = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
model = peft.PeftModel.from_pretrained(base, folder + "/adapter").eval()
with torch.no_grad():
    print(json.dumps(model(input_ids=torch.arange(5, 17).view(2, 6)).logits.flatten().tolist()))
"""


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=torch.arange(5, 17).view(2, 6)).logits
    return found


def correlated(width: int) -> Any:
    torch.manual_seed(0)
    x = torch.randn(400, width) * torch.logspace(0, -2, width) @ torch.randn(width, width)
    sums = Sums(gram=True)
    sums.add(x)
    return sums.stats()


def compensation(weight: torch.Tensor, stats: Any, *, rank: int, turns: int = 1) -> Any:
    layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight.data = weight.clone()
    grid = IntGrid(4, None, "float32")
    rounding = Rounding(decode(Nearest, {}), {"a": grid}, facts={}, packed={})
    found = Compensation(rounding, rank, turns, 0.0, "float32")
    found.add(InputGroup({"a": layer}, stats))
    up, down = found.changes["a"]
    return found, layer.weight.data - up @ down


def test_what_is_left_is_the_tail_that_no_change_of_this_rank_can_reach() -> None:
    stats, weight = correlated(12), torch.randn(8, 12)
    found, base = compensation(weight, stats, rank=3)
    scale = weight.abs().amax(1) * 2 / 15  # of the symmetric grid of four bits
    torch.testing.assert_close(base / scale[:, None], (base / scale[:, None]).round(), atol=1e-3, rtol=0)
    error = (weight - base).double()
    values, vectors = torch.linalg.eigh(stats.gram.double())
    tail = torch.linalg.svdvals(error @ (vectors * values.clamp(min=0).sqrt()))[3:].square().sum()
    whole = ((weight.double() @ stats.gram.double()) * weight.double()).sum()
    alone, left = found.errors["a"]
    assert left == pytest.approx(float(tail / whole), rel=1e-3)
    assert left < 0.5 * alone


def test_more_rank_and_more_turns_leave_less() -> None:
    stats, weight = correlated(16), torch.randn(12, 16)
    left = {r: compensation(weight, stats, rank=r)[0].errors["a"][1] for r in (1, 4, 8)}
    assert left[1] > left[4] > left[8]
    turned = compensation(weight, stats, rank=4, turns=4)[0].errors["a"][1]
    assert turned <= left[4]


def compensated(folder: Path, model: Any = None, **options: Any) -> tuple[Any, Any]:
    bundle = tiny.bundle(model or tiny.llama())
    save(bundle, folder / "parent" / "model")
    bundle = open_bundle(folder / "parent" / "model")
    options = {"group_size": 16, "rank": 8, "calibration": {"samples": 40}, **options}
    task = tiny.TextTask(head="classify" if bundle.card.head == "classify" else "causal")
    outcome = decode(Compensate, options).run(bundle, tiny.context(folder, task=task))
    save(bundle, folder / "child" / "model")
    return bundle, outcome


def test_the_base_and_its_adapter_load_without_lcc_and_say_the_same(tmp_path: Path) -> None:
    bundle, outcome = compensated(tmp_path)
    folder = tmp_path / "child" / "model"
    card = read_card(folder)
    assert card.adapter and card.requires == ("compressed-tensors", "peft")
    assert card.loads_with == "transformers"
    found = reload_gate(bundle, folder, parent=tmp_path / "parent" / "model")
    assert found["native_max_logit_difference"].value < 0.05
    command = [sys.executable, "-I", "-c", STRANGER, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    theirs = torch.tensor(json.loads(done.stdout.splitlines()[-1]))
    torch.testing.assert_close(theirs, logits(bundle.module).flatten(), atol=1e-3, rtol=1e-3)
    for native in (False, True):
        ours = logits(open_bundle(folder).load(native=native)).flatten()
        torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=1e-4)
    measures = {name: measure.value for name, measure in outcome.measures.items()}
    assert measures["output_error"] < 0.7 * measures["output_error_uncompensated"]
    size = (folder / "adapter" / "adapter_model.safetensors").stat().st_size
    assert measures["adapter_bytes"] < size < measures["adapter_bytes"] + 10_000


def test_nf4_can_be_the_base(tmp_path: Path) -> None:
    model = tiny.llama(hidden_size=64, intermediate_size=128, head_dim=16)
    bundle, _ = compensated(tmp_path, model, quantizer="nf4", group_size="auto")
    folder = tmp_path / "child" / "model"
    found = reload_gate(bundle, folder, parent=tmp_path / "parent" / "model")
    assert {"reload_max_logit_difference", "native_max_logit_difference"} <= found.keys()


FAMILIES = {"qwen3": 14, "gemma3": 14, "bert": 12, "t5": 32, "marian": 16}


@pytest.mark.parametrize("family", FAMILIES)
def test_other_families_too(family: str, tmp_path: Path) -> None:
    model = tiny.t5("gated-gelu") if family == "t5" else getattr(tiny, family)()
    bundle, outcome = compensated(tmp_path, model, quantizer="scale_search")
    reload_gate(bundle, tmp_path / "child" / "model", parent=tmp_path / "parent" / "model")
    assert outcome.measures["num_quantized_layers"].value == FAMILIES[family]
    measures = {name: measure.value for name, measure in outcome.measures.items()}
    assert measures["output_error"] < measures["output_error_uncompensated"]


def test_gpt2_has_no_layer_that_the_format_stores_and_says_so(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="holds no linear layers that compressed-tensors"):
        compensated(tmp_path, tiny.gpt2())


def test_a_model_with_its_adapter_is_copied_whole(tmp_path: Path) -> None:
    compensated(tmp_path)
    again = open_bundle(tmp_path / "child" / "model")
    save(again, tmp_path / "copy" / "model")
    copied = open_bundle(tmp_path / "copy" / "model").load()
    assert torch.equal(logits(copied), logits(again.load()))


def test_what_it_cannot_make_up_for_is_refused() -> None:
    config = {"hidden_size": 64, "tie_word_embeddings": False}
    with pytest.raises(RecipeError, match=r"compensate.include_head: only weights of layers"):
        decode(Compensate, {"include_head": True}).check(config)
    sequential = Compensate(calibration=Calibration(mode="sequential"))
    with pytest.raises(RecipeError, match=r"use calibration.mode=dense"):
        sequential.check(config)
