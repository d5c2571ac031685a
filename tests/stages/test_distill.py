"""Teaching online and from a cache, in healing and alone, also after the vocabulary was cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import finetune_cases as tuning
import pytest
import torch
import transformers
from test_depth import one_thread  # noqa: F401
from tokenizers import Tokenizer, models, pre_tokenizers

from lcc.config.cards import Mistakes, decode
from lcc.core.errors import DataError, DivergedError
from lcc.models.checkpoint import save
from lcc.stages.distill import Distill
from lcc.stages.finetune import Finetune
from lcc.tokenization.prune_vocabulary import keep_rows

TASKS = {"causal": tuning.COPY, "seq2seq": tuning.PAIRS, "classify": tuning.MOOD}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, and a teacher for each head that was taught a little."""
    folder = tmp_path_factory.mktemp("world")
    tuning.write_data(folder)
    for head, task in TASKS.items():
        tuning.write_model(folder / "plain" / head, head)
        bundle = tuning.bundle(folder / "plain" / head)
        stage = decode(Finetune, {"method": "full", "lr": 1e-2, "max_steps": 6, "batch_tokens": 96})
        stage.run(bundle, tuning.context(folder / "work" / head, folder, task))
        bundle.with_card(dtype="float32")
        save(bundle, folder / head / "model")
    return folder


def distilled(world: Path, tmp_path: Path, head: str = "causal", **options: Any) -> Any:
    student = options.pop("student", None) or tuning.bundle(world / "plain" / head)
    teacher = options.pop("teacher_folder", world / head)
    context = tuning.context(tmp_path, world, TASKS[head], inputs={"teacher": teacher})
    settings = {"lr": 1e-2, "epochs": 3, "batch_tokens": 96, "micro_tokens": 48, "max_length": 32}
    outcome = decode(Distill, {**settings, **options}).run(student, context)
    return outcome, tuning.curves(tmp_path)


@pytest.mark.parametrize("head", TASKS)
@pytest.mark.parametrize("how", [{"mode": "online"}, {"mode": "cached"}, {"hidden_weight": 0.1}])
def test_a_student_comes_nearer_to_its_teacher(
    world: Path, tmp_path: Path, head: str, how: dict[str, Any]
) -> None:
    outcome, curves = distilled(world, tmp_path, head, distill={"weight": 1.0, **how})
    first, last = (sum(row["loss"] for row in rows) / 3 for rows in (curves[:3], curves[-3:]))
    assert last < 0.9 * first
    assert outcome.bundle.card.form == "dense"


def test_a_cached_teacher_leads_where_the_one_beside_does(world: Path, tmp_path: Path) -> None:
    losses = {}
    for mode in ("online", "cached"):
        how = {"weight": 1.0, "mode": mode, "num_samples": 512}
        _, curves = distilled(world, tmp_path / mode, distill=how)
        losses[mode] = [row["loss"] for row in curves]
    assert losses["cached"] == pytest.approx(losses["online"], rel=0.3, abs=0.1)
    parts = list((tmp_path / "cached" / "state" / "teacher").glob("part-*.safetensors"))
    assert len(parts) == 1
    assert not (tmp_path / "online" / "state" / "teacher").exists()


def test_a_finished_cache_needs_no_teacher_any_more(world: Path, tmp_path: Path) -> None:
    how = {"mode": "cached"}
    distilled(world, tmp_path, distill=how, max_steps=2)
    nowhere = tmp_path / "gone"
    for file in (tmp_path / "state").glob("step-*/*"):
        file.unlink()
    outcome, _ = distilled(world, tmp_path, distill=how, max_steps=2, teacher_folder=nowhere)
    assert outcome.measures["steps"].value == 2


def cut(world: Path, folder: Path, head: str) -> Any:
    """The plain model with its unused tokens gone and the others numbered the other way round."""
    words = {w: i for i, w in enumerate([*tuning.SPECIALS, *tuning.WORDS])}
    kept = [*tuning.SPECIALS, *reversed(tuning.WORDS)]
    kept.remove("down")
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(kept)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    bundle = tuning.bundle(world / "plain" / head)
    old_ids = [words[word] for word in kept]
    keep_rows(bundle.load(), old_ids, {old: new for new, old in enumerate(old_ids)})
    bundle.tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    return bundle


