"""One command-line verb per file."""
