"""Which learning rate suits a run: short trainings on the same batches, one for each rate."""
