"""One verb per file: what a recipe's `stages:` and a plan's steps may name."""
