"""The ground floor: errors, lazy imports, machine, progress, signals, disk; imports no torch."""
