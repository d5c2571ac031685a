"""The store: published artifacts by key, locks, run reports, garbage collection."""
