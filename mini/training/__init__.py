"""The stages that turn images of the toy world into the files of models/mini."""
