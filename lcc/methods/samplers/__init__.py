"""The shelf of samplers: which points of a sweep are tried, and in what order."""
