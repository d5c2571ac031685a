"""Models: bundles, cards, checkpoints, formats, adapters, sources, the reload gate."""
