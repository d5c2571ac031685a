"""Sweeps: what is asked, who runs it where, what became of it, and how the results compare."""
