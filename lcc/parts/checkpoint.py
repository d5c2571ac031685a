"""A model on disk as `from_pretrained` reads it: safetensors, JSON and our card; never pickle."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lcc.core.decode import card, decode
from lcc.core.errors import IntegrityError, RecipeError
from lcc.core.lazy import torch, transformers
from lcc.parts.folder import read_json, tensors, weight_files

if TYPE_CHECKING:
    from torch import Tensor

    from lcc.parts.model import Bundle
    from lcc.parts.tensor_files import Entry

Form = Literal["dense", "packed", "adapter", "adapted"]
"""`adapted` is what a step hands on whose adapter stays; the card keeps the form of its base."""
Head = Literal[
    "causal", "seq2seq", "classify", "embed", "masked", "paired", "extract", "transcribe"
]

CARD_FILE = "lcc_card.json"
ADAPTER = "adapter"  # the folder of a model's own adapter, below its own
SHARD_BYTES = "4GB"
UNTRAINED: tuple[Head, ...] = ("classify", "extract")  # a new one knows nothing yet
AUTO_CLASSES: dict[Head, str] = {
    "causal": "AutoModelForCausalLM",
    "seq2seq": "AutoModelForSeq2SeqLM",
    "classify": "AutoModelForSequenceClassification",
    "embed": "AutoModel",
    "masked": "AutoModelForMaskedLM",
    "paired": "AutoModelForPreTraining",  # BERT's two heads
    "extract": "AutoModelForQuestionAnswering",
    "transcribe": "AutoModelForSpeechSeq2Seq",
}
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "chat_template.jinja", "vocab.txt", "vocab.json", "merges.txt",
    "*.model", "source.spm", "target.spm", "preprocessor_config.json",
)  # fmt: skip
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@card
class Card:
    """What a stranger must know to load a checkpoint; `model/lcc_card.json`.

    `dtype` is that of the stored weights; `sparse` names the zero pattern; `headless` says that
    the head is missing or untrained; `requires` are packages beyond transformers; `adapter` says
    that a peft adapter in `adapter/` below the folder belongs to the model; `loads_with: lcc` that
    plain transformers has no such layers.
    """

    name: str
    auto_class: str
    head: Head
    form: Form = "dense"
    dtype: str = "bfloat16"
    sparse: str | None = None
    format: str = "safetensors"
    requires: tuple[str, ...] = ()
    licence: str = ""
    origin: str = ""
    headless: bool = False
    adapter: bool = False
    loads_with: Literal["transformers", "lcc"] = "transformers"


def read_card(folder: Path) -> Card:
    """The card of a folder: written by us, or inferred from config.json and the tensor headers."""
    file = folder / CARD_FILE
    if not file.is_file():
        return _inferred(folder)
    try:
        return decode(Card, read_json(file), str(file))
    except RecipeError as error:
        raise IntegrityError(f"the model card is damaged: {error}") from None


def write_card(value: Card, folder: Path) -> None:
    """`lcc_card.json` in `folder`."""
    text = json.dumps(dataclasses.asdict(value), indent=2, ensure_ascii=False)
    (folder / CARD_FILE).write_text(f"{text}\n", encoding="utf-8")


def save(bundle: Bundle, folder: Path) -> None:
    """Write the bundle as a stranger reads it; the model in memory stays as it is.

    `folder` is the artifact's `model/`; an adapter goes to `adapter/` beside it instead.
    """
    if bundle.card.form == "adapter":
        folder = folder.parent / "adapter"
    folder.mkdir(parents=True, exist_ok=True)
    hush()
    write_weights(bundle, folder)
    if bundle.card.form != "adapter":
        _save_tokenizer(bundle, folder)
    write_card(bundle.card, folder)
    for file in folder.rglob("*"):
        # transformers writes weights 0600, which a shared store could not read.
        file.chmod(0o755 if file.is_dir() else 0o644)


def write_weights(bundle: Bundle, folder: Path) -> None:
    """Weights and config alone, by the bundle's own `write` where it has one."""
    if bundle.write is not None:
        bundle.write(bundle, folder)
    elif bundle.streamed is not None:
        write_streamed(bundle, folder)
    elif _is_untouched(bundle):
        _copy_weights(bundle, folder)
    elif bundle.card.form == "adapter":
        _save_adapter(bundle, folder)
    else:
        _save_dense(bundle, folder)


def _is_untouched(bundle: Bundle) -> bool:
    """Whether the folder it came from already holds exactly what would be written."""
    if bundle.module is not None or bundle.path is None:
        return False
    return read_card(bundle.path).dtype == bundle.card.dtype


