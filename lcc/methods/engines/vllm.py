"""Run a checkpoint in vLLM on a GPU, with paged attention (`pip install lcc[vllm]`)."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from lcc.config.cards import card
from lcc.core.errors import ResourceError
from lcc.core.machine import accelerators
from lcc.core.types import Head
from lcc.models.card import read_card

if TYPE_CHECKING:
    from lcc.inference.session import Opening, Session


@card
class Vllm:
    """Causal models, dense or packed as compressed-tensors, as they lie (Kwon et al., 2023)."""

    word: ClassVar[str] = "vllm"
    revision: ClassVar[int] = 1
    format: ClassVar[str] = "hf"
    package: ClassVar[str] = "vllm"
    extra: ClassVar[str] = "vllm"
    heads: ClassVar[tuple[Head, ...]] = ("causal",)

    def refusal(self, folder: Path) -> str | None:
        """No GPU, no package, another head, or layers that only lcc knows."""
        missing = _missing()
        if missing is not None:
            return missing
        card = read_card(folder)
        if card.head not in self.heads:
            return f"vLLM runs causal models, and {card.name!r} is {card.head}."
        if card.loads_with == "lcc" or card.adapter:
            return f"vLLM cannot load {card.name!r}: its layers are lcc's own; merge or export it."
        return None

    def open(self, folder: Path, opening: Opening) -> Session:
        """An engine of vLLM's in this process."""
        missing = _missing()
        if missing is not None:
            raise ResourceError(f"engine vllm: {missing}")
        from lcc.inference.backends.vllm import VllmSession

        return VllmSession(folder, opening)


def _missing() -> str | None:
    if not accelerators():
        return "vLLM needs a GPU, and this machine has none; use another engine."
    if importlib.util.find_spec("vllm") is None:
        return "vLLM is not installed; pip install 'lcc[vllm]'."
    return None
