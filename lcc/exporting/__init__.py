"""Models in other tools' formats: what is written, and what proves it equal."""
