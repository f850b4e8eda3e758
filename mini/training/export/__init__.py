"""The stages `export` and `card`: the files of models/mini, and the page that describes them."""
