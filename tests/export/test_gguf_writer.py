"""A GGUF file says in llama.cpp what its source says in PyTorch; our own grids survive in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import compressing as tiny
import numpy as np
import pytest
import quantizing
import torch
from exports import DECODERS, SIZES, exported, prompts, saved, told

from lcc.config.cards import find_card
from lcc.core.errors import GateError, RecipeError
from lcc.export.gguf_writer import TypeMixture, fitting, rounded
from lcc.inference.session import Opening, Request, answers, greedy
from lcc.models.bundle import open_bundle
from lcc.models.safetensors_io import StoredTensors
from lcc.tasks.task import Sampling

bindings = pytest.importorskip(
    "cyllama.llama.llama_cpp", reason="llama.cpp is not installed: pip install 'lcc[llamacpp]'"
)
llama_cpp: Any = pytest.importorskip("lcc.inference.backends.llama_cpp")
gguf = pytest.importorskip("gguf")


@pytest.mark.parametrize("family", DECODERS)
def test_a_dense_model_is_the_same_in_llama_cpp(family: str, tmp_path: Path) -> None:
    made = exported(saved(family, tmp_path / "model"), tmp_path / "out", "gguf")
    assert made.parity.logit_error < 4e-3, told(made.parity)
    assert made.parity.unexplained_share == 0 and made.parity.same_splits == 1.0
    assert set(made.facts["bytes_of_type"]) == {"F16", "F32"}


def _windows(pattern: str) -> dict[str, Any]:
    """Layers that see a window (w) or everything (e)."""
    words = {"w": "sliding_attention", "e": "full_attention"}
    return {"num_hidden_layers": len(pattern), "layer_types": [words[c] for c in pattern]}


@pytest.mark.parametrize("pattern", ["wewe", "wwewwew", "eee"])
def test_windows_of_another_period_are_kept(pattern: str, tmp_path: Path) -> None:
    source = saved("gemma3", tmp_path / "model", **_windows(pattern))
    assert exported(source, tmp_path / "out", "gguf").parity.logit_error < 4e-3


@pytest.mark.parametrize("pattern", ["ewwe", "ww"])
def test_windows_without_a_rule_are_refused(pattern: str, tmp_path: Path) -> None:
    source = saved("gemma3", tmp_path / "model", **_windows(pattern))
    with pytest.raises(RecipeError, match="lets every n-th layer see everything"):
        exported(source, tmp_path / "out", "gguf")


def test_biases_and_stretched_positions_are_written(tmp_path: Path) -> None:
    rope = {
        "rope_type": "llama3",
        "rope_theta": 10_000.0,
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    }
    source = saved("llama", tmp_path / "model", attention_bias=True, rope_parameters=rope)
    assert exported(source, tmp_path / "out", "gguf").parity.logit_error < 4e-3


def _tensors(folder: Path) -> dict[str, Any]:
    reader = gguf.GGUFReader(folder / "model.gguf")
    return {t.name: t for t in reader.tensors}


@pytest.mark.parametrize(
    "bits, symmetric, kind", [(4, True, "Q4_0"), (4, False, "Q4_1"), (3, True, "Q4_0"), (8, True, "Q8_0")]
)
def test_the_codes_of_a_packed_model_are_taken_over(
    bits: int, symmetric: bool, kind: str, tmp_path: Path
) -> None:
    quantizing.quantized(
        tiny.llama(**SIZES),
        tmp_path,
        bits=bits,
        symmetric=symmetric,
        quantizer="nearest",
        group_size=32,
        accept_damage=True,
    )
    made = exported(tmp_path / "model", tmp_path / "out", "gguf")
    assert made.facts["grids_kept"] == 14 and not made.facts["grids_rounded_anew"]
    assert made.parity.logit_error < 0.05, told(made.parity)
    found = _tensors(tmp_path / "out")["blk.0.ffn_down.weight"]
    assert found.tensor_type.name == kind
    layer = "model.layers.0.mlp.down_proj"
    expected = _meant(tmp_path / "model", layer, bits)
    got = gguf.quants.dequantize(found.data, found.tensor_type)
    # The least value of an asymmetric block is rounded to a float16 of its own.
    assert np.allclose(got, expected, rtol=2e-3, atol=1e-6 if symmetric else 5e-5)


def _meant(folder: Path, layer: str, bits: int) -> np.ndarray[Any, Any]:
    """What packed codes mean, by compressed-tensors' own functions, one code at a time."""
    from compressed_tensors.compressors.pack_quantized import unpack_from_int32

    stored = StoredTensors(folder)
    scale = stored.read(f"{layer}.weight_scale").float()
    shape = torch.Size(int(n) for n in stored.read(f"{layer}.weight_shape"))
    codes = unpack_from_int32(stored.read(f"{layer}.weight_packed"), bits, shape).float()
    name = f"{layer}.weight_zero_point"
    zero = torch.zeros_like(scale)
    if name in stored.entries:
        zero = unpack_from_int32(stored.read(name), bits, scale.shape, packed_dim=0).float()
    out = torch.empty(shape)
    size = shape[1] // scale.shape[1]
    for column in range(shape[1]):
        group = column // size
        out[:, column] = (codes[:, column] - zero[:, group]) * scale[:, group]
    return out.numpy()


