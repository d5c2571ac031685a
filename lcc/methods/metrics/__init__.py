"""Metrics: how answers are scored, per sample and over the corpus."""
