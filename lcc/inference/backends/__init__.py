"""Inference sessions over other engines: llama.cpp, CTranslate2, ONNX Runtime, OpenVINO, vLLM."""