def test_a_grid_that_no_block_holds_is_rounded_anew_and_named(tmp_path: Path) -> None:
    quantizing.quantized(tiny.llama(**SIZES), tmp_path, bits=8, quantizer="nearest", group_size=16)
    made = exported(tmp_path / "model", tmp_path / "out", "gguf")
    assert made.facts["grids_kept"] == 0 and len(made.facts["grids_rounded_anew"]) == 14


def test_rows_that_do_not_divide_are_reported_with_their_type(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    made = exported(saved("qwen3", tmp_path / "model"), tmp_path / "out", "gguf", type="q4_k_m")
    others = made.facts["other_types"]
    assert others["blk.0.ffn_gate.weight"] == "Q5_0 instead of Q4_K: rows of 64"
    assert "blk.0.ffn_down.weight" not in others
    readme = (tmp_path / "out" / "README.md").read_text()
    assert "other types than asked for" in readme and 'pipeline_tag: "text-generation"' in readme


def test_importance_moves_errors_to_inputs_that_matter_less() -> None:
    pytest.importorskip("xllamacpp")
    draws = np.random.default_rng(0)
    weight = draws.standard_normal((16, 512)).astype(np.float32)
    importance = np.where(np.arange(512) % 8 == 0, 100.0, 0.01).astype(np.float32)
    errors = []
    for given in (None, importance):
        blocks = rounded(weight, "Q4_K", importance=given)
        read = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType.Q4_K)
        errors.append(float((np.square(read - weight) * importance).sum()))
        assert given is not None or np.abs(read - weight).max() < 0.3
    assert errors[1] < 0.8 * errors[0]


def test_statistics_of_calibration_weigh_k_quants(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    source = saved("llama", tmp_path / "model", hidden_size=256)
    stats = quantizing.calibrated(open_bundle(source).load(), tmp_path)
    made = exported(source, tmp_path / "out", "gguf", type="q4_k_m", importance=str(stats))
    assert made.facts["weighed_by_importance"] == 14
    narrow = saved("llama", tmp_path / "narrow")
    with pytest.raises(RecipeError, match="the statistics are another model's"):
        exported(narrow, tmp_path / "other", "gguf", type="q4_k_m", importance=str(stats))


@pytest.mark.parametrize("number, kind", [(0, "Q6_K"), (1, "Q4_K"), (3, "Q6_K"), (7, "Q6_K")])
def test_the_mixture_gives_some_layers_more_bits(number: int, kind: str) -> None:
    mixture = TypeMixture("Q4_K_M", num_blocks=8, tied=True)
    assert mixture.wanted(f"blk.{number}.ffn_down.weight", (64, 256)) == kind
    assert mixture.wanted("token_embd.weight", (400, 256)) == "Q6_K"
    assert mixture.wanted("output_norm.weight", (256,)) == "F32"
    assert fitting("Q6_K", 576) == "Q8_0" and fitting("Q4_0", 40) == "F16"


def test_other_families_are_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="format gguf: GGUF is written for causal models"):
        exported(saved("bert", tmp_path / "model"), tmp_path / "out", "gguf")


def test_answers_that_join_one_another_are_those_given_alone(tmp_path: Path) -> None:
    source = saved("llama", tmp_path / "model")
    exported(source, tmp_path / "out", "gguf", type="f32")
    asked = prompts(source, 10)
    session = find_card("engines", "llamacpp")().open(tmp_path / "out", Opening(threads=1, slots=3))
    together = [answer.ids for answer in greedy(session, asked, 6)]
    alone = [greedy(session, [prompt], 6)[0].ids for prompt in asked]
    drawn = [
        answers(session, [Request(tuple(asked[0]), 6, Sampling(temperature=1.0), seed=s)])[0].ids
        for s in (1, 1, 2)
    ]
    session.close()
    assert together == alone
    assert drawn[0] == drawn[1] != drawn[2]


