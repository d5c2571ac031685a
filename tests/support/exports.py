"""Tiny random models on disk, and exports of them compared on few prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import compressing as tiny

from lcc.config.cards import decode, find_card
from lcc.export.parity import Parity, texts
from lcc.export.publish import Exported, ParityTrial, publish
from lcc.models.checkpoint import save

SIZES = {"hidden_size": 64, "intermediate_size": 256}
DECODERS: dict[str, dict[str, Any]] = {
    "llama": {"head_dim": 16},
    "qwen3": {},
    # Layers that see a window of 8 and others that see everything.
    "gemma3": {"query_pre_attn_scalar": 8, "num_hidden_layers": 7, "sliding_window": 8},
}
TEMPLATE = (
    "{% for m in messages %}<s>{{ m['role'] }}\n{{ m['content'] | trim }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)


def saved(family: str, folder: Path, *, template: str | None = None, **changes: Any) -> Path:
    """A random model of a family with a byte-level tokenizer."""
    sizes = {**SIZES, **DECODERS.get(family, {})} if family in DECODERS else {}
    bundle = tiny.bundle(getattr(tiny, family)(**{**sizes, **changes}))
    bundle.tokenizer = tiny.byte_level_tokenizer(400)
    if template is not None:
        bundle.tokenizer.chat_template = template
    save(bundle, folder)
    return folder


def prompts(folder: Path, num: int) -> list[list[int]]:
    """Every eighth of the fixed texts, as the model's tokenizer says them."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return [tokenizer(text)["input_ids"] for text in texts()[:: 200 // num]]


def exported(source: Path, target: Path, format: str, *, num_prompts: int = 16, **options: Any) -> Exported:
    exporter = decode(find_card("exporters", format), options)
    trial = ParityTrial(prompts=prompts(source, num_prompts), new_tokens=4)
    return publish(source, target, exporter, trial=trial)


def told(parity: Parity) -> str:
    """What an assertion shows."""
    return f"error {parity.logit_error:.4f}, agreement {parity.agreement:.4f}"
