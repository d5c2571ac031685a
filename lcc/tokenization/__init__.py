"""Tokenizers: training, pruning the vocabulary, special tokens."""
