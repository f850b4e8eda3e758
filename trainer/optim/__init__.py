"""Optimizers, learning-rate schedules and weight averages, none of which synchronizes with the host."""
