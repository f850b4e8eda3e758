"""The embedded base model: a small world, a renderer for it, and the recipe that trains a tiny FLUX on its pictures.

    world ► render ► training (autoencoder ► latents ► transformer ► guidance ► judge) ► models/mini

Nothing here is needed to use the model; `python -m mini <stage>` makes it again.
"""
