"""From folders of pictures to an exact order of batches."""
