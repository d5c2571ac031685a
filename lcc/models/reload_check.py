"""Reload check: the model on disk must be the model that was in memory."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lcc.core.errors import GateError
from lcc.core.lazy import torch
from lcc.core.machine import return_freed
from lcc.core.progress import Measure
from lcc.models.adapter_io import base_for, fills_zeros, mask_adapters, read_note
from lcc.models.adapters import hush, put_adapter
from lcc.models.bundle import Bundle, open_bundle
from lcc.models.card import Card, read_card, weight_files
from lcc.models.offload import offloaded
from lcc.models.safetensors_io import StoredTensors

if TYPE_CHECKING:
    from torch import Tensor

PROBE_TOKENS = 24
ROUNDED = 2.5e-2  # what half-precision arithmetic may do to a logit, twice over in compare
WHOLE_BYTES = 1 << 29  # a streamed result below this is reloaded whole, as a stranger does
# Largest |Δlogit| as a share of the largest |logit|. Dense weights reload bit for bit, so only the
# order of sums may differ; packed scales are stored in half precision.
TOLERANCE = {"dense": 1e-3, "packed": 5e-2}


def logits_as_stored(bundle: Bundle, folder: Path) -> Tensor | None:
    """What the model in memory says to the probe once it is rounded as in `folder`.

    With them the gate needs the model no more, and two never lie in memory together. None where it
    does: for adapters, packed forms and what only lcc loads.
    """
    if bundle.card.form == "adapter":
        return None
    card = read_card(folder)
    if card.form != "dense" or card.loads_with != "transformers" or bundle.streamed is not None:
        return None
    if card.adapter:
        return None
    like = Bundle(card=card, path=folder).load(dtype=card.dtype, device=None, device_map="meta")
    dtypes = {name: tensor.dtype for name, tensor in like.state_dict().items()}
    memory = _in_dtypes(bundle.load(device=None, dtype=None), dtypes)
    return probe_logits(memory)


def reload_gate(
    bundle: Bundle, folder: Path, *, parent: Path | None, expected: Tensor | None = None
) -> dict[str, Measure]:
    """Reload `folder` as a stranger would and compare logits with the model in memory.

    `expected` are those of `logits_as_stored`, after which the bundle may have let go of its model.
    Raises GateError for logits beyond the format's tolerance, a non-finite tensor, or a matrix
    that is constant now and was not in `parent` (unless it was emptied on purpose).
    """
    if bundle.card.form == "adapter":
        _check_finite_files(folder.parent / "adapter")
        return {}
    if bundle.streamed is not None:
        return _streamed_gate(bundle, folder, parent)
    card = read_card(folder)
    disk = Bundle(card=card, path=folder).load(dtype=card.dtype)
    _check_tensors(disk, folder, parent, emptied=bundle.emptied)
    got, dtypes = probe_logits(disk), {n: t.dtype for n, t in disk.state_dict().items()}
    exact = probe_logits(disk.float()) if card.form == "packed" else got
    del disk  # The copy of the model in memory takes its place.
    return_freed()
    if expected is None:
        expected = probe_logits(_in_dtypes(bundle.load(dtype=None), dtypes))
    measures = {"reload_max_logit_difference": compare(expected, got, folder, card.form)}
    if card.form == "packed" and card.loads_with == "transformers":
        measures |= _native_check(folder, exact, noise=float((got - exact).abs().max()))
    return measures


def _streamed_gate(bundle: Bundle, folder: Path, parent: Path | None) -> dict[str, Measure]:
    """The same for a model that is never whole in memory; its logits were computed on the way.

    First the files, read a layer at a time, in float32 as then; then as a stranger loads them:
    whole where they are small, left on disk where they are large. Large packed ones have no such
    second reader: compressed-tensors loads a model whole or not at all.
    """
    aside, card = bundle.aside, read_card(folder)
    assert aside is not None and aside.output is not None, "a streamed model's probe did not run"
    _check_stored(folder, parent, bundle.module.base_model_prefix)
    reread = offloaded(card, folder)
    exact = probe_logits(reread)
    difference = compare(_logits(aside.output), exact, folder, card.form)
    measures = {"reload_max_logit_difference": difference}
    if sum(file.stat().st_size for file in weight_files(folder)) < WHOLE_BYTES:
        return {**measures, **_as_a_stranger(card, folder, exact)}
    if card.form == "dense":
        with tempfile.TemporaryDirectory(prefix="reload-", dir=folder.parent) as place:
            options: dict[str, Any] = {"device_map": {"": "disk"}, "offload_folder": place}
            disk = Bundle(card=card, path=folder).load(dtype=card.dtype, device=None, **options)
            got = probe_logits(disk)
        noise = ROUNDED * float(exact.abs().max())
        compare(exact, got, folder, card.form, noise=0.0 if card.dtype == "float32" else noise)
    return measures


def _as_a_stranger(card: Card, folder: Path, exact: Tensor) -> dict[str, Measure]:
    disk = Bundle(card=card, path=folder).load(dtype="float32")
    whole = probe_logits(disk)
    if card.form == "dense":
        compare(exact, whole, folder, "dense")
        return {}
    # Where the format rounds inputs too, `exact` does not; the difference is the native check's.
    rounded = probe_logits(disk.to(getattr(torch, card.dtype)))
    return _native_check(folder, whole, noise=float((rounded - whole).abs().max()))


def probe_inputs(module: Any, device: Any = None) -> dict[str, Tensor]:
    """Probe inputs of a model: fixed tokens, or fixed noise where it sees images or hears sounds."""
    config, draws = module.config, torch.Generator().manual_seed(0)
    asked: dict[str, Tensor] = {}
    if module.main_input_name == "pixel_values":
        size = config.image_size
        shape = (1, config.num_channels, *(size if isinstance(size, list | tuple) else [size] * 2))
        asked["pixel_values"] = torch.randn(shape, generator=draws)
    elif module.main_input_name == "input_features":
        # Whisper's encoder halves the number of frames.
        shape = (1, config.num_mel_bins, 2 * config.max_source_positions)
        asked["input_features"] = torch.randn(shape, generator=draws)
    else:
        asked["input_ids"] = _tokens(config, PROBE_TOKENS, draws)
        asked["attention_mask"] = torch.ones_like(asked["input_ids"])
    if getattr(config, "is_encoder_decoder", False):
        ids = asked.get("input_ids")
        ids = _tokens(config, PROBE_TOKENS, draws) if ids is None else ids
        asked["decoder_input_ids"] = ids[:, : PROBE_TOKENS // 2]
    return {name: tensor.to(device or "cpu") for name, tensor in asked.items()}


def _tokens(config: Any, num: int, draws: Any) -> Tensor:
    return torch.randint(0, config.get_text_config().vocab_size, (1, num), generator=draws)


def probe_logits(module: Any) -> Tensor:
    """Logits (or hidden states of a headless encoder) on the probe, float32 on the CPU."""
    was_training = module.training
    module.eval()
    device = "cpu" if module.device.type == "meta" else module.device  # offloaded to disk
    inputs = {
        name: t.to(module.dtype) if t.is_floating_point() else t
        for name, t in probe_inputs(module, device).items()
    }
    with torch.no_grad():
        output = module(**inputs)
    module.train(was_training)
    return _logits(output)


def _logits(output: Any) -> Tensor:
    if "start_logits" in output:
        return torch.stack([output.start_logits, output.end_logits]).float().cpu()
    names = ("logits", "prediction_logits", "last_hidden_state")  # BERT's pair model says more
    logits = next(output[name] for name in names if name in output)
    result: Tensor = logits.float().cpu()
    return result


def compare(expected: Tensor, got: Tensor, folder: Path, form: str, *, noise: float = 0.0) -> Measure:
    """The largest difference of two sets of logits; GateError beyond the form's tolerance."""
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


