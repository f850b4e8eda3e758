"""Images that the base model generates for training, before it is trained."""
