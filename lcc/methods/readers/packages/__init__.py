"""Readers of packages taken as data: Debian's documentation, wheels, bilingual HTML, catalogues."""
