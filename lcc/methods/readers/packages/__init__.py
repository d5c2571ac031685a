"""Readers of packages taken as data: Debian's documentation and lists, wheels, bilingual HTML and catalogues."""
