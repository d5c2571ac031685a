"""Every reader gives the same rows, and says file and line of what it cannot read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from lcc.config.cards import Choice, decode
from lcc.core.errors import DataError, LccError, RecipeError
from lcc.data.dataset import DatasetSpec
from lcc.data.local_files import Row

ROWS = [{"en": 'He said "yes".', "zh": "他说“好”。"}, {"en": "One, two", "zh": "一，二"}]


def reader(name: str, **options: Any) -> Any:
    try:
        return Choice("readers").decode({"name": name, **options})
    except ValueError as error:
        raise RecipeError(str(error)) from None


def _write(folder: Path, name: str) -> Path:
    path = folder / f"data.{name}"
    if name == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
        return path
    text = {
        "jsonl": "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS) + "\n\n",
        "csv": 'en,zh\r\n"He said ""yes"".",他说“好”。\r\n"One, two","一，二"\r\n',
        "tsv": 'en\tzh\nHe said "yes".\t他说“好”。\nOne, two\t一，二\n',
    }[name]
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())  # as spreadsheets save it
    return path


@pytest.mark.parametrize("name", ["jsonl", "csv", "tsv", "parquet"])
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    path = _write(tmp_path, name)
    source = reader(name, path=str(path))
    assert list(source.read()) == ROWS
    before = source.fingerprint()
    path.write_bytes(path.read_bytes() + b"\n")
    assert source.fingerprint() != before


def test_a_file_without_a_header_takes_the_columns_it_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("good;Fine.\n")
    source = reader("csv", path=str(tmp_path / "a.csv"), delimiter=";", columns=["label", "text"])
    assert list(source.read()) == [{"label": "good", "text": "Fine."}]


def test_text_in_another_encoding_is_read_when_it_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes("label,text\ngut,Schön.\n".encode("latin-1"))
    assert list(reader("csv", path=str(path), encoding="latin-1").read()) == [
        {"label": "gut", "text": "Schön."}
    ]
    with pytest.raises(DataError, match=r"a\.csv:2: is not UTF-8; set dataset\.source\.encoding"):
        list(reader("csv", path=str(path)).read())
    with pytest.raises(RecipeError, match="no encoding is named 'latin-nine'"):
        reader("csv", path=str(path), encoding="latin-nine")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("jsonl", b'{"a": 1}\n\n{"a": }\n', "data.jsonl:3: is not JSON: Expecting value"),
        ("jsonl", b'{"a": 1}\n[1, 2]\n', "data.jsonl:2: expected an object {…}, got list"),
        ("jsonl", b'{"a": 1}\n{"a": "\xff"}\n', "data.jsonl:2: is not UTF-8"),
        ("csv", b'a,b\n"x\ny",2\n1,2,3\n', "data.csv:4: has 3 columns, expected 2 (a, b)"),
        ("csv", b'a,b\n1,"2\n', "data.csv:2: unexpected end of data"),
        ("parquet", b"PAR1 not really", "data.parquet: is not readable as parquet"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_line(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    path = tmp_path / f"data.{name}"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        list(reader(name, path=str(path)).read())
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_names_its_key_and_the_nearest_file(tmp_path: Path) -> None:
    _write(tmp_path, "jsonl")
    source = reader("jsonl", path=str(tmp_path / "dato.jsonl"))
    with pytest.raises(LccError, match=r"dataset\.source\.path: .*Did you mean 'data\.jsonl'"):
        source.fingerprint()


def test_several_files_are_read_in_order_and_splits_are_told(tmp_path: Path) -> None:
    for name in ("b", "a", "held"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"text": name}) + "\n")
    pattern = reader("jsonl", path=str(tmp_path / "?.jsonl"))
    assert [row["text"] for row in pattern.read()] == ["a", "b"]
    paths = {"train": str(tmp_path / "a.jsonl"), "test": str(tmp_path / "held.jsonl")}
    assert list(reader("jsonl", paths=paths).read()) == [
        {"text": "a", "split": "train"},
        {"text": "held", "split": "test"},
    ]


@pytest.mark.parametrize("options", [{}, {"path": "a", "packaged": "b"}])
def test_a_source_is_given_exactly_once(options: dict[str, str]) -> None:
    with pytest.raises(RecipeError, match="exactly one of path, paths and packaged"):
        reader("jsonl", **options)


def test_a_dataset_saved_by_the_library_is_read_without_it(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    label = datasets.ClassLabel(names=["bad", "good"])
    features = datasets.Features({"text": datasets.Value("string"), "label": label})
    table = datasets.Dataset.from_dict({"text": ["Fine.", "Poor."], "label": [1, 0]}, features)
    table.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": table, "test": table.select([1])}).save_to_disk(tmp_path / "two")
    rows = [{"text": "Fine.", "label": "good"}, {"text": "Poor.", "label": "bad"}]
    assert list(reader("saved", path=str(tmp_path / "one")).read()) == rows
    both = list(reader("saved", path=str(tmp_path / "two")).read())
    assert both == [{**row, "split": "train"} for row in rows] + [{**rows[1], "split": "test"}]
    with pytest.raises(DataError, match="save_to_disk"):
        list(reader("saved", path=str(tmp_path)).read())


def test_text_becomes_lines_paragraphs_or_documents(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("= One =\n\nFirst line.\nSecond line.\n\n= Two =\nThird line.\n")

    def read(**options: str) -> list[Row]:
        return list(reader("lines", path=str(path), **options).read())

    assert read()[1] == {"text": "First line."}
    assert [row["text"] for row in read(unit="paragraph")][1] == "First line.\nSecond line."
    documents = read(unit="document", heading="^= .* =$")
    assert [row["doc"] for row in documents] == ["a.txt:1 = One =", "a.txt:6 = Two ="]
    assert documents[1]["text"].startswith("= Two =\nThird line.")
    with pytest.raises(RecipeError, match="heading is no regular expression"):
        read(heading="(")


def test_squad_is_read_with_the_place_of_each_answer(tmp_path: Path) -> None:
    asked = [
        {"id": "q1", "question": "Who?", "answers": [{"text": "Ann", "answer_start": 4}]},
        {"id": "q2", "question": "Why?", "answers": []},
    ]
    node = {"data": [{"title": "T", "paragraphs": [{"context": "See Ann.", "qas": asked}]}]}
    path = tmp_path / "s.json"
    path.write_text(json.dumps(node))
    (row,) = reader("squad", path=str(path)).read()
    assert row["context"][row["answer_start"] :].startswith(row["answer"]) and row["doc"] == "T"
    path.write_text("{}")
    with pytest.raises(DataError, match="is not SQuAD's JSON"):
        list(reader("squad", path=str(path)).read())


def test_a_wrong_reader_option_says_where() -> None:
    node = {"source": {"name": "jsonl", "pth": "x"}}
    with pytest.raises(RecipeError, match=r"dataset\.source\.pth: unknown key 'pth'"):
        decode(DatasetSpec, node, "dataset")
    with pytest.raises(RecipeError, match=r"dataset\.source: no reader is named 'jsonk'.*'jsonl'"):
        decode(DatasetSpec, {"source": "jsonk"}, "dataset")
