"""The commands of `lcc`, one verb a file."""