@pytest.mark.parametrize("head", TASKS)
@pytest.mark.parametrize("mode", ["online", "cached"])
def test_a_teacher_is_understood_after_the_vocabulary_was_cut(
    world: Path, tmp_path: Path, head: str, mode: str
) -> None:
    """The student is the teacher itself but for its vocabulary: the divergence starts near zero."""
    how = {"weight": 1.0, "mode": mode, "num_samples": 2000, "hidden_weight": 0.0}
    student = cut(world, tmp_path, head)
    teacher = world / "plain" / head
    if head == "classify":
        student, teacher = _classifiers(world, tmp_path)
    _, curves = distilled(
        world,
        tmp_path / "work",
        head,
        student=student,
        distill=how,
        teacher_folder=teacher,
        dropout=0.0,
        max_steps=1,
    )
    # A token fewer to choose from: what the teacher gave it goes to the others.
    assert curves[0]["loss"] < 0.02


def _classifiers(world: Path, folder: Path) -> tuple[Any, Path]:
    student = cut(world, folder, "classify")
    teacher = tuning.bundle(world / "plain" / "classify")
    for bundle in (student, teacher):
        bundle.with_head("classify", num_labels=2, seed=0, labels=("up", "down"))
    teacher.module.load_state_dict(
        {
            **student.module.state_dict(),
            **{n: t for n, t in teacher.module.state_dict().items() if "word_embeddings" in n},
        }
    )
    teacher.with_card(dtype="float32")
    teacher.with_card(headless=False)
    student.with_card(headless=False)
    save(teacher, folder / "teacher" / "model")
    return student, folder / "teacher"


def test_a_teacher_that_does_not_know_a_token_is_refused(world: Path, tmp_path: Path) -> None:
    teacher = cut(world, tmp_path, "causal")
    teacher.with_card(dtype="float32")
    save(teacher, tmp_path / "teacher" / "model")
    with pytest.raises(DataError, match="does not know the token 'down'"):
        distilled(world, tmp_path / "work", teacher_folder=tmp_path / "teacher")


def test_equal_tokenizers_under_longer_embeddings_are_one_vocabulary(world: Path, tmp_path: Path) -> None:
    teacher = tuning.bundle(world / "plain" / "causal")
    teacher.load().resize_token_embeddings(24, mean_resizing=False)
    teacher.with_card(dtype="float32")
    save(teacher, tmp_path / "teacher" / "model")
    _, curves = distilled(
        world, tmp_path / "work", max_steps=1, distill={"weight": 1.0}, teacher_folder=tmp_path / "teacher"
    )
    assert curves[0]["loss"] == pytest.approx(0, abs=1e-5)


def test_hidden_states_of_another_width_are_mapped_and_the_maps_kept(world: Path, tmp_path: Path) -> None:
    config = tuning.config("causal")
    config.hidden_size, config.head_dim, config.num_hidden_layers = 16, 8, 1
    torch.manual_seed(0)
    narrow = transformers.LlamaForCausalLM(config)
    narrow.save_pretrained(tmp_path / "narrow" / "model")
    tuning.tokenizer().save_pretrained(tmp_path / "narrow" / "model")
    how = {"hidden_weight": 1.0}
    _, curves = distilled(world, tmp_path / "work", student=tuning.bundle(tmp_path / "narrow"), distill=how)
    assert (tmp_path / "work" / "state" / "maps.safetensors").is_file()
    assert curves[-1]["loss"] < curves[0]["loss"]


def test_hidden_states_are_not_cached() -> None:
    with pytest.raises(Mistakes, match="use mode: online with hidden_weight"):
        decode(Distill, {"distill": {"mode": "cached", "hidden_weight": 1.0}}, "plan.distill")
    assert decode(Distill, {}).teacher == "plan_input"


def test_a_training_that_diverges_names_its_stage(world: Path, tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match=r"^distill: "):
        distilled(world, tmp_path, optimizer="sgd", lr=1e38, max_nonfinite=2)