def _copy_weights(bundle: Bundle, folder: Path) -> None:
    assert bundle.path is not None
    names = ("config.json", "generation_config.json", "model.safetensors.index.json")
    for file in [*(bundle.path / name for name in names), *weight_files(bundle.path)]:
        if file.is_file():
            shutil.copyfile(file, folder / file.name)
    if bundle.card.adapter:
        shutil.copytree(bundle.path / ADAPTER, folder / ADAPTER)


def write_streamed(
    bundle: Bundle,
    folder: Path,
    *,
    replaced: Mapping[str, Mapping[str, Entry]] | None = None,
    **config: Any,
) -> None:
    """A streamed bundle's weights from their files, and the config that it came with, patched."""
    assert bundle.streamed is not None and bundle.path is not None
    bundle.streamed.write(folder, dtype=bundle.card.dtype, replaced=replaced or {})
    for name in ("config.json", "generation_config.json"):
        if (bundle.path / name).is_file():
            shutil.copyfile(bundle.path / name, folder / name)
    _patch_config(folder / "config.json", dtype=bundle.card.dtype, **config)


def hush() -> None:
    """Silence the bars of transformers and compressed-tensors; progress is told by ours."""
    # Read by tqdm when it is imported. TQDM_DISABLE gives way to a caller's disable=False.
    os.environ.setdefault("TQDM_DELAY", "1000000")
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def _save_dense(bundle: Bundle, folder: Path) -> None:
    module = bundle.load(dtype=None)
    before = {key: getattr(module.config, key, None) for key in ("dtype", "architectures")}
    state = _cast(module.state_dict(), bundle.card.dtype)
    module.save_pretrained(folder, state_dict=state, max_shard_size=SHARD_BYTES)
    for key, value in before.items():
        setattr(module.config, key, value)
    _patch_config(folder / "config.json", dtype=bundle.card.dtype)


def _cast(state: dict[str, Tensor], dtype: str) -> dict[str, Tensor]:
    """Floating tensors in `dtype`; tensors that share storage go on sharing it."""
    wanted = getattr(torch, dtype)
    done: dict[tuple[int, tuple[int, ...]], Tensor] = {}
    result = {}
    for name, tensor in state.items():
        key = (tensor.data_ptr(), tuple(tensor.shape))
        if key not in done:
            done[key] = tensor.to(wanted) if tensor.is_floating_point() else tensor
        result[name] = done[key]
    return result


def _patch_config(file: Path, **changes: Any) -> None:
    config = read_json(file) | changes
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _save_adapter(bundle: Bundle, folder: Path) -> None:
    bundle.load(dtype=None).save_pretrained(folder)
    for stray in ("README.md", "config.json"):
        (folder / stray).unlink(missing_ok=True)
    # peft notes the path it was trained from: a path of this machine, true nowhere else.
    _patch_config(folder / "adapter_config.json", base_model_name_or_path=bundle.card.name)


def _save_tokenizer(bundle: Bundle, folder: Path) -> None:
    """Copied file by file while it is unchanged, so that it reloads identically."""
    if bundle.tokenizer_changed:
        bundle.tokenizer.save_pretrained(folder)
    elif bundle.path is not None and bundle.path != folder:
        for pattern in TOKENIZER_FILES:
            for file in bundle.path.glob(pattern):
                shutil.copyfile(file, folder / file.name)


def _inferred(folder: Path) -> Card:
    config = read_json(folder / "config.json")
    architecture = str((config.get("architectures") or [""])[0])
    head = _head_of(architecture, config)
    method = (config.get("quantization_config") or {}).get("quant_method")
    return Card(
        name=folder.resolve().name,
        auto_class=AUTO_CLASSES[head],
        head=head,
        form="packed" if method else "dense",
        dtype=_stored_dtype(folder, config),
        format=str(method) if method else "safetensors",
        requires=(str(method),) if method else (),
    )


def _head_of(architecture: str, config: dict[str, Any]) -> Head:
    if architecture.endswith(("ForCausalLM", "LMHeadModel")):
        return "causal"
    if architecture.endswith("ForSequenceClassification"):
        return "classify"
    if architecture.endswith("ForQuestionAnswering"):
        return "extract"
    if architecture == "WhisperForConditionalGeneration":
        return "transcribe"
    if architecture.endswith("ForMaskedLM"):
        return "masked"
    if architecture.endswith("BertForPreTraining"):
        return "paired"
    if config.get("is_encoder_decoder") or architecture.endswith("MTModel"):
        return "seq2seq"
    return "embed"


def _stored_dtype(folder: Path, config: dict[str, Any]) -> str:
    """The dtype of most stored floating tensors; what config.json says where nothing is stored."""
    kinds = Counter(_DTYPES[t["dtype"]] for _, t in tensors(folder) if t["dtype"] in _DTYPES)
    if kinds:
        return kinds.most_common(1)[0][0]
    return str(config.get("dtype") or config.get("torch_dtype") or "float32")
