"""A checkpoint as an ONNX or OpenVINO graph, by transformers' own exporters."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, Literal

from lcc.core.errors import RecipeError
from lcc.inference.graph_files import GRAPH_FOLDER, exporters
from lcc.parts.checkpoint import read_card
from lcc.parts.folder import read_json
from lcc.parts.model import open_bundle
from lcc.parts.signal_stack import kept_signal_stack

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
    from lcc.exporting.graph_parts import parts

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
    size = sum(file.stat().st_size for file in (target / GRAPH_FOLDER).iterdir())
    return {"bytes_of_type": {weights: size}}


def _quantizer(kind: Kind, weights: str, head: str) -> Any:
    """Who rounds the weights. Answers are bound by bytes, reading by products: what only reads has
    its inputs rounded too where the engine then multiplies integers.
    """
    theirs = exporters()
    if weights == "float32":
        return None
    if kind == "onnx" and head in ("causal", "seq2seq"):
        from lcc.exporting.graph_rounding import WeightsOnly

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
