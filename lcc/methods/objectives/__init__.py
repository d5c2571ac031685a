"""The shelf of pretraining objectives: how a text becomes examples, and the loss."""
