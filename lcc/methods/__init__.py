"""One choice per file, grouped on shelves."""
