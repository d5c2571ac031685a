"""The vocabulary cut keeps what training texts need, in tokenizer, weights and config alike."""

from __future__ import annotations

from typing import Any

import compressing as tiny
import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from lcc.core.errors import DataError, RecipeError
from lcc.pipeline.planner import pipeline_of
from lcc.stages.vocab import Vocab
from lcc.tokenization.prune_vocabulary import cut

FAMILIES = {
    "tied": tiny.llama,
    "untied": lambda: tiny.llama(tie_word_embeddings=False),
    "gemma3": tiny.gemma3,
    "classifier": tiny.bert,
    "bert": lambda: tiny.bert(transformers.BertForMaskedLM),
    "t5": tiny.t5,
    "marian": tiny.marian,
}


def sentencepiece_like() -> transformers.PreTrainedTokenizerFast:
    """BPE with byte fallback over ▁, as Gemma's: every split of a token is a merge."""
    words = ["▁open", "open", "▁the", "▁window", "窗口", "无关"]
    pieces = {"▁op", "op", "en", "▁w", "▁win", "win", "dow", "do", "▁t", "th", "he", "▁th", "▁o"}
    characters = sorted({c for w in words for c in w})
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{b:02X}>" for b in range(256))]
    vocabulary = {t: i for i, t in enumerate([*tokens, *characters, *sorted(pieces), *words])}
    merges = [
        (token[:i], token[i:])
        for token in [*sorted(pieces), *words]
        for i in range(1, len(token))
        if token[:i] in vocabulary and token[i:] in vocabulary
    ]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.add_special_tokens(tokens[:4])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>", unk_token="<unk>"
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_training_texts_keep_their_pieces_and_the_reloaded_model_its_logits(
    family: str, tmp_path: Any
) -> None:
    bundle, context = tiny.bundle(FAMILIES[family]()), tiny.context(tmp_path)
    old = bundle.tokenizer
    texts = [row["text"] for row in context.data.rows("train")]
    pieces = [old.convert_ids_to_tokens(ids) for ids in old(texts)["input_ids"]]
    outcome = Vocab().run(bundle, context)
    assert outcome.measures["num_tokens"].value < 400
    assert outcome.measures["max_logit_difference"].value < 1e-5
    bundle.module.save_pretrained(tmp_path)
    bundle.tokenizer.save_pretrained(tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert [tokenizer.convert_ids_to_tokens(i) for i in tokenizer(texts)["input_ids"]] == pieces
    model = type(bundle.module).from_pretrained(tmp_path).eval()
    assert model.config.vocab_size == len(tokenizer)
    ids = tokenizer(texts[:1], return_tensors="pt")["input_ids"]
    extra = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        gap = model(input_ids=ids, **extra).logits - bundle.module(input_ids=ids, **extra).logits
    assert gap.abs().max() == 0


def test_ids_follow_their_tokens_through_configs_and_lists(tmp_path: Any) -> None:
    bundle = tiny.bundle(tiny.llama())
    unused = bundle.tokenizer.convert_tokens_to_ids("<unused0>")
    far = bundle.tokenizer.convert_tokens_to_ids("Ġunrelated")
    bundle.module.config.eos_token_id = [2, far]
    bundle.module.generation_config.eos_token_id = [2, far]
    Vocab().run(bundle, tiny.context(tmp_path))
    tokenizer, model = bundle.tokenizer, bundle.module
    assert tokenizer.convert_ids_to_tokens(model.config.eos_token_id) == ["</s>", "Ġunrelated"]
    assert model.generation_config.eos_token_id == model.config.eos_token_id
    assert model.config.pad_token_id == tokenizer.pad_token_id
    assert tokenizer("the")["input_ids"][0] == tokenizer.bos_token_id
    assert unused == 3 and "<unused0>" not in tokenizer.get_vocab()


def test_tied_weights_stay_one_tensor(tmp_path: Any) -> None:
    bundle = tiny.bundle(tiny.llama())
    Vocab().run(bundle, tiny.context(tmp_path))
    assert bundle.module.lm_head.weight is bundle.module.model.embed_tokens.weight


def test_any_text_can_still_be_spelled(tmp_path: Any) -> None:
    bundle = tiny.bundle(tiny.llama())
    Vocab().run(bundle, tiny.context(tmp_path))
    text = "unrelated 無關 ✓"
    ids = bundle.tokenizer(text)["input_ids"]
    assert bundle.tokenizer.decode(ids, skip_special_tokens=True) == text


def test_every_part_on_the_way_to_a_kept_token_stays() -> None:
    tokenizer = sentencepiece_like()
    used = tokenizer("open the window 窗口")["input_ids"]
    smaller = cut(tokenizer, used)
    kept = smaller.tokenizer.get_vocab()
    assert "无关" not in kept and "窗口" in kept and "<0xE6>" in kept
    again = smaller.tokenizer("open the window 窗口")["input_ids"]
    assert [smaller.old_ids[i] for i in again] == used
    spelled = smaller.tokenizer.convert_ids_to_tokens(smaller.tokenizer("无")["input_ids"])
    assert spelled == ["<0xE6>", "<0x97>", "<0xA0>"]


def test_held_out_words_that_fall_to_pieces_are_counted(tmp_path: Any) -> None:
    bundle, context = tiny.bundle(tiny.llama()), tiny.context(tmp_path)
    context.data.splits["validation"] = [{"id": "0", "doc": "0", "text": "unrelated file"}]
    measures = Vocab().run(bundle, context).measures
    assert 0 < measures["held_out_kept_share"].value < 1
    assert measures["held_out_extra_pieces"].value > 500  # per 1,000 words


def test_a_wordpiece_vocabulary_is_cut_too() -> None:
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "open", "##ing", "close", "a", "##a"]
    backend = Tokenizer(models.WordPiece({t: i for i, t in enumerate(tokens)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]"
    )
    smaller = cut(tokenizer, tokenizer("opening")["input_ids"])
    assert smaller.tokenizer.tokenize("opening") == ["open", "##ing"]
    assert "close" not in smaller.tokenizer.get_vocab()


def test_a_unigram_tokenizer_is_refused_with_one_sentence() -> None:
    backend = Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], unk_id=0))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend)
    with pytest.raises(DataError, match="a Unigram tokenizer cannot be cut"):
        cut(tokenizer, [0])


