"""An engine gets the model in its own format, proved and written once; auto measures."""

from __future__ import annotations

from pathlib import Path

import pytest
from exports import prompts, saved

from lcc.core.errors import GateError, RecipeError
from lcc.export import select_engine
from lcc.export.select_engine import select
from lcc.inference.session import Opening, greedy
from lcc.store.store import Store

pytest.importorskip("cyllama", reason="llama.cpp is not installed: pip install 'lcc[llamacpp]'")
OPENING = Opening(threads=1, slots=2, context=128)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(select_engine, "names", lambda shelf: ["llamacpp", "transformers", "vllm"])
    monkeypatch.setattr(select_engine, "SECONDS", 0.0)  # one round each
    monkeypatch.setattr(select_engine, "EVERY", 25)
    return Store(tmp_path / "runs")


def test_the_fastest_is_chosen_and_its_copy_is_written_once(tmp_path: Path, store: Store) -> None:
    folder = saved("llama", tmp_path / "model")
    said: list[str] = []
    chosen = select("auto", folder, OPENING, store=store, info=said.append)
    assert set(chosen.seen) == {"llamacpp", "transformers"}
    assert chosen.seen[chosen.engine] == max(chosen.seen.values())
    assert f"engine=auto: {chosen.engine}; tokens a second here" in said[-1]
    named = select("llamacpp", folder, OPENING, store=store, info=said.append)
    assert sum("writing" in one for one in said) == 1
    rows = prompts(folder, 8)
    ours = select("transformers", folder, OPENING, store=store, info=said.append)
    mine = greedy(ours.open(OPENING), rows, 4)
    theirs = greedy(named.open(OPENING), rows, 4)
    same = sum(a == b for a, b in zip(mine, theirs, strict=True))
    assert same >= len(rows) - 1


def test_a_copy_that_is_not_its_source_is_run_by_no_engine(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved("llama", tmp_path / "model")
    monkeypatch.setattr("lcc.methods.exporters.gguf.TOLERANCES", {"auto": 1e-9})
    said: list[str] = []
    with pytest.raises(GateError, match="the export is not its source"):
        select("llamacpp", folder, OPENING, store=store, info=said.append)
    assert select("auto", folder, OPENING, store=store, info=said.append).engine == "transformers"
    assert any("llamacpp is left out" in one for one in said)


def test_an_engine_that_cannot_run_a_model_says_why(tmp_path: Path, store: Store) -> None:
    folder = saved("bert", tmp_path / "model")
    with pytest.raises(RecipeError, match="engine llamacpp: "):
        select("llamacpp", folder, OPENING, store=store, info=lambda sentence: None)
