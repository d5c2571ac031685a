"""Compression arithmetic: grids, solvers, sparsity, pruning groups, low rank."""