def test_a_vocabulary_that_is_all_needed_is_reported_as_such(tmp_path: Any) -> None:
    bundle, context = tiny.bundle(tiny.llama()), tiny.context(tmp_path)
    Vocab().run(bundle, context)
    again = Vocab().run(bundle, context)
    assert again.notes[0].startswith("Every token is needed")
    assert again.measures["num_tokens"].value == again.measures["num_tokens_before"].value


def test_a_corpus_keeps_its_language_and_its_held_out_lines_are_measured(tmp_path: Any) -> None:
    corpus = tmp_path / "other.txt"
    corpus.write_text("the unrelated entries\n" * 61 + "very quickly bring\n", encoding="utf-8")
    kept = {}
    for name, corpora in {"without": {}, "with": {"other": str(corpus)}}.items():
        bundle = tiny.bundle(tiny.llama())
        outcome = Vocab(corpora=corpora, min_count=2).run(bundle, tiny.context(tmp_path))
        kept[name] = set(bundle.tokenizer.get_vocab())
    assert "Ġunrelated" in kept["with"] - kept["without"]
    assert "Ġquickly" not in kept["with"]  # it occurs once
    rows = {row["text"]: row for row in outcome.tables["coverage"]}
    assert set(rows) == {"validation", "corpus: other"}
    assert rows["corpus: other"]["kept_share"] == 1 and rows["corpus: other"]["fallbacks"] == 0


def test_another_corpus_is_another_key_and_a_missing_one_is_named(tmp_path: Any) -> None:
    corpus = tmp_path / "zh.txt"
    corpus.write_text("一\n", encoding="utf-8")
    words = ["+recipe=tiny", f"stages.vocab.corpora={{zh: {corpus}}}"]
    first = pipeline_of(words, "run").step("vocab").key
    corpus.write_text("二\n", encoding="utf-8")
    assert pipeline_of(words, "run").step("vocab").key != first
    corpus.unlink()
    with pytest.raises(RecipeError, match=r"vocab.corpora.zh: no file '.*zh.txt' is here."):
        pipeline_of(words, "run")
