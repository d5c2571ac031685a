"""Each cleaning rule removes what it says, counts it, and spares what is fine."""

from __future__ import annotations

import time

import pytest

from lcc.core.progress import Progress
from lcc.data.cleaning import Cleaning, is_written_in, num_words, placeholders_of
from lcc.data.dedup import jaccard, shingles_of
from lcc.data.local_files import Row

QUIET = Progress(quiet=True)
GOOD: Row = {"source": "The train leaves at nine o'clock.", "target": "火车九点钟出发。"}


def _removed(cleaning: Cleaning, *rows: Row) -> dict[str, int]:
    kept, removed = cleaning.clean([dict(GOOD), *rows], QUIET)
    assert kept[0] == GOOD
    assert len(kept) + sum(removed.values()) == len(rows) + 1
    return removed


@pytest.mark.parametrize(
    ("source", "target", "reason"),
    [
        ("", "空", "empty"),
        ("  \n ", "空白", "empty"),
        ("Open", "打开", "too short"),
        ("One word " * 40, "一个词", "too long"),
        ("%(name)s %s %d", "%(name)s %s %d", "placeholders only"),
        ("Python version three", "Python version three", "source equals target"),
        ("This English text stayed English here.", "This one stayed English as well here.", "language"),
        ("这 is 中文 on the wrong side", "这是中文。", "language"),
        ("A very long sentence with a good many words in it that go on", "短", "length ratio"),
        ("Read the <b>manual</b> first please.", "请先阅读<b>手册</b>。", "markup"),
        ("Delete %s and %s for ever?", "永久删除 %s 吗？", "placeholders differ"),
    ],
)
def test_a_rule_removes_what_it_names(source: str, target: str, reason: str) -> None:
    rules = Cleaning(
        languages={"source": "en", "target": "zh"},
        min_words=2,
        max_words=60,
        markup="drop",
        placeholders="equal",
    )
    assert _removed(rules, {"source": source, "target": target}) == {reason: 1}


def test_text_is_tidied_before_it_is_judged() -> None:
    row = {"source": "Cafe\u0301\u200b  on \r\n the\tcorner", "target": "街角的\u3000咖啡馆"}
    [kept], removed = Cleaning(near_duplicates=None).clean([row], QUIET)
    assert kept == {"source": "Café on the corner", "target": "街角的 咖啡馆"}
    assert removed == {}


def test_line_breaks_stay_where_they_mean_something() -> None:
    [kept], _ = Cleaning(keep_lines=True).clean([{"text": " a b \n\n  c  d "}], QUIET)
    assert kept["text"] == "a b\n\nc d"


def test_duplicates_differ_in_case_width_and_punctuation_only() -> None:
    copies: list[Row] = [
        {"source": "the train leaves at NINE o'clock!", "target": "火车九点钟出发"},
        {"source": "The train leaves at nine o'clock.", "target": "列车九点开。"},
    ]
    assert _removed(Cleaning(near_duplicates=None), *copies) == {"duplicate": 1}


def test_near_duplicates_are_found_whatever_number_they_hold() -> None:
    near = {"source": "The train leaves at nine o'clocks.", "target": "火车在九点钟出发了。"}
    numbered = [
        {"source": f"Page {n} of the report was printed", "target": f"已打印报告第{n}页。"} for n in (1, 2)
    ]
    assert _removed(Cleaning(near_duplicates=0.8), near, *numbered) == {"near duplicate": 2}
    assert _removed(Cleaning(near_duplicates=None), near, *numbered) == {}


def test_near_duplicates_agree_with_comparing_every_pair() -> None:
    words = [
        "alpha",
        "beta",
        "gamma",
        "delta",
        "epsilon",
        "zeta",
        "eta",
        "theta",
        "iota",
        "kappa",
        "lambda",
        "mu",
    ]
    texts = [" ".join(words[(i * k) % 12] for k in range(1, 9)) + f" {words[i % 5]}" for i in range(60)]
    slow: list[str] = []
    for text in texts:
        own = shingles_of(text)
        if all(jaccard(own, shingles_of(other)) < 0.85 for other in slow):
            slow.append(text)
    kept, _ = Cleaning(near_duplicates=0.85).clean([{"text": text} for text in texts], QUIET)
    assert [row["text"] for row in kept] == slow


def test_texts_with_two_labels_teach_nothing() -> None:
    rows = [
        {"text": "A fine day.", "label": "good"},
        {"text": "a fine day", "label": "bad"},
        {"text": "Rain again.", "label": "bad"},
    ]
    kept, removed = Cleaning().clean(rows, QUIET)
    assert [row["text"] for row in kept] == ["Rain again."]
    assert removed == {"conflicting labels": 2}


def test_a_row_without_a_label_is_counted() -> None:
    rows = [{"text": "A fine day.", "label": None}, {"text": "Rain again.", "label": "bad"}]
    assert Cleaning().clean(rows, QUIET)[1] == {"no label": 1}


def test_words_are_counted_in_both_scripts() -> None:
    assert num_words("It's a well-known fact.") == 4
    assert num_words("火车九点钟出发。") == 7
    assert num_words("打开 Python 文件") == 5


def test_a_chinese_text_may_name_english_things() -> None:
    assert is_written_in("设置 Zotero 密钥和 Zotero 用户 ID", "zh")
    assert not is_written_in("Click OK 按钮 to continue with the installation", "zh")
    assert not is_written_in("Оставить файл", "en")


def test_placeholders_of_every_kind_are_seen() -> None:
    assert placeholders_of("%(name)s has {count} of %d in $HOME, {{x}}, %1") == (
        "$HOME",
        "%(name)s",
        "%1",
        "%d",
        "{count}",
        "{{x}}",
    )
    assert placeholders_of("a 50% share of it") == ()


def test_cleaning_is_fast_enough_for_many_rows() -> None:
    rows = [
        {
            "source": f"Sentence number {n} about topic {n * 7919 % 1013} and {n:x}.",
            "target": f"关于主题{n * 7919 % 1013}的第{n}句话。",
        }
        for n in range(2000)
    ]
    start = time.perf_counter()
    Cleaning(languages={"source": "en", "target": "zh"}).clean(rows, QUIET)
    assert time.perf_counter() - start < 8  # 50,000 rows in well under 200 s on a busy core
