"""The stages `autoencoder` and `latents`."""
