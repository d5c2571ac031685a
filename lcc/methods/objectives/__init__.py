"""What pretraining minimises: how a text becomes examples, and the loss."""
