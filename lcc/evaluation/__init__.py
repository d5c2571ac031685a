"""Evaluation: generating and scoring predictions, metrics over samples, bootstrap intervals."""
