"""The ground floor: errors, registry, config, store, report facts. Imports no torch."""
