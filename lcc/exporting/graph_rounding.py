"""ONNX weights as blocks of 8 bits, multiplied by inputs that nobody rounds."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx
import onnx_ir
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
from transformers.exporters.configs import ExportFormat
from transformers.exporters.quantizers.base import ExportQuantizer

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
