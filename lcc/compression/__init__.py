"""The arithmetic of compression: grids, columns, units that go as one, repairs, low rank."""
