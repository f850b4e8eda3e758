"""Optimizers, learning-rate schedules and averages, without host synchronisation."""
