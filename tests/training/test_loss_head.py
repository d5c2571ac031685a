"""Models are cut where their output layer begins; frozen layers below training cost no graph."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch
from training_cases import examples, model

from lcc.training.batches import collate
from lcc.training.loss import logits_function, projection_of
from lcc.training.optim import checkpoint_blocks


class Scaled(torch.nn.Module):
    """An output layer behind which a family does something more."""

    def __init__(self, whole: Any) -> None:
        super().__init__()
        self.whole, self.forward_whole = whole, whole.forward

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = self.forward_whole(*args, **kwargs)
        output.logits = output.logits * 3
        return output


def test_a_head_that_does_more_is_not_cut() -> None:
    odd = model().eval()
    odd.forward = Scaled(odd).forward
    assert projection_of(odd, "causal") is None
    batch = collate(examples(4).rows, head="causal", pad=0, device="cpu")
    with torch.no_grad():
        expected = odd(**batch.inputs).logits[batch.positions]
        torch.testing.assert_close(logits_function(odd, "causal")(batch), expected)


def test_virtual_tokens_are_not_cut_off() -> None:
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    prompted = peft.get_peft_model(model(), config)
    assert projection_of(prompted, "causal") is None


@pytest.mark.parametrize("checkpointing", [False, True])
def test_nothing_below_the_first_trained_layer_is_kept_for_the_backward(checkpointing: bool) -> None:
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "up_proj"], layers_to_transform=[1])
    trained = peft.get_peft_model(model(), config).train()
    if checkpointing:
        checkpoint_blocks(trained)
    body, seen = trained.get_base_model().model, dict[str, bool]()
    for name, part in {"embedding": body.embed_tokens, "0": body.layers[0], "1": body.layers[1]}.items():
        part.register_forward_hook(
            lambda _module, _inputs, output, name=name: seen.update({name: output.requires_grad})
        )
    cut = projection_of(trained, "causal")
    assert cut is not None
    cut.states(collate(examples(4).rows, head="causal", pad=0, device="cpu"))
    assert seen == {"embedding": False, "0": False, "1": True}
