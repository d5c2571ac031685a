"""CTranslate2 says what the source says: decoders, encoder–decoders and encoders."""

from __future__ import annotations

import json
from pathlib import Path

import compressing as tiny
import pytest
import transformers
from exports import exported, prompts, saved, told

from lcc.config.cards import find_card
from lcc.core.errors import DataError, RecipeError
from lcc.inference.session import Opening, Request, answers, greedy
from lcc.models.checkpoint import save
from lcc.tasks.task import Sampling

pytest.importorskip("ctranslate2", reason="CTranslate2 is not installed: lcc[ctranslate2]")

FAMILIES = ["llama", "qwen3", "gemma3", "t5", "marian", "bert"]


def source_of(family: str, folder: Path) -> Path:
    if family != "bert":
        # Its kernels take no text that is longer than the window.
        return saved(family, folder, **({"sliding_window": 64} if family == "gemma3" else {}))
    bundle = tiny.bundle(tiny.bert(transformers.BertModel))
    bundle.with_card(head="embed", auto_class="AutoModel")
    save(bundle, folder)
    return folder


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("quantization, most", [("float32", 1e-3), ("int8", 0.06)])
def test_a_family_is_the_same_in_ctranslate2(
    family: str, quantization: str, most: float, tmp_path: Path
) -> None:
    source = source_of(family, tmp_path / "model")
    made = exported(source, tmp_path / "out", "ctranslate2", quantization=quantization)
    assert made.parity.logit_error < most, told(made.parity)
    assert made.parity.unexplained_share == 0
    assert made.parity.num_tokens >= made.parity.num_prompts


def test_a_tokenizer_without_a_first_token_will_do(tmp_path: Path) -> None:
    source = saved("llama", tmp_path / "model")
    file = source / "tokenizer_config.json"
    known = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**known, "bos_token": None, "unk_token": None}), encoding="utf-8")
    made = exported(source, tmp_path / "out", "ctranslate2", quantization="float32")
    assert made.parity.logit_error < 1e-3, told(made.parity)


def test_what_it_would_get_wrong_is_refused(tmp_path: Path) -> None:
    narrow = saved("llama", tmp_path / "narrow", head_dim=8)
    with pytest.raises(RecipeError, match="takes heads of llama models to be as wide"):
        exported(narrow, tmp_path / "out", "ctranslate2")
    with pytest.raises(RecipeError, match="of bert models CTranslate2 runs those with a embed"):
        exported(saved("bert", tmp_path / "bert"), tmp_path / "out", "ctranslate2")


# Marian's end is forced, in the place of the last token.
@pytest.mark.parametrize("family, length", [("llama", 9), ("marian", 8)])
def test_whoever_measures_goes_on_to_the_limit(family: str, length: int, tmp_path: Path) -> None:
    exported(source_of(family, tmp_path / "model"), tmp_path / "out", "ctranslate2")
    session = find_card("engines", "ctranslate2")().open(tmp_path / "out", Opening(threads=1))
    asked = [Request((5, 6, 7 + i), 9, ignore_ends=True) for i in range(4)]
    assert [len(answer.ids) for answer in answers(session, asked)] == [length] * 4
    session.close()


def test_requests_of_different_kinds_are_answered_each_in_its_way(tmp_path: Path) -> None:
    source = saved("llama", tmp_path / "model")
    exported(source, tmp_path / "out", "ctranslate2", quantization="float32")
    asked = prompts(source, 10)
    session = find_card("engines", "ctranslate2")().open(tmp_path / "out", Opening(threads=1, slots=4))
    alone = [greedy(session, [prompt], 5)[0].ids for prompt in asked]
    assert [answer.ids for answer in greedy(session, asked, 5)] == alone
    mixed = answers(
        session,
        [
            Request(tuple(asked[0]), 5),
            Request(tuple(asked[0]), 3, logprobs=2),
            Request(tuple(asked[0]), 5, num_beams=3),
            Request(tuple(asked[0]), 5, sampling=Sampling(temperature=1.0, top_k=5)),
        ],
    )
    with pytest.raises(DataError, match="cannot draw the same answer twice"):
        session.start(Request(tuple(asked[0]), 5, seed=3, sampling=Sampling(temperature=1.0)))
    session.close()
    assert mixed[0].ids == alone[0] and mixed[1].ids == alone[0][:3]
    assert mixed[1].tokens[0].top[0][0] == alone[0][0] and len(mixed[1].tokens[0].top) == 2
    assert all(answer.finish in ("stop", "length") for answer in mixed)
