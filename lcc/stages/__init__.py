"""One stage per file: train, prune, quantize and the other verbs of a recipe and a plan."""
