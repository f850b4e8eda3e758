"""Everything that can be known about a run before a weight is read."""
