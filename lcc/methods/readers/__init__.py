"""The shelf of dataset readers: local files here, packages taken as data in `packages/`."""
