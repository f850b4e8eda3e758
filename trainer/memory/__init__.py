"""What fits: the bytes of a step, the fastest way that a device has room for, and what was measured."""
