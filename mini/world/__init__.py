"""The toy world: objects made of parts, scenes made of objects, and their captions and labels."""
