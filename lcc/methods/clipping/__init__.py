"""The shelf of gradient clipping."""
