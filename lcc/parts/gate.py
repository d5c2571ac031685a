"""The reload gate: what is on disk must be the model that was in memory."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lcc.core.errors import GateError
from lcc.core.lazy import safetensors, torch
from lcc.core.measure import Measure
from lcc.parts.checkpoint import read_card
from lcc.parts.folder import read_header, weight_files
from lcc.parts.model import Bundle, auto_class

if TYPE_CHECKING:
    from torch import Tensor

PROBE_TOKENS = 24
# Largest |Δlogit| as a share of the largest |logit|. Dense weights reload bit for bit, so only the
# order of sums may differ; packed scales are stored in half precision.
TOLERANCE = {"dense": 1e-3, "packed": 5e-2}


def reload_gate(bundle: Bundle, folder: Path, *, parent: Path | None) -> dict[str, Measure]:
    """Reload `folder` as a stranger would and compare logits with the model in memory.

    Raises GateError for logits beyond the format's tolerance, a non-finite tensor, or a matrix
    that is constant now and was not in `parent`.
    """
    if bundle.card.form == "adapter":
        _check_finite_files(folder.parent / "adapter")
        return {}
    card = read_card(folder)
    disk = Bundle(card=card, path=folder).load(dtype=card.dtype)
    _check_tensors(disk, folder, parent)
    memory = _in_dtypes_of(bundle.load(dtype=None), disk)
    ids = probe_ids(disk.config)
    expected, got = probe_logits(memory, ids), probe_logits(disk, ids)
    measures = {"reload_max_logit_difference": _compare(expected, got, folder, card.form)}
    del memory
    if card.form == "packed":
        exact = probe_logits(disk.float(), ids)
        measures |= _native_check(folder, exact, noise=float((got - exact).abs().max()))
    return measures


def probe_ids(config: Any) -> Tensor:
    """Fixed token ids, (1, PROBE_TOKENS), the same for every model with this vocabulary."""
    size = config.get_text_config().vocab_size
    draws = torch.Generator().manual_seed(0)
    return torch.randint(0, size, (1, PROBE_TOKENS), generator=draws)


def probe_logits(module: Any, ids: Tensor) -> Tensor:
    """Logits (or hidden states of a headless encoder) on the probe, float32 on the CPU."""
    was_training = module.training
    module.eval()
    inputs = {"input_ids": ids.to(module.device)}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    if module.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = inputs["input_ids"][:, : PROBE_TOKENS // 2]
    with torch.no_grad():
        output = module(**inputs)
    module.train(was_training)
    logits = output.logits if "logits" in output else output.last_hidden_state
    result: Tensor = logits.float().cpu()
    return result


def _compare(
    expected: Tensor, got: Tensor, folder: Path, form: str, *, noise: float = 0.0
) -> Measure:
    if expected.shape != got.shape:
        raise GateError(
            f"{folder}: logits have shape {tuple(got.shape)} after reloading, "
            f"{tuple(expected.shape)} in memory; config and weights do not agree."
        )
    difference = float((expected - got).abs().max())
    limit = max(TOLERANCE[form] * max(1.0, float(expected.abs().max())), 2 * noise)
    # Written so that a NaN difference fails too.
    if not difference <= limit:
        raise GateError(
            f"{folder}: reloaded logits differ by {difference:.3g} from the model in memory, "
            f"more than {limit:.3g} allowed for a {form} checkpoint; nothing was published."
        )
    return Measure(difference, "nats")


def _in_dtypes_of(memory: Any, disk: Any) -> Any:
    """A copy of the model in memory, rounded to the stored dtypes without copying it twice."""
    if getattr(memory, "hf_quantizer", None) is not None:
        return memory
    dtypes = {name: tensor.dtype for name, tensor in disk.state_dict().items()}
    memo: dict[int, Any] = {}
    for name, tensor in memory.state_dict(keep_vars=True).items():
        if id(tensor) not in memo and name in dtypes:
            cast = tensor.detach().to("cpu", dtypes[name])
            is_parameter = isinstance(tensor, torch.nn.Parameter)
            memo[id(tensor)] = (
                torch.nn.Parameter(cast, requires_grad=False) if is_parameter else cast
            )
    return copy.deepcopy(memory, memo).to("cpu")


def _check_tensors(disk: Any, folder: Path, parent: Path | None) -> None:
    suspects = []
    for name, tensor in disk.state_dict().items():
        if not tensor.is_floating_point():
            continue
        _require_finite(tensor, name, folder)
        if _is_constant(tensor):
            suspects.append(name)
    before = _Stored(parent) if suspects and parent is not None else None
    for name in suspects:
        if before is not None and before.varied(name, disk.base_model_prefix):
            raise GateError(
                f"{folder}: matrix {name} has become constant in this step, so the layer carries "
                "nothing any more; ask for less compression."
            )


def _is_constant(tensor: Tensor) -> bool:
    is_matrix = tensor.dim() == 2 and min(tensor.shape) > 1
    return is_matrix and bool(tensor.min() == tensor.max())


def _require_finite(tensor: Tensor, name: str, folder: Path) -> None:
    if not bool(torch.isfinite(tensor).all()):
        raise GateError(f"{folder}: tensor {name} holds non-finite numbers; nothing was published.")


def _check_finite_files(folder: Path) -> None:
    for file in weight_files(folder):
        with safetensors.safe_open(file, framework="pt") as stored:
            for name in read_header(file):
                tensor = stored.get_tensor(name)
                if tensor.is_floating_point():
                    _require_finite(tensor, name, folder)


class _Stored:
    """Tensors of a folder, read one at a time."""

    def __init__(self, folder: Path) -> None:
        self.files = {name: file for file in weight_files(folder) for name in read_header(file)}

    def varied(self, name: str, prefix: str) -> bool:
        """Whether the matrix of this name (with or without the model's prefix) is not constant."""
        aliases = (name, f"{prefix}.{name}", name.removeprefix(f"{prefix}."))
        stored = next((alias for alias in aliases if alias in self.files), None)
        if stored is None:
            return False
        with safetensors.safe_open(self.files[stored], framework="pt") as file:
            return not _is_constant(file.get_tensor(stored))


def _native_check(folder: Path, exact: Tensor, *, noise: float) -> dict[str, Measure]:
    """One short sample through the packed format itself, as a stranger's plain call runs it.

    Kernels compute in half precision in an order of their own, so they are held to what half
    precision alone does to the dequantized model (`noise`): 8 % of a logit on Gemma 3 270M.
    """
    card = read_card(folder)
    module = auto_class(card).from_pretrained(folder, dtype=getattr(torch, card.dtype)).eval()
    native = probe_logits(module, probe_ids(module.config))
    found = _compare(exact, native, folder, "packed", noise=noise)
    return {"native_max_logit_difference": found}
