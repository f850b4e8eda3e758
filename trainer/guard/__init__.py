"""Verdicts on a run from the numbers that it logs anyway: is the rate too high or too low, is it overfitting."""
