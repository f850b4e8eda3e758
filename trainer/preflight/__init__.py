"""Everything that can be checked and planned before weights are read."""
