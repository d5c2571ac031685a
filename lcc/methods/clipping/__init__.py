"""How gradients are kept from growing too large, one way per file."""
