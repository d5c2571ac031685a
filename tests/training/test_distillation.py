"""Samples of a teacher average to it, states are compared block by block, vocabularies mapped."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from training_cases import examples, model, stepper

from lcc.core.progress import Progress
from lcc.training.batches import Batch, collate
from lcc.training.distillation import (
    PART,
    Distillation,
    HiddenMatch,
    SampledLogits,
    Samples,
    TeacherSampling,
    draw,
    fit_maps,
    layer_pairs,
    mapped_logits,
    renumbered,
    sampled_loss,
    states_function,
)
from lcc.training.loss import logits_function, summed_loss


def peaked(num: int, classes: int) -> torch.Tensor:
    torch.manual_seed(0)
    return 3 * torch.randn(num, classes)


@pytest.mark.parametrize("proposal", [1.0, 0.7])
def test_the_expected_weight_of_a_token_is_its_probability(proposal: float) -> None:
    logits, how = peaked(1, 20), TeacherSampling(50_000, 2.0, proposal, 0)
    found = draw(logits, how, generator=torch.Generator().manual_seed(1))
    mean = torch.zeros(20).index_add(0, found.ids[0], found.weights[0])
    p = (logits[0] / 2.0).softmax(-1)
    # Four standard errors; the rarest tokens too, which a truncation would call impossible.
    q = (p.log() * proposal).softmax(-1)
    assert bool(((mean - p).abs() <= 4 * p * ((1 / q - 1) / 50_000).sqrt() + 1e-6).all())
    assert float(found.entropy) == pytest.approx(float(-(p * p.log()).sum()), rel=1e-5)


def test_truncated_logits_would_be_biased_where_samples_are_not() -> None:
    p = peaked(1, 20).softmax(-1)[0]
    top = torch.where(p >= p.topk(5).values[-1], p, torch.zeros(()))
    bias = (top / top.sum() - p).abs().max()
    how = TeacherSampling(5, 1.0, 1.0, 0)
    mean = torch.zeros(20)
    for seed in range(4000):
        found = draw(p.log()[None], how, generator=torch.Generator().manual_seed(seed))
        mean.index_add_(0, found.ids[0], found.weights[0] / 4000)
    assert float((mean - p).abs().max()) < 0.2 * float(bias)


def test_the_sampled_loss_and_gradient_average_to_the_whole_ones() -> None:
    teacher, targets = peaked(3, 12), torch.tensor([1, 4, 7])
    student = torch.randn(3, 12, requires_grad=True)
    how: dict[str, float] = {"weight": 0.7, "temperature": 2.0}
    whole = summed_loss(student, targets, teacher=teacher, **how)
    (expected,) = torch.autograd.grad(whole, student)
    losses, gradients = [], []
    for seed in range(600):
        generator = torch.Generator().manual_seed(seed)
        samples = draw(teacher, TeacherSampling(32, 2.0, 1.0, 0), generator=generator)
        loss = sampled_loss(student, targets, samples, **how)
        losses.append(loss.detach())
        gradients.append(torch.autograd.grad(loss, student)[0])
    spread = torch.stack(losses).std() / 600**0.5
    assert abs(float(torch.stack(losses).mean() - whole.detach())) < 4 * float(spread)
    stacked = torch.stack(gradients)
    error = (stacked.mean(0) - expected).abs()
    assert bool((error <= 5 * stacked.std(0) / 600**0.5 + 1e-6).all())


def test_every_token_as_its_own_sample_is_the_whole_teacher() -> None:
    teacher, targets = peaked(4, 9), torch.tensor([0, 1, 2, 3])
    p = (teacher / 2).softmax(-1)
    samples = Samples(torch.arange(9).repeat(4, 1), p, -(p * p.log()).sum(-1))
    student = torch.randn(4, 9)
    options: dict[str, float] = {"weight": 0.5, "temperature": 2.0, "label_smoothing": 0.1}
    found = sampled_loss(student, targets, samples, **options)
    assert float(found) == pytest.approx(
        float(summed_loss(student, targets, teacher=teacher, **options)), rel=1e-5
    )


def filled(folder: Path, num: int = 12, **changes: Any) -> tuple[SampledLogits, list[int]]:
    train, asked = examples(num), []
    teacher = logits_function(model().eval(), "causal")

    def counted(batch: Batch) -> torch.Tensor:
        asked.append(len(batch.targets))
        return teacher(batch)

    sampling = replace(TeacherSampling(8, 2.0, 1.0, 0), **changes)
    cache = SampledLogits(folder, train, sampling)
    cache.fill(counted, head="causal", pad=0, device="cpu", micro_tokens=64, progress=Progress(quiet=True))
    return cache, asked


def test_a_cache_gives_each_example_its_own_samples(tmp_path: Path) -> None:
    cache, _ = filled(tmp_path)
    train = examples(12)
    one, two = cache([5]), cache([2])
    both = cache([5, 2])
    assert one.ids.shape == (train.targets[5], 8)
    for first, second, joint in zip(one, two, both, strict=True):
        assert torch.equal(torch.cat([first, second]), joint)


def test_a_finished_part_is_not_sampled_again_and_other_settings_are(tmp_path: Path) -> None:
    _, first = filled(tmp_path, num=PART + 6)
    (tmp_path / "part-00001.safetensors").unlink()
    before = (tmp_path / "part-00000.safetensors").stat().st_mtime_ns
    cache, second = filled(tmp_path, num=PART + 6)
    assert sum(second) == sum(cache.examples.targets[PART:]) < sum(first)
    assert (tmp_path / "part-00000.safetensors").stat().st_mtime_ns == before
    assert filled(tmp_path, num=PART + 6)[1] == []
    assert sum(filled(tmp_path, num=PART + 6, temperature=1.0)[1]) == sum(first)


def test_samples_do_not_depend_on_how_examples_were_batched(tmp_path: Path) -> None:
    whole, _ = filled(tmp_path / "a")
    again, _ = filled(tmp_path / "b")
    assert all(torch.equal(a, b) for a, b in zip(whole([3, 4]), again([3, 4]), strict=True))


def test_cached_training_follows_the_teacher(tmp_path: Path) -> None:
    cache, _ = filled(tmp_path, num_samples=400)
    student, train = model(), examples(12)
    losses = []
    for given in (
        Distillation(None, 1.0, 2.0, samples=cache),
        Distillation(logits_function(model().eval(), "causal"), 1.0, 2.0),
    ):
        losses.append(stepper(student, distillation=given).accumulate(train, range(12), step=0))
    assert losses[1] == pytest.approx(0, abs=1e-6)
    assert losses[0] == pytest.approx(0, abs=0.1)  # the same model, but for the sampling


def test_equal_models_have_no_distance_and_blocks_are_spread_evenly() -> None:
    assert layer_pairs(2, 2) == [(1, 1), (2, 2)]
    assert layer_pairs(3, 6) == [(1, 2), (2, 4), (3, 6)]
    batch = collate(examples(5).rows, head="causal", pad=0, device="cpu")
    states = states_function(model().eval(), "causal")
    assert fit_maps(states, states, [batch]) == {}
    match = HiddenMatch(states, states, 1.0, {})
    with torch.no_grad():
        logits, own = states(batch)
        expected = logits_function(model().eval(), "causal")(batch)
    torch.testing.assert_close(logits, expected)
    assert float(match.loss(own, own, 7)) == 0
    doubled = [2 * state for state in own]
    assert float(match.loss(doubled, own, 7)) == pytest.approx(7, rel=1e-4)


def test_maps_between_widths_are_least_squares() -> None:
    batches = [collate(examples(30).rows, head="causal", pad=0, device="cpu")]
    narrow = states_function(model().eval(), "causal")
    wide = states_function(model(width=24).eval(), "causal")
    maps = fit_maps(narrow, wide, batches)
    assert {i: tuple(m.shape) for i, m in maps.items()} == {1: (16, 24), 2: (16, 24)}
    with torch.no_grad():
        _, own = narrow(batches[0])
        _, shown = wide(batches[0])
    best = torch.linalg.lstsq(own[1], shown[1]).solution
    found, least = ((own[1] @ m - shown[1]).square().sum() for m in (maps[1], best))
    assert float(found) < 1.05 * float(least)
    loss = HiddenMatch(narrow, wide, 1.0, maps).loss(own, shown, 10)
    assert 0 < float(loss) < 10


def test_hidden_states_add_their_distance_to_the_loss() -> None:
    student, train = model(), examples(8)
    teacher = model(width=24).eval()
    own, shown = (states_function(m, "causal") for m in (student, teacher))
    batch = collate(train.rows, head="causal", pad=0, device="cpu")
    maps = fit_maps(own, shown, [batch])
    logits = logits_function(teacher, "causal")
    losses = []
    for hidden in (None, HiddenMatch(own, shown, 0.5, maps)):
        given = Distillation(logits, 0.5, 2.0, hidden=hidden)
        losses.append(stepper(student, distillation=given).accumulate(train, range(8), step=0))
    assert losses[1] > losses[0]
    assert student.model.layers[0].mlp.up_proj.weight.grad is not None


def test_a_teacher_with_other_numbers_is_asked_in_them() -> None:
    teacher = logits_function(model().eval(), "causal")
    ids = torch.randperm(40, generator=torch.Generator().manual_seed(0))[:30]
    small = Batch(
        {"input_ids": torch.tensor([[3, 7, 9]]), "attention_mask": torch.ones(1, 3).long()},
        torch.tensor([[True, True, False]]),
        torch.tensor([7, 9]),
    )
    large = renumbered(small, ids)
    assert large.inputs["input_ids"].tolist() == [ids[[3, 7, 9]].tolist()]
    with torch.no_grad():
        found = mapped_logits(teacher, ids, "causal")(small)
        assert torch.equal(found, teacher(large)[:, ids])
    labelled = replace(small, inputs={"labels": torch.tensor([[-100, 4]])})
    assert renumbered(labelled, ids).inputs["labels"].tolist() == [[-100, int(ids[4])]]
