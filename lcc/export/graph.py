"""Export to ONNX and OpenVINO graphs, by transformers' own exporters."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

import onnx
import onnx_ir
import torch
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
from transformers import DynamicCache, EncoderDecoderCache
from transformers.exporters.configs import ExportFormat
from transformers.exporters.quantizers.base import ExportQuantizer
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput

from lcc.core.disk import folder_bytes
from lcc.core.errors import RecipeError
from lcc.core.signals import kept_signal_stack
from lcc.inference.backends.graph import DECODER, ENCODER, GRAPH_FOLDER, WHOLE, exporters
from lcc.models.bundle import open_bundle
from lcc.models.card import read_card, read_json

if TYPE_CHECKING:
    from torch import Tensor

    Parts = dict[str, tuple[Any, dict[str, Any]]]

Kind = Literal["onnx", "openvino"]
NEEDED = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("openvino", "nncf")}
HEADS = ("causal", "seq2seq", "classify", "embed", "masked")
INT4_GROUP = 32


def refusal(folder: Path, kind: Kind) -> str | None:
    """Why no graph of the checkpoint in `folder` is made, as a sentence."""
    missing = [name for name in NEEDED[kind] if importlib.util.find_spec(name) is None]
    if missing:
        return f"{' and '.join(missing)} not installed; pip install 'lcc[{kind}]'."
    card = read_card(folder)
    if card.head not in HEADS:
        return f"graphs are made of models with a {', '.join(HEADS)} head, not {card.head}."
    config = read_json(folder / "config.json")
    if config.get("model_type") == "gpt2" or "max_source_positions" in config:
        return f"no graph is made of {config['model_type']} models."
    return None


def write_graph(source: Path, target: Path, kind: Kind, *, weights: str) -> dict[str, Any]:
    """The graph, or an encoder–decoder's two, in `target/graph`; see `ExportedModel` there."""

    bundle = open_bundle(source)
    module = bundle.load(dtype="float32").eval()
    if getattr(module.config, "quantization_config", None) is not None:
        del module.config.quantization_config
    with _quiet(), kept_signal_stack():
        theirs = exporters()
        quantizer = _quantizer(kind, weights, bundle.card.head)
        if kind == "onnx":
            exporter = theirs.OnnxExporter()
            config = theirs.OnnxConfig(dynamic=True, quantizer=quantizer)
        else:
            exporter = theirs.OpenVINOExporter()
            config = theirs.OpenVINOConfig(dynamic=True, quantizer=quantizer, stateful=False)
        try:
            components = {}
            for name, (part, inputs) in parts(module, bundle.card.head).items():
                components[name] = exporter.export(part, inputs, config).components["model"]
        except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
            reason = str(error).strip().splitlines()[0]
            raise RecipeError(f"format {kind}: transformers' exporter fails: {reason}") from None
        exported = theirs.ExportedModel(components, exporter.export_format, config=module.config)
        exported.save_pretrained(target / GRAPH_FOLDER)
    size = folder_bytes(target / GRAPH_FOLDER)
    return {"bytes_of_type": {weights: size}}


def _quantizer(kind: Kind, weights: str, head: str) -> Any:
    """Who rounds the weights. Answers are bound by bytes, reading by products: what only reads has
    its inputs rounded too where the engine then multiplies integers.
    """
    theirs = exporters()
    if weights == "float32":
        return None
    if kind == "onnx" and head in ("causal", "seq2seq"):
        return WeightsOnly()
    if kind == "onnx":
        from onnxruntime.quantization import QuantType

        return theirs.OnnxRuntimeQuantizer(
            theirs.OnnxRuntimeDynamicConfig(per_channel=True, weight_type=QuantType.QInt8)
        )
    import nncf

    if weights == "int8":
        mode = theirs.NNCFWeightCompressionConfig(mode=nncf.CompressWeightsMode.INT8_ASYM)
    else:
        mode = theirs.NNCFWeightCompressionConfig(
            mode=nncf.CompressWeightsMode.INT4_ASYM, group_size=INT4_GROUP
        )
    return theirs.NNCFOpenVINOQuantizer(mode)


