"""The shelf of trackers: where training numbers are shown beside the report."""
