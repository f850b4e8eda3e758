"""The images that everything is trained on: the stages `pictures` and `photos`."""