def _in_dtypes(memory: Any, dtypes: dict[str, Any]) -> Any:
    """A copy of the model in memory, rounded to the stored dtypes without copying it twice."""
    if getattr(memory, "hf_quantizer", None) is not None:
        return memory
    memo: dict[int, Any] = {}
    for name, tensor in memory.state_dict(keep_vars=True).items():
        if id(tensor) not in memo and name in dtypes:
            cast = tensor.detach().to("cpu", dtypes[name])
            is_parameter = isinstance(tensor, torch.nn.Parameter)
            memo[id(tensor)] = torch.nn.Parameter(cast, requires_grad=False) if is_parameter else cast
    return copy.deepcopy(memory, memo).to("cpu")


def _check_tensors(disk: Any, folder: Path, parent: Path | None, *, emptied: Collection[str]) -> None:
    tensors = ((name, t) for name, t in disk.state_dict().items() if name not in emptied)
    _check(tensors, folder, parent, disk.base_model_prefix)


def _check_stored(folder: Path, parent: Path | None, prefix: str) -> None:
    """The same, tensor by tensor from the files; packed codes count as the weight they are."""
    stored = StoredTensors(folder)
    tensors = ((name.replace("weight_packed", "weight"), stored.read(name)) for name in stored.entries)
    _check(tensors, folder, parent, prefix)


def _check(tensors: Iterable[tuple[str, Tensor]], folder: Path, parent: Path | None, prefix: str) -> None:
    before = None if parent is None else StoredTensors(parent)
    for name, tensor in tensors:
        if tensor.is_floating_point():
            _require_finite(tensor, name, folder)
        if before is None or not _is_constant(tensor):
            continue
        aliases = (name, f"{prefix}.{name}", name.removeprefix(f"{prefix}."))
        earlier = next((alias for alias in aliases if alias in before.entries), None)
        if earlier is not None and not _is_constant(before.read(earlier)):
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
    stored = StoredTensors(folder)
    for name in stored.entries:
        tensor = stored.read(name)
        if tensor.is_floating_point():
            _require_finite(tensor, name, folder)


def _native_check(folder: Path, exact: Tensor, *, noise: float) -> dict[str, Measure]:
    """One short sample through the packed format itself, as a stranger's plain call runs it.

    Kernels compute in half precision in an order of their own, so they are held to what half
    precision alone does to the dequantized model (`noise`): 8 % of a logit on Gemma 3 270M.
    """
    card = read_card(folder)
    module = Bundle(card=card, path=folder).load(dtype=card.dtype, native=True)
    native = probe_logits(module)
    difference = compare(exact, native, folder, "packed", noise=noise)
    return {"native_max_logit_difference": difference}


# The reload gate of adapters: what is on disk, put on its base again, is what was trained.


def adapter_gate(bundle: Bundle, folder: Path, *, parent: Path) -> dict[str, Measure]:
    """Compare logits of the adapter in `folder` on the base in `parent` with those in memory.

    The bundle lets go of its model, so that two never lie in memory together. Raises GateError.
    """
    model: Any = bundle.module
    expected, is_half = probe_logits(model), "float32" not in str(model.dtype)
    bundle.release()
    bundle.write = None
    del model
    return_freed()
    hush()
    base, note = open_bundle(parent), read_note(folder)
    masked = fills_zeros(base)
    module = put_adapter(base_for(base, note, seed=0), folder)
    if masked:
        mask_adapters(module)
    noise = ROUNDED * float(expected.abs().max()) if is_half else 0.0
    difference = compare(expected, probe_logits(module), folder, "dense", noise=noise)
    return {"reload_max_logit_difference": difference}
