"""Checkpoints: saved for strangers, refused when unsafe, gated after reloading."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from lcc.core.errors import GateError, IntegrityError, RecipeError, SafetyError
from lcc.core.types import AUTO_CLASSES, Head
from lcc.models.bundle import Bundle, open_bundle
from lcc.models.card import Card, read_card
from lcc.models.checkpoint import save
from lcc.models.reload_check import probe_logits, reload_gate

SMALL = dict(vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
FAMILIES: dict[Head, Any] = {
    "causal": lambda: transformers.LlamaConfig(**SMALL, num_key_value_heads=2, tie_word_embeddings=True),
    "seq2seq": lambda: transformers.T5Config(
        vocab_size=300, d_model=32, d_ff=64, d_kv=8, num_layers=2, num_heads=4, decoder_start_token_id=0
    ),
    "classify": lambda: transformers.BertConfig(**SMALL),
    "embed": lambda: transformers.BertConfig(**SMALL),
}


def fresh(head: Head = "causal", dtype: str = "bfloat16") -> Bundle:
    torch.manual_seed(0)
    module = getattr(transformers, AUTO_CLASSES[head]).from_config(FAMILIES[head]()).eval()
    return Bundle(Card(name="m", auto_class=AUTO_CLASSES[head], head=head, dtype=dtype), None, module)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save(fresh(), tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("head", FAMILIES)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_saved_model_reloads_to_the_same_logits(head: Head, dtype: str, tmp_path: Path) -> None:
    bundle = fresh(head, dtype)
    save(bundle, tmp_path / "model")
    measures = reload_gate(bundle, tmp_path / "model", parent=None)
    # Memory alignment may change the order of sums in the last bit.
    assert measures["reload_max_logit_difference"].value < 1e-6


def test_saving_leaves_the_model_in_memory_as_it_was(tmp_path: Path) -> None:
    bundle = fresh()
    before = {name: tensor.clone() for name, tensor in bundle.module.state_dict().items()}
    save(bundle, tmp_path / "model")
    after = bundle.module.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert after["model.norm.weight"].dtype == torch.float32


def test_files_are_safetensors_that_everybody_may_read(folder: Path) -> None:
    modes = {file.name: oct(file.stat().st_mode)[-3:] for file in folder.iterdir()}
    assert modes["model.safetensors"] == "644" and set(modes.values()) == {"644"}
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")  # tied
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"


def test_a_card_is_inferred_where_none_was_written(folder: Path) -> None:
    written = read_card(folder)
    (folder / "lcc_card.json").unlink()
    assert read_card(folder) == Card(**{**vars_of(written), "name": "model"})


def vars_of(card: Card) -> dict[str, Any]:
    return {name: getattr(card, name) for name in card.__dataclass_fields__}


def test_an_unchanged_model_is_copied_byte_for_byte(folder: Path, tmp_path: Path) -> None:
    save(open_bundle(folder), tmp_path / "copy")
    name = "model.safetensors"
    assert (folder / name).read_bytes() == (tmp_path / "copy" / name).read_bytes()


def test_weights_that_are_only_pickled_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(SafetyError, match=r"pytorch_model\.bin.*convert them to safetensors"):
        open_bundle(folder)


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_a_model_with_code_of_its_own_is_refused(folder: Path, file: str) -> None:
    path = folder / file
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content | {"auto_map": {"AutoConfig": "evil.Config"}}))
    with pytest.raises(SafetyError, match="never run"):
        open_bundle(folder)


def test_an_adapter_beside_the_weights_is_refused(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(SafetyError, match="a second time"):
        open_bundle(folder)


def test_a_truncated_file_is_named(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(IntegrityError, match=r"model\.safetensors.*promises"):
        open_bundle(folder)


def test_absent_tensors_are_not_drawn_at_random(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.0.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(IntegrityError, match="1 tensors are missing"):
        open_bundle(folder).load()


def test_an_unknown_architecture_is_told_in_a_sentence(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "wonder"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(RecipeError, match="'wonder' is not known"):
        open_bundle(folder).load()


def test_a_folder_without_config_is_told_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"no config\.json"):
        open_bundle(tmp_path)
    with pytest.raises(RecipeError, match="no such model folder"):
        open_bundle(tmp_path / "nowhere")


def test_the_gate_sees_weights_that_differ_from_memory(folder: Path) -> None:
    bundle = open_bundle(folder)
    with torch.no_grad():
        bundle.load().model.layers[0].mlp.up_proj.weight[0] += 3.0
    with pytest.raises(GateError, match="reloaded logits differ"):
        reload_gate(bundle, folder, parent=None)


def test_the_gate_sees_non_finite_tensors(tmp_path: Path) -> None:
    bundle = fresh()
    with torch.no_grad():
        bundle.module.model.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
    save(bundle, tmp_path / "model")
    with pytest.raises(GateError, match=r"up_proj.*non-finite"):
        reload_gate(bundle, tmp_path / "model", parent=None)


def test_only_a_matrix_that_became_constant_fails_the_gate(folder: Path, tmp_path: Path) -> None:
    bundle = open_bundle(folder)
    with torch.no_grad():
        bundle.load().model.layers[0].mlp.up_proj.weight.zero_()
    save(bundle, tmp_path / "new")
    with pytest.raises(GateError, match="become constant"):
        reload_gate(bundle, tmp_path / "new", parent=folder)
    shutil.copytree(tmp_path / "new", tmp_path / "parent")
    reload_gate(bundle, tmp_path / "new", parent=tmp_path / "parent")


def test_a_stranger_gets_the_logits_of_the_bundle(folder: Path) -> None:
    stranger = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ours = probe_logits(open_bundle(folder).load())
    assert torch.equal(probe_logits(stranger.eval()), ours)
