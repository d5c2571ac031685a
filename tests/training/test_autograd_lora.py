"""A fused LoRA layer computes what peft's does, and steps aside where peft's does more."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch
from training_cases import examples, model, stepper

from lcc.models.adapter_io import mask_adapters
from lcc.training.autograd import fused_adapters


def adapted(**changes: Any) -> Any:
    torch.manual_seed(1)
    config = peft.LoraConfig(
        r=3, lora_alpha=5, target_modules="all-linear", init_lora_weights=False, **changes
    )
    return peft.get_peft_model(model(), config)


def gradients(trained: Any) -> dict[str, torch.Tensor]:
    return {n: p.grad.clone() for n, p in trained.named_parameters() if p.grad is not None}


def test_loss_and_gradients_are_pefts() -> None:
    trained, data = adapted(), examples(8)
    loss = stepper(trained).accumulate(data, range(8), step=0)
    expected = gradients(trained)
    with fused_adapters(trained) as num_fused:
        found = stepper(trained).accumulate(data, range(8), step=0)
    assert num_fused == 2 * 7
    assert found == pytest.approx(loss, abs=1e-6)
    got = gradients(trained)
    assert got.keys() == expected.keys() and len(got) == 2 * num_fused
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient, atol=1e-6, rtol=1e-4)


def test_a_bias_and_an_input_without_gradient_are_understood() -> None:
    torch.manual_seed(0)
    plain = torch.nn.Sequential(torch.nn.Linear(6, 4))
    config = peft.LoraConfig(r=2, target_modules=["0"], init_lora_weights=False)
    trained, x = peft.get_peft_model(plain, config), torch.randn(5, 6)  # type: ignore[arg-type]
    trained(x).square().sum().backward()
    expected = gradients(trained)
    trained.zero_grad()
    with fused_adapters(trained):
        trained(x).square().sum().backward()
    for name, gradient in gradients(trained).items():
        torch.testing.assert_close(gradient, expected[name])


@pytest.mark.parametrize("changes", [{"use_dora": True}, {"lora_dropout": 0.1}])
def test_variants_keep_their_own_forward(changes: dict[str, Any]) -> None:
    with fused_adapters(adapted(**changes)) as num_fused:
        assert num_fused == 0


def test_sparse_layers_keep_their_masked_forward() -> None:
    trained = adapted()
    layer = trained.base_model.model.model.layers[0].mlp.up_proj
    layer.base_layer.weight.data[:, ::2] = 0
    mask_adapters(trained)
    masked = layer.forward
    with fused_adapters(trained) as num_fused:
        assert num_fused == 2 * 7 - 1 and layer.forward is masked


def test_half_precision_runs_pefts_own() -> None:
    trained, ids = adapted().eval(), torch.tensor([[1, 2, 3]])
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        expected = trained(input_ids=ids).logits
        with fused_adapters(trained):
            assert torch.equal(trained(input_ids=ids).logits, expected)


def test_afterwards_layers_are_as_they_were() -> None:
    trained = adapted()
    with fused_adapters(trained):
        pass
    assert not any("forward" in vars(module) for module in trained.modules())
