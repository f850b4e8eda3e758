"""How often several concepts come out in one image, with and without each part of the method."""
