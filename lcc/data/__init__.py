"""Datasets: reading files and packages, cleaning, deduplication, splits."""
