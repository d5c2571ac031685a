"""Stored weights give the products of the numbers that they mean, and the answers of dense ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import compressing as tiny
import pytest
import speakers
import torch
from speakers import answered, expected, ids_of, prompts, session

from lcc.config.cards import decode
from lcc.inference import quantized_linear
from lcc.inference.quantized_linear import (
    GridWeights,
    HalfWeights,
    PackedLinear,
    StoredMatrix,
    as_stored,
    num_parameters,
)
from lcc.inference.session import Opening, Request
from lcc.methods.engines.transformers import Transformers
from lcc.models.bundle import Bundle, open_bundle
from lcc.models.card import Card
from lcc.models.checkpoint import save
from lcc.stages.quantize import Quantize

N, K = 131, 96


def weights(kind: str) -> tuple[StoredMatrix, torch.Tensor]:
    """The stored form, and slowly what it means."""
    torch.manual_seed(0)
    if kind == "bf16":
        dense = torch.randn(N, K).bfloat16().float()
        return HalfWeights(dense), dense
    bits, has_zero = int(kind[3]), kind.endswith("z")
    low = -(1 << (bits - 1))
    codes = torch.randint(low, -low, (N, K), dtype=torch.int8)
    scale = torch.rand(N, 3) + 0.1
    zero = torch.randint(low, -low, (N, 3), dtype=torch.int8) if has_zero else None
    dense = torch.empty(N, K)
    for n in range(N):
        for k in range(K):
            minus = 0 if zero is None else int(zero[n, k // 32])
            dense[n, k] = (int(codes[n, k]) - minus) * float(scale[n, k // 32])
    return GridWeights(codes, scale, zero, bits), dense


@pytest.mark.parametrize(
    "kind, threads",
    [("bf16", 1), ("bf16", 2), ("int8", 1), ("int8z", 1), ("int4", 1), ("int4z", 2), ("int3z", 1)],
)
def test_a_product_is_that_of_the_meant_numbers(
    kind: str, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantized_linear, "PARALLEL", 1)
    stored, dense = weights(kind)
    layer = PackedLinear(stored, torch.arange(N).float())
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for rows in (1, 2, 5, quantized_linear.FEW, quantized_linear.FEW + 1):
            inputs = torch.randn(rows, 1, K)
            wanted = inputs.double() @ dense.T.double() + torch.arange(N)
            assert torch.allclose(layer(inputs).double(), wanted, rtol=1e-4, atol=1e-3)
    finally:
        torch.set_num_threads(before)
    ids = torch.tensor([[3, 130, 3], [0, 7, 64]])
    assert torch.equal(stored.looked_up(ids), dense[ids])


def stored_model(family: str, folder: Path, **options: Any) -> Path:
    """A speaker in bfloat16, or quantized as the options say."""
    module = getattr(speakers, family)()
    head = "seq2seq" if module.config.is_encoder_decoder else "causal"
    kind = "AutoModelForSeq2SeqLM" if head == "seq2seq" else "AutoModelForCausalLM"
    bundle = Bundle(Card(name="tiny", auto_class=kind, head=head, dtype="bfloat16"), module=module)  # type: ignore[arg-type]
    bundle.tokenizer = speakers.tokenizer()
    if options:
        decode(Quantize, options).run(bundle, tiny.context(folder / "step"))
    save(bundle, folder / "model")
    return folder / "model"


QUANTIZED = {"quantizer": "nearest", "group_size": 16}


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
def test_a_model_in_bfloat16_says_what_it_says_in_float32(family: str, tmp_path: Path) -> None:
    folder = stored_model(family, tmp_path)
    wanted = expected(open_bundle(folder).load(), prompts(5))
    size = sum(p.numel() for p in open_bundle(folder).load().parameters())
    module, said = as_stored(open_bundle(folder), measure=False)
    assert "bfloat16, as stored" in said
    assert num_parameters(module) == size
    assert sum(isinstance(layer, PackedLinear) for layer in module.modules()) >= 8
    told = answered(session(module), [Request(tuple(row), 20) for row in prompts(5)], arriving=2)
    assert [ids_of(steps) for steps in told] == [one.ids for one in wanted]


@pytest.mark.parametrize(
    "family, options",
    [
        ("llama", {"bits": 8}),
        ("gemma3", {"bits": 4, "symmetric": False}),
        ("t5", {"bits": 8}),
        ("llama", {"bits": 4, "include_embeddings": True, "tied": True}),
        ("llama", {"bits": 3, "accept_damage": True}),
    ],
)
def test_a_packed_model_keeps_its_codes_and_its_answers(
    family: str, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if options.pop("tied", False):
        make = speakers.llama
        monkeypatch.setattr(speakers, "llama", lambda: make(tie_word_embeddings=True))
    folder = stored_model(family, tmp_path, **QUANTIZED, **options)
    dense = Transformers(weights="dense").open(folder, Opening(threads=1))
    stored = Transformers(weights="stored").open(folder, Opening(threads=1))
    kinds = [
        type(layer.weights)
        for layer in stored.module.modules()  # type: ignore[attr-defined]
        if isinstance(layer, PackedLinear)
    ]
    assert kinds.count(GridWeights) >= (15 if options.get("include_embeddings") else 14)
    rows = prompts(6)
    # A dense load may round codes times scales to bfloat16.
    give_meaning(dense.module, stored.module)  # type: ignore[attr-defined]
    for mine, theirs in zip(stored.logits(rows), dense.logits(rows), strict=True):
        assert abs(mine - theirs).max() < 1e-4 * abs(theirs).max()
    requests = [Request(tuple(row), 20) for row in rows]
    said = [[ids_of(steps) for steps in answered(one, requests)] for one in (stored, dense)]  # type: ignore[arg-type]
    assert said[0] == said[1]


def give_meaning(dense: Any, stored: Any) -> None:
    """Put the numbers that the stored weights mean into the dense module."""
    for name, layer in stored.named_modules():
        if isinstance(layer, PackedLinear):
            size = layer.weights.shape[0] * layer.weights.shape[1]
            meant = layer.weights.widened(slice(None), torch.empty(size))
            dense.get_submodule(name).weight.data.copy_(meant)


def test_a_small_model_is_left_as_it_is(tmp_path: Path) -> None:
    folder = stored_model("llama", tmp_path)
    opened = Transformers().open(folder, Opening(threads=1))
    assert opened.note == ""  # type: ignore[attr-defined]