@contextmanager
def _quiet() -> Iterator[None]:
    """Exporters print their stages and warn of versions; what matters is in our report."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


# What is traced of a model, part by part, and what each part is called with.


class DecoderStep(torch.nn.Module):
    """The decoder of an encoder–decoder, which goes on from any past of its own.

    Keys and values of what the encoder said are made anew at each call: kept ones would need a
    graph of their own to make them, and the decoder's weights twice.
    """

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.module = module

    def forward(
        self,
        decoder_input_ids: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor,
        past_key_values: DynamicCache,
    ) -> Seq2SeqLMOutput:
        """Logits of every new token, and the past with them."""
        both = EncoderDecoderCache(past_key_values, DynamicCache())
        output = self.module(
            encoder_outputs=BaseModelOutput(last_hidden_state=encoder_hidden_states),
            attention_mask=attention_mask,
            decoder_input_ids=decoder_input_ids,
            past_key_values=both,
            use_cache=True,
        )
        own: Any = both.self_attention_cache
        return Seq2SeqLMOutput(logits=output.logits, past_key_values=own)


def parts(module: Any, head: str) -> Parts:
    """Name → part and inputs: of two texts each, so that their number stays open."""
    ids = torch.arange(4, 16).view(2, 6) % module.config.get_text_config().vocab_size
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if head == "seq2seq":
        return _of_two(module, inputs)
    if head != "causal":
        return {WHOLE: (module.base_model if head == "embed" else module, inputs)}
    from transformers.exporters.utils import decompose_for_generation

    # One graph that goes on from any past, an empty one too, so that weights are stored once. A
    # mask that hides nothing would not be traced, and rows of several lengths need one.
    inputs["attention_mask"][1, 0] = 0
    decomposed = decompose_for_generation(module, inputs, multi_token_decode=True)
    part, called = decomposed["decode"]
    return {WHOLE: (part, dict(called))}


def _of_two(module: Any, inputs: dict[str, Tensor]) -> Parts:
    encoder, decoder = module.get_encoder(), DecoderStep(module)
    past = DynamicCache(config=module.config.get_text_config(decoder=True))
    asked = {"attention_mask": inputs["attention_mask"], "past_key_values": past}
    ids = inputs["input_ids"]
    with torch.no_grad():
        asked["encoder_hidden_states"] = encoder(**inputs).last_hidden_state
        decoder(decoder_input_ids=ids[:, :3], **asked)  # fills the past
    return {ENCODER: (encoder, inputs), DECODER: (decoder, {"decoder_input_ids": ids[:, 3:5], **asked})}


# ONNX weights as blocks of 8 bits, multiplied by inputs that nobody rounds.

BITS = 8
BLOCK = 32  # weights of one scale and one zero
FLOAT32 = 1  # ONNX Runtime's word for the type that products are made in


class WeightsOnly(ExportQuantizer):
    """ONNX Runtime's `MatMulNBits` for every matrix product with stored weights."""

    supported_formats = (ExportFormat.ONNX,)

    def quantize(self, model: Any, sample_inputs: Any, export_format: Any) -> Any:
        """The same graph with other products; through files, as protobuf ends at 2 GB."""
        with TemporaryDirectory() as folder:
            before, after = Path(folder) / "model.onnx", Path(folder) / "rounded.onnx"
            onnx_ir.save(model, before, external_data="model.onnx.data")
            work = MatMulNBitsQuantizer(
                onnx.load(before), bits=BITS, block_size=BLOCK, accuracy_level=FLOAT32
            )
            work.process()
            work.model.save_model_to_file(str(after), use_external_data_format=True)
            rounded = onnx_ir.load(after)
            onnx_ir.external_data.load_to_model(rounded)
            return rounded
