"""Gettext catalogues give sentences: no header, no context, no keys, the general plural."""

from __future__ import annotations

import pytest
from data_archives import compiled_catalogue

from lcc.core.errors import DataError
from lcc.methods.readers.packages.gettext import catalogue_pairs, without_shortcuts


def _pairs(messages: dict[str, str], charset: str = "UTF-8") -> list[tuple[str, str]]:
    return list(catalogue_pairs(compiled_catalogue(messages, charset=charset), where="test.mo"))


def test_header_context_and_empty_translations_are_no_pairs() -> None:
    messages = {"menu\x04Open": "打开", "Close": "关闭", "Later": ""}
    assert _pairs(messages) == [("Open", "打开"), ("Close", "关闭")]


def test_the_plural_source_meets_the_general_form() -> None:
    assert _pairs({"%d file\0%d files": "%d 个文件"}) == [("%d files", "%d 个文件")]


def test_the_header_names_the_encoding() -> None:
    assert _pairs({"Open": "打开"}, "GB2312") == [("Open", "打开")]


@pytest.mark.parametrize(
    ("pair", "expected"),
    [
        (("&Save all files", "保存所有文件(&S)"), ("Save all files", "保存所有文件")),
        (("For _data range", "对应的数据区域(_D)"), ("For data range", "对应的数据区域")),
        (("Save ~As...", "另存为(~A)..."), ("Save As...", "另存为...")),
        (("_Open the file", "打开该文件"), ("Open the file", "打开该文件")),
        (("Search & Replace", "查找和替换"), ("Search & Replace", "查找和替换")),
        (
            ("the file_name_ext is set", "已设置 file_name_ext"),
            ("the file_name_ext is set", "已设置 file_name_ext"),
        ),
        (("a &lt; sign", "&lt; 符号"), ("a &lt; sign", "&lt; 符号")),
        (("see ~/.bashrc", "参见 ~/.bashrc"), ("see ~/.bashrc", "参见 ~/.bashrc")),
    ],
)
def test_marks_of_shortcut_keys_go_and_other_marks_stay(
    pair: tuple[str, str], expected: tuple[str, str]
) -> None:
    assert without_shortcuts(*pair) == expected


@pytest.mark.parametrize("content", [b"text", compiled_catalogue({"a": "b"})[:40]])
def test_a_file_that_is_no_catalogue_is_named(content: bytes) -> None:
    with pytest.raises(DataError, match=r"^test\.mo: "):
        list(catalogue_pairs(content, where="test.mo"))
