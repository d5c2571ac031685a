"""Inference: sessions, the in-process engine, KV cache, sampling, batch runs, benchmarks."""
