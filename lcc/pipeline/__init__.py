"""The pipeline: a recipe becomes steps with keys, which a runner executes, reuses and publishes."""
