"""Model checkpoints: write weights, config, tokenizer and card as `from_pretrained` reads them."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lcc.core.lazy import torch
from lcc.models.card import (
    ADAPTER,
    TOKENIZER_FILES,
    hush,
    read_card,
    read_json,
    weight_files,
    write_card,
    write_config,
)

if TYPE_CHECKING:
    from torch import Tensor

    from lcc.models.bundle import Bundle
    from lcc.models.safetensors_io import TensorEntry

SHARD_BYTES = "4GB"


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
    replaced: Mapping[str, Mapping[str, TensorEntry]] | None = None,
    **config: Any,
) -> None:
    """A streamed bundle's weights from their files, and the config that it came with, patched."""
    assert bundle.streamed is not None and bundle.path is not None
    bundle.streamed.write(folder, dtype=bundle.card.dtype, replaced=replaced or {})
    for name in ("config.json", "generation_config.json"):
        if (bundle.path / name).is_file():
            shutil.copyfile(bundle.path / name, folder / name)
    _patch_config(folder / "config.json", dtype=bundle.card.dtype, **config)


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
    write_config(file, read_json(file) | changes)


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
