"""Where training numbers are shown beside the report."""
