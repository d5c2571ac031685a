"""How much a weight or a channel matters."""
