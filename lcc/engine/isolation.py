"""Whether a model can be kept from looking across documents packed into one row."""

from __future__ import annotations

import inspect
from typing import Any

from lcc.core.lazy import torch

NUM_FIRST, NUM_SECOND = 5, 4  # tokens of the two documents that are tried


def isolates(module: Any) -> bool:
    """Whether positions that start again, and no attention mask, keep two documents apart.

    Found by asking for the gradient of the second's logits with respect to the first's embeddings:
    it is exactly zero where nothing was looked at. No table of families says so.
    """
    if "position_ids" not in inspect.signature(module.forward).parameters:
        return False
    embedding = module.get_input_embeddings()
    ids = torch.arange(1, 1 + NUM_FIRST + NUM_SECOND, device=module.device).unsqueeze(0)
    positions = torch.tensor([[*range(NUM_FIRST), *range(NUM_SECOND)]], device=module.device)
    was_training = module.training
    module.eval()
    with torch.enable_grad():
        embedded = embedding(ids % embedding.weight.shape[0]).detach().requires_grad_()
        logits = module(inputs_embeds=embedded, position_ids=positions, use_cache=False).logits
        (seen,) = torch.autograd.grad(logits[:, NUM_FIRST:].square().sum(), embedded)
    module.train(was_training)
    return not bool(seen[:, :NUM_FIRST].any())
