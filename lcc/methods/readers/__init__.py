"""Where a dataset's rows come from: local files, or packages taken as data."""
