"""An adapter from its folder onto its base: around the weights, or inside them where it can be."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lcc.core.lazy import peft
from lcc.parts.bottlenecks import has_bottlenecks, read_bottlenecks

if TYPE_CHECKING:
    from torch.nn import Module


def hush() -> None:
    """Silence what peft and bitsandbytes say about themselves; nothing in it is the user's."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
    # AdaLoRA keeps its ranks where LoRA has other ones, and may leave a layer with none.
    warnings.filterwarnings("ignore", message="Adapter .* have invalid shape")
    warnings.filterwarnings("ignore", message="The following rank_pattern keys did not match")
    warnings.filterwarnings("ignore", message="Unsupported layer type .*Norm")
    # Behind a prompt no row is padded, so that counted positions are the right ones.
    warnings.filterwarnings("ignore", message="Position ids are not supported")


def put_adapter(base: Any, folder: Path, *, merge: bool = False) -> Module:
    """`base` with the adapter of `folder`, in place and in eval mode.

    With `merge` it becomes part of the weights, if it is of a kind that can.
    """
    hush()
    if has_bottlenecks(folder):
        return read_bottlenecks(base, folder).eval()
    adapted: Any = peft.PeftModel.from_pretrained(base, folder).eval()
    if not merge or is_prompt(adapted):
        return adapted  # type: ignore[no-any-return]
    return merge_adapter(adapted)


def merge_adapter(adapted: Any) -> Module:
    """The plain model with the adapter in its weights."""
    model: Module = adapted.merge_and_unload()
    for name, module in list(model.named_modules()):
        # LN tuning leaves a trained head in the wrapper that it was trained in.
        unwrap: Any = getattr(module, "unload_and_optionally_merge_module", None)
        if unwrap is not None:
            parent, _, leaf = name.rpartition(".")
            bare = unwrap(merge=True, safe_merge=False, adapter_names=None)
            setattr(model.get_submodule(parent), leaf, bare)
    return model


def is_prompt(model: Any) -> bool:
    """Whether trained vectors stand before the text that `model` reads."""
    return bool(getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False))


def num_virtual(model: Any) -> int:
    """Positions of the window that trained vectors take."""
    return int(model.active_peft_config.num_virtual_tokens) if is_prompt(model) else 0
