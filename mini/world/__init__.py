"""What there is to draw: objects made of parts, scenes made of objects, and the captions and labels of both."""
