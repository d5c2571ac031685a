"""The vocabulary cut on real tokenizers: run where `lcc fetch` has brought their weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from lcc.core.progress import Progress
from lcc.models.sources import build, missing
from lcc.pipeline.recipe import load_recipe
from lcc.tokenization.prune_vocabulary import cut

TEXTS = [
    "English: Save the file before you close the window.\nChinese: 关闭窗口之前请先保存文件。",
    "  indented\n\n\tdef f(x): return x**2  # 100 % café naïve Ünïcode ✓ 🙂",
    "<b>Bold</b> &amp; “quotes” — dashes… 2026-11-23, http://example.org/a?b=c",
    "龘 rare 𠮷 characters",
]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gemma3_270m", "smollm2_135m", "minilm_l6"])
def test_a_real_tokenizer_keeps_the_pieces_of_what_it_was_cut_to(name: str, tmp_path: Path) -> None:
    spec = load_recipe([f"model={name}"]).model
    assert spec is not None
    lacking = missing(spec)
    if lacking:
        pytest.skip(lacking)
    tokenizer = build(spec, tmp_path, progress=Progress(quiet=True)).tokenizer
    before = tokenizer(TEXTS)["input_ids"]
    smaller = cut(tokenizer, {i for ids in before for i in ids})
    assert len(smaller.old_ids) < 1500
    after = smaller.tokenizer(TEXTS)["input_ids"]
    assert [[smaller.old_ids[i] for i in ids] for ids in after] == before
    assert smaller.tokenizer.all_special_tokens == tokenizer.all_special_tokens
