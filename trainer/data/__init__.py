"""From folders of images and captions to an exact order of batches."""
