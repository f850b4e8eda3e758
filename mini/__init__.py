"""The tiny FLUX of models/mini: a toy world, a renderer for it, and the recipe that trains the model on its images.

    world ► render ► training (images ► autoencoder ► transformer ► judge ► export) ► models/mini

The model can be used without this package; `python -m mini all` re-creates it, and `python -m mini.concepts` makes what
teaches and judges other concepts than the demo's.
"""
