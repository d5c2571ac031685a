"""The chunked loss and its gradients are the plain one's, and few logits exist at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode
from training_cases import examples, model, stepper

from lcc.training.autograd import chunked_loss
from lcc.training.batches import Batch, collate
from lcc.training.loss import Projection, projection_of, summed_loss


def tied() -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        tie_word_embeddings=True,
    )
    return transformers.LlamaForCausalLM(config)


def frozen_head() -> Any:
    untied = model()
    untied.lm_head.requires_grad_(False)
    return untied


def low_rank_head() -> Any:
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "lm_head"], init_lora_weights=False)
    return peft.get_peft_model(model(), config)


def retrained_head() -> Any:
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"])
    return peft.get_peft_model(model(), config)


def softcapped() -> Any:
    torch.manual_seed(0)
    config = transformers.Gemma2Config(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        final_logit_softcapping=0.05,
    )
    return transformers.Gemma2ForCausalLM(config)


def t5() -> Any:
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=40,
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=1,
        num_heads=2,
        dropout_rate=0.0,
        decoder_start_token_id=0,
    )
    return transformers.T5ForConditionalGeneration(config)


def marian() -> Any:
    torch.manual_seed(0)
    config = transformers.MarianConfig(
        vocab_size=40,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        pad_token_id=0,
        eos_token_id=2,
        decoder_start_token_id=0,
        max_position_embeddings=32,
        dropout=0.0,
    )
    built = transformers.MarianMTModel(config)
    built.final_logits_bias.normal_()
    return built


CAUSAL = [model, tied, frozen_head, low_rank_head, retrained_head, softcapped]
BUILDS = [(build, "causal") for build in CAUSAL] + [(t5, "seq2seq"), (marian, "seq2seq")]


def batch_of(head: Any) -> Batch:
    return collate(examples(12).rows, head=head, pad=0, device="cpu")


def whole_logits(trained: Any, batch: Batch) -> torch.Tensor:
    """transformers' own forward, everywhere."""
    found: torch.Tensor = trained(**batch.inputs).logits[batch.positions]
    return found


def gradients(trained: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    trained.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    return {n: p.grad.clone() for n, p in trained.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(("build", "head"), BUILDS)
def test_loss_and_gradients_are_the_plain_ones(build: Callable[[], Any], head: Any, smoothing: float) -> None:
    trained, batch = build().train(), batch_of(head)
    plain = summed_loss(whole_logits(trained, batch), batch.targets, label_smoothing=smoothing)
    expected = gradients(trained, plain / 7)
    cut = projection_of(trained, head)
    assert cut is not None
    found = chunked_loss(cut, cut.states(batch), batch.targets, chunk=5, label_smoothing=smoothing)
    assert found.item() == pytest.approx(plain.item(), rel=1e-6)
    got = gradients(trained, found / 7)
    assert got.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient, atol=2e-6, rtol=1e-4, msg=name)


class Largest(TorchDispatchMode):
    """Notes the rows of the largest result that is as wide as the vocabulary."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width, self.rows = width, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        is_weight = isinstance(result, torch.Tensor) and result.shape[:1] == (16,)  # transposed
        if isinstance(result, torch.Tensor) and result.shape[-1:] == (self.width,) and not is_weight:
            self.rows = max(self.rows, result.numel() // self.width)
        return result


def test_no_more_logits_than_a_chunk_exist_at_once() -> None:
    # 37 is neither a width of the model nor a length of the batch.
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=37, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    trained, data = transformers.LlamaForCausalLM(config), examples(12)
    for row in data.rows:
        row.input_ids[:] = [i % 37 for i in row.input_ids]
        row.labels[:] = [i if i < 0 else i % 37 for i in row.labels]
    cut = projection_of(trained, "causal")
    step = stepper(trained, micro_tokens=10_000, projection=cut, loss_chunk=4)
    with Largest(37) as chunked:
        step.accumulate(data, range(12), step=0)
    step.loss_chunk = None
    with Largest(37) as whole:
        step.accumulate(data, range(12), step=0)
    assert chunked.rows == 4 and whole.rows == sum(data.targets) > 40


def test_a_validation_loss_is_the_same_in_chunks() -> None:
    trained, data = model(), examples(12)
    step = stepper(trained, projection=projection_of(trained, "causal"), loss_chunk=3)
    chunked = step.validate(data)
    step.loss_chunk = None
    assert chunked == pytest.approx(step.validate(data), rel=1e-6)


def test_gradients_can_go_to_the_states_alone_or_the_layer_alone() -> None:
    layer, targets = torch.nn.Linear(4, 6, bias=False), torch.tensor([1, 0, 5])
    cut = Projection(lambda _: torch.empty(0), layer, layer)
    frozen = torch.randn(3, 4)
    chunked_loss(cut, frozen, targets, chunk=2).backward()  # type: ignore[no-untyped-call]
    assert layer.weight.grad is not None and layer.weight.grad.abs().sum() > 0
    layer.weight.requires_grad_(False)
    states = torch.randn(3, 4, requires_grad=True)
    chunked_loss(cut, states, targets, chunk=2).backward()  # type: ignore[no-untyped-call]
    assert states.grad is not None and states.grad.abs().sum() > 0
