"""The stage `judge`: the classifier that scores generated images."""