def test_sequences_that_run_together_are_given_in_order_and_lie_side_by_side(tmp_path: Path) -> None:
    exported(saved("llama", tmp_path / "model"), tmp_path / "out", "gguf", type="f32")
    session = find_card("engines", "llamacpp")().open(
        tmp_path / "out", Opening(threads=1, slots=6, prefix_mb=1)
    )
    runner, given = session._runner, list[int]()

    class Recorded(bindings.LlamaBatch):  # type: ignore[misc]
        def add(self, token: int, position: int, sequences: list[int], last: bool) -> None:
            given.extend(sequences)
            super().add(token, position, sequences, last)

    runner._batch = Recorded(n_tokens=64, embd=0, n_seq_max=1)
    runner.take([[5, 6], [7, 8], [9, 10]], [True] * 3)
    runner.remove(0)
    given.clear()
    runner.advance([1, 2], [True] * 2)
    assert given == [1, 2]
    runner.take([[11, 12]], [True])
    given.clear()
    assert len(runner.advance([3, 4, 5], [True] * 3)) == 3
    assert given in ([0, 1, 2], [1, 2, 3])
    session.close()


def test_a_single_token_gets_the_number_of_threads_that_is_fastest_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported(saved("llama", tmp_path / "model"), tmp_path / "out", "gguf", type="f32")
    clock, run, chosen = [0.0], llama_cpp.LlamaRunner._run, dict[int, tuple[int, int]]()

    def costly(runner: Any, context: Any) -> None:
        run(runner, context)
        num = context.n_threads()
        clock[0] += 1 / num if num <= fastest else 2.0

    monkeypatch.setattr(llama_cpp.LlamaRunner, "_run", costly)
    monkeypatch.setattr("lcc.inference.backends.llama_cpp.time.perf_counter", lambda: clock[0])
    for fastest in (1, 2, 4):
        session = find_card("engines", "llamacpp")().open(tmp_path / "out", Opening(threads=4))
        context = session._runner._context
        chosen[fastest] = (context.n_threads(), context.n_threads_batch())
        assert len(greedy(session, [[5, 6, 7]], 3)[0].ids) <= 3
        session.close()
    assert chosen == {1: (1, 4), 2: (2, 4), 4: (4, 4)}


@pytest.mark.parametrize(
    "family, changes",
    [
        ("qwen3", {}),
        ("gemma3", {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]}),
    ],
)
def test_a_conversation_goes_on_from_what_was_read(
    family: str, changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported(saved(family, tmp_path / "model", **changes), tmp_path / "out", "gguf", type="f32")
    engine = find_card("engines", "llamacpp")()
    without, keeping = (
        engine.open(tmp_path / "out", Opening(threads=1, slots=2, prefix_mb=kept)) for kept in (0, 1)
    )
    read, run = list[int](), llama_cpp.LlamaRunner._run

    def counted(runner: Any, context: Any) -> None:
        if runner is keeping._runner:
            read.append(runner._batch.n_tokens)
        run(runner, context)

    monkeypatch.setattr(llama_cpp.LlamaRunner, "_run", counted)
    talks = [list(range(5, 45)), list(range(60, 90))]
    for turn in range(3):
        for talk in talks:
            answer = greedy(without, [talk], 5)[0].ids
            assert greedy(keeping, [talk], 5)[0].ids == answer
            talk += [*answer, 7 + turn, 9]
    # Of an answer the last token was not read when it was said; the user says two.
    assert [n for n in read if n > 1] == [40, 30, 3, 3, 3, 3]
    without.close()
    keeping.close()


def test_the_engines_own_choice_is_the_likeliest_of_its_logits(tmp_path: Path) -> None:
    source = saved("llama", tmp_path / "model")
    exported(source, tmp_path / "out", "gguf", type="f32")
    asked = [*prompts(source, 5), [7] * 600]  # the last is read in two calls
    session = find_card("engines", "llamacpp")().open(
        tmp_path / "out", Opening(threads=1, slots=6, context=620)
    )
    mixed = [Request(tuple(ids), 6, logprobs=0 if i % 2 else -1) for i, ids in enumerate(asked)]
    swapped = [Request(one.ids, 6, logprobs=-1 - one.logprobs) for one in mixed]
    found = [[answer.ids for answer in answers(session, each)] for each in (mixed, swapped)]
    session.close()
    assert found[0] == found[1]


def test_a_damaged_file_is_refused_by_name(tmp_path: Path) -> None:
    exported(saved("llama", tmp_path / "model"), tmp_path / "out", "gguf")
    file = tmp_path / "out" / "model.gguf"
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(GateError, match=r"llama\.cpp does not load it"):
        find_card("engines", "llamacpp")().open(tmp_path / "out", Opening(threads=1))
