"""How gradients change weights, one optimizer per file."""
