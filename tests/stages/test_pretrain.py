"""Pretraining learns, stops and goes on to the same bytes, and leaves models that others load."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import finetune_cases as tuning
import pytest
import torch
import transformers
from pretrain_cases import OBJECTIVES, PARENTS, SHARDED, TEXT, pretrained, pretrained_each, stage
from training_cases import Signalling

import lcc
from lcc.core.errors import DivergedError, PreemptedError, RecipeError
from lcc.distributed.dist import SINGLE, Distributed
from lcc.distributed.launch import launch
from lcc.methods.trackers.none import NoneTracker
from lcc.models.bundle import Bundle, open_bundle
from lcc.models.checkpoint import save
from lcc.stages._corpus import Documents, sentences

AUTO = {
    "causal": transformers.AutoModelForCausalLM,
    "masked": transformers.AutoModelForMaskedLM,
    "next_sentence": transformers.AutoModelForPreTraining,
    "spans": transformers.AutoModelForSeq2SeqLM,
}


def parent(world: Path, name: str) -> Bundle:
    return tuning.bundle(world / PARENTS[name])


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    tuning.write_data(folder)
    for head in ("causal", "seq2seq", "classify"):
        tuning.write_model(folder / head, head)
    return folder


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_learns_and_reloads_by_its_auto_class(world: Path, tmp_path: Path, name: str) -> None:
    context = tuning.context(tmp_path / "work", world, TEXT)
    outcome = stage(**OBJECTIVES[name], epochs=6).run(parent(world, name), context)
    measures = {key: measure.value for key, measure in outcome.measures.items()}
    assert measures["validation_loss_after"] < 0.95 * measures["validation_loss_before"]
    trained = outcome.bundle
    assert trained is not None
    trained.with_card(dtype="float32")
    save(trained, tmp_path / "model")
    alone = AUTO[name].from_pretrained(tmp_path / "model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    assert len(tokenizer) == measures["vocabulary"] == alone.get_input_embeddings().num_embeddings
    inputs = tokenizer("one two three", return_tensors="pt")
    if name == "spans":
        inputs["decoder_input_ids"] = inputs["input_ids"]
    with torch.no_grad():
        torch.testing.assert_close(alone(**inputs)[0], trained.module(**inputs)[0])
    assert open_bundle(tmp_path / "model").card.head == stage(**OBJECTIVES[name]).objective.head


def run_killed(world: Path, work: Path, name: str, tracker: Any) -> Any:
    """A run whose result depends on every mask, pair, save and evaluation."""
    context = tuning.context(work, world, TEXT, tracker=tracker)
    trained = stage(**OBJECTIVES[name], epochs=2, dropout=0.1, save_every=3, eval_every=4)
    return trained.run(parent(world, name), context).bundle


@pytest.mark.parametrize("name, step", [("causal", 7), ("next_sentence", 8)])
def test_a_killed_run_continues_to_the_same_bytes(world: Path, tmp_path: Path, name: str, step: int) -> None:
    command = [sys.executable, __file__, str(world), str(tmp_path / "killed"), name, str(step)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert list((tmp_path / "killed" / "state").glob("step-*"))
    resumed = run_killed(world, tmp_path / "killed", name, NoneTracker())
    whole = run_killed(world, tmp_path / "whole", name, NoneTracker())
    for key, expected in whole.module.state_dict().items():
        assert torch.equal(resumed.module.state_dict()[key], expected), key
    assert untimed(tmp_path / "killed") == untimed(tmp_path / "whole")
    assert len(untimed(tmp_path / "whole")) > step


@pytest.fixture(scope="module")
def two(world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    work = tmp_path_factory.mktemp("two")
    found = launch(pretrained_each, Distributed(world_size=2), str(world), str(work))
    return work, found


@pytest.mark.parametrize("strategy, name", SHARDED)
def test_two_processes_pretrain_as_one(
    world: Path, tmp_path: Path, two: tuple[Path, dict[str, Any]], strategy: str, name: str
) -> None:
    work, found = two
    alone = pretrained(SINGLE, str(world), str(tmp_path), name, "ddp")
    together = tuning.curves(work / f"{strategy}-{name}")
    for key in ("loss", "grad_norm"):
        expected = [row[key] for row in tuning.curves(tmp_path)]
        assert [row[key] for row in together] == pytest.approx(expected, abs=1e-5), key
    for key, expected in alone.items():
        torch.testing.assert_close(found[f"{strategy}-{name}"][key], expected, atol=1e-4, rtol=0)


def untimed(work: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in tuning.curves(work)]


def test_a_run_asked_to_stop_says_so_and_goes_on(world: Path, tmp_path: Path) -> None:
    with pytest.raises(PreemptedError, match="the state after step 5 is saved"):
        run_killed(world, tmp_path / "stopped", "masked", Signalling(5, signal.SIGTERM))
    resumed = run_killed(world, tmp_path / "stopped", "masked", NoneTracker())
    whole = run_killed(world, tmp_path / "whole", "masked", NoneTracker())
    for key, expected in whole.module.state_dict().items():
        assert torch.equal(resumed.module.state_dict()[key], expected), key


def test_a_new_vocabulary_keeps_every_other_weight(world: Path, tmp_path: Path) -> None:
    from lcc.tokenization.prune_vocabulary import with_new_vocabulary

    model = parent(world, "causal").load()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    renewed = with_new_vocabulary(model, 30, {"pad_token_id": 3}, seed=0).state_dict()
    changed = {k for k in before if not torch.equal(before[k], renewed[k][: len(before[k])])}
    assert changed == {"model.embed_tokens.weight", "lm_head.weight"}
    again = with_new_vocabulary(model, 30, {}, seed=1).state_dict()
    assert not torch.equal(again["lm_head.weight"], renewed["lm_head.weight"])


def test_without_a_new_tokenizer_training_goes_on_from_the_checkpoint(world: Path, tmp_path: Path) -> None:
    first = parent(world, "causal")
    size = first.load().get_input_embeddings().num_embeddings
    outcome = stage(epochs=1).run(first, tuning.context(tmp_path / "work", world, TEXT))
    assert outcome.bundle is not None and not outcome.bundle.tokenizer_changed
    assert outcome.measures["vocabulary"].value == size
    assert outcome.notes == [
        "Documents share blocks, and none sees another: positions start again "
        "with each, and attention stays within it."
    ]


def test_rows_of_one_document_can_be_read_as_one(world: Path, tmp_path: Path) -> None:
    text = (world / "data" / "train.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    shared = [{**row, "doc": str(i // 3)} for i, row in enumerate(rows)]
    shutil.copytree(world / "data", tmp_path / "shared" / "data")
    lines = "".join(json.dumps(row) + "\n" for row in shared)
    (tmp_path / "shared" / "data" / "train.jsonl").write_text(lines, encoding="utf-8")
    context = tuning.context(tmp_path / "work", tmp_path / "shared", TEXT)

    def read(unit: str, limit: int | None) -> list[Any]:
        documents = Documents(context, TEXT, unit, False, {"train": limit})  # type: ignore[arg-type]
        whole = list(documents.stream("train"))
        # What is read from the middle on is the rest of what is read from the start.
        middle = len(whole) // 2
        assert list(documents.stream("train", whole[middle - 1][0])) == whole[middle:]
        return [document for _, document in whole]

    texts = [TEXT.text(row) for row in rows]
    assert read("row", None) == [[text] for text in texts]
    assert read("row", 20) == [[text] for text in texts[:20]]
    assert read("doc", None) == [["\n".join(texts[i : i + 3])] for i in range(0, 48, 3)]
    assert read("doc", 20)[-1] == ["\n".join(texts[18:20])]


def test_sentences_end_where_their_marks_say() -> None:
    text = "Is it 3.5 km? No. It is far!\n\nA new line\n今天下雨。明天晴！Good."
    assert sentences([text, "Alone"]) == [
        "Is it 3.5 km?",
        "No.",
        "It is far!",
        "A new line",
        "今天下雨。",
        "明天晴！",
        "Good.",
        "Alone",
    ]


def test_a_pair_task_for_a_decoder_is_refused(world: Path, tmp_path: Path) -> None:
    context = tuning.context(tmp_path / "work", world, TEXT)
    with pytest.raises(RecipeError, match="of the family 'llama' can have no paired head"):
        stage(**OBJECTIVES["next_sentence"]).run(parent(world, "causal"), context)


@pytest.mark.parametrize("plan", ["sparse50_wanda", "width25_heal"])
def test_plans_take_a_pretrained_model_as_any_other(
    plan: str, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(runs)
    run = lcc.run(
        "+recipe=pretrain_tiny", f"plan={plan}", "scale=smoke", "threads=1", "~stages.bench", "~stages.eval"
    )
    assert run.facts["status"] == "finished"
    last = list(run.artifacts.values())[-1]
    assert last.report["measures"]["reload_max_logit_difference"]["value"] < 1e-3


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, place, chosen, number = sys.argv[1:]
    run_killed(Path(folder), Path(place), chosen, Signalling(int(number), signal.SIGKILL))


def test_a_training_that_diverges_names_its_stage(world: Path, tmp_path: Path) -> None:
    chosen = stage(**OBJECTIVES["causal"], max_steps=6, optimizer="sgd", lr=1e38, max_nonfinite=2)
    with pytest.raises(DivergedError, match=r"^pretrain: "):
        chosen.run(parent(world, "causal"), tuning.context(tmp_path, world, TEXT))
