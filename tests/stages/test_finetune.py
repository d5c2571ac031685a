"""Fine-tuning learns, says what it did, and leaves checkpoints that merge and reload."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import finetune_cases as tuning
import pytest
import torch
import transformers

from lcc.config.cards import decode
from lcc.core.errors import DataError, RecipeError
from lcc.models.checkpoint import save
from lcc.stages.finetune import Finetune
from lcc.stages.merge import Merge
from lcc.tasks.task import Task


def finetune(**options: Any) -> Finetune:
    return decode(Finetune, {"batch_tokens": 96, "micro_tokens": 48, "max_length": 32, **options})


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


TASKS = {"causal": tuning.COPY, "seq2seq": tuning.PAIRS, "classify": tuning.MOOD}
METHODS = ["full", "lora", "dora", "ia3", "qlora"]


@pytest.mark.parametrize("head", ["causal", "seq2seq", "classify"])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_training_lowers_the_validation_loss(world: Path, tmp_path: Path, head: str, method: str) -> None:
    context = tuning.context(tmp_path / "work", world, TASKS[head])
    stage = finetune(method=method, lr=1e-2, epochs=4, clip={"name": "norm", "max_norm": 0.05})
    outcome = stage.run(tuning.bundle(world / head), context)
    measures = {name: measure.value for name, measure in outcome.measures.items()}
    assert measures["validation_loss_after"] < 0.95 * measures["validation_loss_before"]
    assert outcome.bundle is not None
    assert outcome.bundle.card.form == ("dense" if method == "full" else "adapter")
    rows = tuning.curves(tmp_path / "work")
    assert len(rows) == measures["steps"]
    assert {"loss", "lr", "grad_norm", "clip_threshold", "clipped_share", "tokens", "seconds"} <= rows[
        0
    ].keys()
    assert measures["clipped_share_counts"] == "steps" and 0 < measures["clipped_share"] <= 1


@pytest.mark.parametrize("method", ["full", "lora"])
def test_packing_and_chunks_change_no_loss(world: Path, tmp_path: Path, method: str) -> None:
    losses = []
    for i, options in enumerate([{"loss_chunk": None}, {"packing": True, "loss_chunk": 5}]):
        work = tmp_path / str(i)
        stage = finetune(method=method, lr=1e-2, max_steps=4, **options)
        outcome = stage.run(tuning.bundle(world / "causal"), tuning.context(work, world))
        after = outcome.measures["validation_loss_after"].value
        losses.append([*(row["loss"] for row in tuning.curves(work)), after])
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)


def test_packing_an_encoder_decoder_is_refused(world: Path, tmp_path: Path) -> None:
    context = tuning.context(tmp_path, world, tuning.PAIRS)
    with pytest.raises(RecipeError, match="packing: a task with the head 'seq2seq' needs each"):
        finetune(packing=True).run(tuning.bundle(world / "seq2seq"), context)


@pytest.mark.parametrize("method", ["lora", "dora", "ia3", "qlora"])
def test_a_merged_adapter_gives_the_logits_it_was_trained_to(
    world: Path, tmp_path: Path, method: str
) -> None:
    context = tuning.context(tmp_path / "work", world)
    outcome = finetune(method=method, lr=1e-2, max_steps=3).run(tuning.bundle(world / "causal"), context)
    trained = outcome.bundle
    assert trained is not None
    save(trained, tmp_path / "trained" / "model")
    assert not (tmp_path / "trained" / "model").exists()
    merging = tuning.context(tmp_path / "m", world, inputs={"adapter": tmp_path / "trained"})
    merged = Merge().run(tuning.bundle(world / "causal"), merging)
    assert merged.measures["max_abs_logit_difference"].value < 1e-4
    assert merged.bundle is not None and merged.bundle.card.form == "dense"
    merged.bundle.with_card(dtype="float32")
    save(merged.bundle, tmp_path / "merged" / "model")
    alone = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged" / "model")
    ids = torch.arange(3, 15).unsqueeze(0)
    with torch.no_grad():
        expected = trained.module(input_ids=ids).logits
        torch.testing.assert_close(alone(input_ids=ids).logits, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_a_classification_head_travels_with_its_adapter(world: Path, tmp_path: Path, method: str) -> None:
    context = tuning.context(tmp_path / "work", world, tuning.MOOD)
    outcome = finetune(method=method, max_steps=2).run(tuning.bundle(world / "classify"), context)
    assert outcome.bundle is not None
    save(outcome.bundle, tmp_path / "trained" / "model")
    merging = tuning.context(tmp_path / "m", world, inputs={"adapter": tmp_path / "trained"})
    merged = Merge().run(tuning.bundle(world / "classify"), merging)
    assert merged.bundle is not None
    assert merged.bundle.module.config.id2label == {0: "up", 1: "down"}


def test_the_same_seed_gives_the_same_weights(world: Path, tmp_path: Path) -> None:
    weights = []
    for name in ("a", "b"):
        outcome = finetune(method="lora", max_steps=3).run(
            tuning.bundle(world / "causal"), tuning.context(tmp_path / name, world)
        )
        assert outcome.bundle is not None
        weights.append(outcome.bundle.module.state_dict())
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])


def test_full_training_keeps_a_sparse_parents_zeros(world: Path, tmp_path: Path) -> None:
    parent = tuning.bundle(world / "causal")
    weight = parent.load().model.layers[0].mlp.up_proj.weight
    with torch.no_grad():
        weight[::2] = 0.0
    parent.with_card(sparse="unstructured")
    before = weight.detach().clone()
    finetune(method="full", max_steps=3, weight_decay=0.1).run(
        parent, tuning.context(tmp_path / "work", world)
    )
    assert torch.equal(weight == 0, before == 0)
    assert not torch.equal(weight, before)


@pytest.mark.parametrize("method", ["lora", "ia3", "adalora", "vera"])
def test_an_adapter_merged_into_a_sparse_parent_keeps_its_zeros(
    sparse_world: Path, tmp_path: Path, method: str
) -> None:
    parent = tuning.bundle(sparse_world / "sparse")
    stage = finetune(method=method, lr=1e-2, max_steps=3)
    trained = stage.run(parent, tuning.context(tmp_path / "work", sparse_world)).bundle
    assert trained is not None
    save(trained, tmp_path / "trained" / "model")
    merging = tuning.context(tmp_path / "m", sparse_world, inputs={"adapter": tmp_path / "trained"})
    before = tuning.bundle(sparse_world / "sparse").load().model.layers[0].mlp.up_proj.weight
    merged = Merge().run(tuning.bundle(sparse_world / "sparse"), merging)
    assert merged.bundle is not None and merged.measures["max_abs_logit_difference"].value < 1e-4
    after = merged.bundle.module.model.layers[0].mlp.up_proj.weight
    assert torch.equal(after == 0, before == 0)
    ids = torch.arange(3, 15).unsqueeze(0)
    with torch.no_grad():
        torch.testing.assert_close(
            merged.bundle.module(input_ids=ids).logits, trained.module(input_ids=ids).logits
        )


@pytest.fixture(scope="module")
def sparse_world(world: Path) -> Path:
    parent = tuning.bundle(world / "causal")
    weight = parent.load().model.layers[0].mlp.up_proj.weight
    with torch.no_grad():
        weight[:, ::2] = 0.0
    parent.with_card(sparse="2:4", dtype="float32")
    save(parent, world / "sparse" / "model")
    return world


@pytest.mark.parametrize("method", ["dora", "qlora", "oft"])
def test_an_adapter_that_would_fill_zeros_is_refused(sparse_world: Path, tmp_path: Path, method: str) -> None:
    context = tuning.context(tmp_path / "work", sparse_world)
    with pytest.raises(RecipeError, match="use method=full"):
        finetune(method=method).run(tuning.bundle(sparse_world / "sparse"), context)


def test_gradient_checkpointing_changes_no_loss(world: Path, tmp_path: Path) -> None:
    losses = []
    for flag in (False, True):
        context = tuning.context(tmp_path / str(flag), world)
        stage = finetune(method="lora", max_steps=3, gradient_checkpointing=flag)
        stage.run(tuning.bundle(world / "causal"), context)
        losses.append([row["loss"] for row in tuning.curves(tmp_path / str(flag))])
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_bfloat16_follows_float32(world: Path, tmp_path: Path, method: str) -> None:
    losses = []
    for dtype in ("float32", "bfloat16"):
        context = tuning.context(tmp_path / dtype, world, dtype=dtype)
        stage = finetune(method=method, max_steps=4, lr=1e-2)
        stage.run(tuning.bundle(world / "causal"), context)
        losses.append([row["loss"] for row in tuning.curves(tmp_path / dtype)])
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


def test_a_student_learns_from_its_teacher(world: Path, tmp_path: Path) -> None:
    taught = finetune(method="lora", max_steps=2, teacher="plan_input", distill={"weight": 1.0})
    context = tuning.context(tmp_path / "work", world, inputs={"teacher": world / "causal"})
    taught.run(tuning.bundle(world / "causal"), context)
    # The teacher is the very model: nothing to learn, so the divergence starts at zero.
    assert tuning.curves(tmp_path / "work")[0]["loss"] == pytest.approx(0.0, abs=1e-6)


def test_a_teacher_with_another_vocabulary_is_refused(world: Path, tmp_path: Path) -> None:
    other = tuning.config("causal")
    other.vocab_size += 8
    transformers.LlamaForCausalLM(other).save_pretrained(tmp_path / "teacher" / "model")
    context = tuning.context(tmp_path / "work", world, inputs={"teacher": tmp_path / "teacher"})
    with pytest.raises(DataError, match="the same vocabulary"):
        finetune(teacher="plan_input").run(tuning.bundle(world / "causal"), context)


def test_a_task_without_a_loss_is_refused(world: Path, tmp_path: Path) -> None:
    task = Task(name="near", head="embed", fields=("source",), template="{source}")
    with pytest.raises(DataError, match="no supervised loss"):
        finetune(method="full").run(
            tuning.bundle(world / "classify"), tuning.context(tmp_path / "work", world, task)
        )


def test_a_decoder_can_be_taught_to_classify(world: Path, tmp_path: Path) -> None:
    context = tuning.context(tmp_path / "work", world, tuning.MOOD)
    stage = finetune(method="full", lr=1e-2, epochs=4)
    outcome = stage.run(tuning.bundle(world / "causal"), context)
    measures = outcome.measures
    assert measures["validation_loss_after"].value < measures["validation_loss_before"].value
    assert outcome.bundle is not None and outcome.bundle.card.head == "classify"


@pytest.mark.parametrize("head", ["seq2seq", "classify"])
def test_every_head_can_have_a_teacher(world: Path, tmp_path: Path, head: str) -> None:
    task = TASKS[head]
    first = finetune(method="full", max_steps=1)
    taught = tuning.bundle(world / head)
    first.run(taught, tuning.context(tmp_path / "first", world, task))
    taught.with_card(dtype="float32")
    save(taught, tmp_path / "teacher" / "model")
    inputs = {"teacher": tmp_path / "teacher"}
    stage = finetune(method="lora", max_steps=2, teacher="first", gradient_checkpointing=True)
    outcome = stage.run(
        tuning.bundle(world / head), tuning.context(tmp_path / "work", world, task, inputs=inputs)
    )
    assert outcome.measures["steps"].value == 2


def test_rows_cut_or_left_out_are_said(world: Path, tmp_path: Path) -> None:
    stage = finetune(method="lora", max_steps=1, max_length=6)
    outcome = stage.run(tuning.bundle(world / "causal"), tuning.context(tmp_path / "work", world))
    assert any("were cut to max_length=6 tokens" in note for note in outcome.notes)


def test_a_mistake_inside_a_choice_names_the_nearest_key() -> None:
    with pytest.raises(RecipeError, match=r"clip.max_nrm: unknown key .* Did you mean 'max_norm'"):
        decode(Finetune, {"clip": {"name": "norm", "max_nrm": 1}}, "stages.finetune")
    with pytest.raises(RecipeError, match=r"method.rnk: unknown key .* Did you mean 'rank'"):
        decode(Finetune, {"method": {"name": "lora", "rnk": 1}}, "stages.finetune")


def test_no_average_is_taken_of_ranks_that_come_and_go() -> None:
    with pytest.raises(RecipeError, match="ema would keep the ranks that adalora takes away"):
        finetune(method="adalora", ema={})
