"""The stages that turn pictures of the small world into the files of models/mini."""
