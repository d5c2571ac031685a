"""Which points of a sweep are tried, and in what order."""
