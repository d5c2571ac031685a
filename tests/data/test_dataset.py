"""A dataset is prepared once, the same way every time, and proves its fence from disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from data_archives import pairs

from lcc.cli.commands import data as inspection
from lcc.config.cards import decode
from lcc.config.yaml_files import config_roots, packaged_file, read_yaml
from lcc.core.errors import DataError, RecipeError
from lcc.core.progress import Progress
from lcc.data import dataset
from lcc.data.dataset import DatasetSpec, PreparedData
from lcc.data.local_files import Row

QUIET = Progress(quiet=True)


def _spec(folder: Path, rows: list[Row], **options: Any) -> DatasetSpec:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    node = {"name": "mine", "source": {"name": "jsonl", "path": str(path)}, **options}
    return decode(DatasetSpec, node, "dataset")


def _packaged(name: str) -> DatasetSpec:
    path = packaged_file(f"dataset/{name}.yaml")
    assert path is not None
    return decode(DatasetSpec, read_yaml(path).content, "dataset")


@pytest.mark.parametrize(
    ("name", "fields"),
    [("tiny_en_zh", {"source", "target"}), ("tiny_sentiment", {"text", "label"}), ("tiny_text", {"text"})],
)
def test_the_tiny_datasets_need_nothing_and_fill_every_split(
    tmp_path: Path, name: str, fields: set[str]
) -> None:
    spec = _packaged(name)
    assert dataset.missing(spec) is None
    counts = dataset.prepare(spec, tmp_path, QUIET)
    assert counts.removed == {}
    prepared = PreparedData.open(tmp_path)
    for split in ("train", "validation", "test"):
        rows = prepared.rows(split)
        assert len(rows) == counts.rows[split] >= 6
        assert {key for row in rows for key in row} == {"id", "doc"} | fields
    if "label" in fields:
        assert all(len(labels) == 3 for labels in counts.labels.values())


def test_preparing_twice_writes_the_same_bytes(tmp_path: Path) -> None:
    spec = _packaged("tiny_en_zh")
    for folder in ("one", "two"):
        dataset.prepare(spec, tmp_path / folder, QUIET)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_columns_get_our_names_and_what_was_removed_is_counted(tmp_path: Path) -> None:
    rows = [
        {"en": row["source"], "zh": row["target"], "page": row["doc"], "note": "x"} for row in pairs(12, 5)
    ]
    rows += [rows[0], {"en": "", "zh": "空", "page": "a", "note": "x"}]
    spec = _spec(
        tmp_path,
        rows,
        fields={"source": "en", "target": "zh", "doc": "page"},
        cleaning={"languages": {"source": "en", "target": "zh"}, "near_duplicates": None},
        splits={"validation": 5, "test": 5},
    )
    counts = dataset.prepare(spec, tmp_path / "out", QUIET)
    assert counts.read == 62
    assert counts.removed == {"empty": 1, "duplicate": 1}
    assert sum(counts.rows.values()) == 60
    [row, *_] = PreparedData.open(tmp_path / "out").rows("train")
    assert list(row) == ["id", "doc", "source", "target"]


def test_columns_beside_the_text_are_carried_along_and_judge_nothing(tmp_path: Path) -> None:
    rows = [{**row, "licence": "MIT", "score": 3, "seen": None} for row in pairs(12, 5)]
    counts = dataset.prepare(
        _spec(tmp_path, rows, cleaning={"near_duplicates": None}), tmp_path / "out", QUIET
    )
    assert counts.removed == {} and sum(counts.rows.values()) == 60
    assert PreparedData.open(tmp_path / "out").rows("test")[0]["score"] == 3


def test_a_missing_column_names_those_found_and_the_nearest(tmp_path: Path) -> None:
    spec = _spec(tmp_path, [{"sourse": "a", "target": "b"}], fields={"source": "source"})
    with pytest.raises(DataError) as caught:
        dataset.prepare(spec, tmp_path / "out", QUIET)
    assert "row 1 has no column 'source'; found 'sourse', 'target'" in str(caught.value)
    assert "Did you mean 'sourse'?" in str(caught.value)


@pytest.mark.parametrize(
    "options", [{"cleaning": {"languages": {"sorce": "en"}}}, {"splits": {"fence": ["sorce"]}}]
)
def test_an_option_for_a_field_that_is_not_there_is_a_mistake(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    spec = _spec(tmp_path, pairs(4, 3), **options)
    with pytest.raises(DataError, match=r"no field 'sorce'\. Did you mean 'source'\?"):
        dataset.prepare(spec, tmp_path / "out", QUIET)


def test_data_that_cleaning_eats_up_say_which_rule_did_it(tmp_path: Path) -> None:
    spec = _spec(tmp_path, pairs(4, 3), cleaning={"min_words": 50})
    with pytest.raises(DataError, match="train and validation and test split is empty") as caught:
        dataset.prepare(spec, tmp_path / "out", QUIET)
    assert "too short: 12" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_too_few_documents_for_three_splits_is_said(tmp_path: Path) -> None:
    spec = _spec(tmp_path, pairs(2, 10), cleaning={"near_duplicates": None})
    with pytest.raises(DataError, match=r"20 from 2 documents were kept; map dataset\.fields\.doc"):
        dataset.prepare(spec, tmp_path / "out", QUIET)


def test_the_fence_is_proved_from_disk(tmp_path: Path) -> None:
    dataset.prepare(_packaged("tiny_en_zh"), tmp_path, QUIET)
    assert dataset.check_fence(tmp_path) > 100
    leaked = json.loads((tmp_path / "test.jsonl").read_text().splitlines()[0])
    leaked = {**leaked, "id": "leak", "source": "Something else entirely."}
    with (tmp_path / "train.jsonl").open("a") as file:
        file.write(json.dumps(leaked) + "\n")
    with pytest.raises(DataError, match="train row 'leak'"):
        dataset.check_fence(tmp_path)


def test_the_fingerprint_follows_what_decides_the_rows(tmp_path: Path) -> None:
    first = dataset.fingerprint(_spec(tmp_path, pairs(4, 3)))
    assert dataset.fingerprint(_spec(tmp_path, pairs(4, 3), licence="MIT", name="other")) == first
    assert dataset.fingerprint(_spec(tmp_path, pairs(4, 3), splits={"test": 0.2})) != first
    assert dataset.fingerprint(_spec(tmp_path, pairs(4, 3), cleaning={"min_words": 2})) != first
    assert dataset.fingerprint(_spec(tmp_path, pairs(4, 4))) != first


def test_what_is_missing_is_said_with_size_licence_and_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LCC_HOME", str(tmp_path))
    spec = _packaged("vader_movie")
    told = "dataset 'vader_movie' needs 1 package (2.47 MB; MIT); run: lcc fetch dataset=vader_movie"
    assert dataset.missing(spec) == told
    assert dataset.fingerprint(spec) == dataset.fingerprint(_packaged("vader_movie"))
    with pytest.raises(DataError, match="lcc fetch dataset=vader_movie"):
        dataset.prepare(spec, tmp_path / "out", QUIET)


def test_every_packaged_dataset_states_what_it_costs() -> None:
    names = {path.stem for root in config_roots() for path in (root / "dataset").glob("*.yaml")}
    for name in sorted(names):
        spec = _packaged(name)
        assert spec.name == name and spec.licence and spec.description, name
        needed = [] if name == "local" else dataset.requirements(spec)
        assert sum(one.bytes for one in needed) == spec.bytes, name
        assert all(one.licence for one in needed), name


def test_the_users_own_configs_win(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    packaged = packaged_file("dataset/tiny/text.jsonl")
    own = tmp_path / "configs/dataset/tiny/text.jsonl"
    own.parent.mkdir(parents=True)
    own.write_text('{"text": "mine"}\n')
    assert packaged is not None and packaged_file("dataset/tiny/text.jsonl") == own.resolve()
    spec = decode(DatasetSpec, {"source": {"name": "jsonl", "packaged": "tiny/txt.jsonl"}})
    with pytest.raises(RecipeError, match=r"no file 'tiny/txt\.jsonl'"):
        dataset.fingerprint(spec)


def test_a_folder_without_prepared_data_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"counts\.json is missing"):
        PreparedData.open(tmp_path)


def test_the_format_is_told_from_the_fields() -> None:
    assert inspection.detected_format([{"id": "1", "doc": "a", "source": "x", "target": "y"}]) == (
        "pairs (source, target)"
    )
    rows = [{"id": str(n), "doc": "a", "text": "x", "label": label} for n, label in enumerate("ba")]
    assert inspection.detected_format(rows) == "labelled text (text → 2 labels: a, b)"
    assert inspection.detected_format([{"id": "1", "doc": "a", "text": "x"}]) == "plain text (text)"


def test_lengths_are_percentiles_of_words() -> None:
    rows = [{"text": "word " * n} for n in range(1, 101)]
    assert inspection.lengths(rows) == [{"field": "text", "p5": 5, "p50": 50, "p95": 95, "longest": 100}]


def test_a_field_that_the_task_needs_is_asked_for_by_its_override() -> None:
    with pytest.raises(DataError, match=r"dataset\.fields\.target=COLUMN"):
        inspection.require_fields([{"source": "a"}], ["source", "target"], task="translation")


@pytest.mark.network
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "at_least"), [("packages_en_zh", 3000), ("vader_movie", 8000), ("debian_en_zh", 30000)]
)
def test_real_data_give_enough_clean_rows(tmp_path: Path, name: str, at_least: int) -> None:
    spec = _packaged(name)
    for requirement in dataset.requirements(spec):
        requirement.fetch(QUIET)
    counts = dataset.prepare(spec, tmp_path / "out", QUIET)
    assert counts.rows["train"] >= at_least
    assert counts.rows["test"] >= 300
    assert dataset.check_fence(tmp_path / "out") > at_least
