"""The stages `transformer` and `guidance`, with the text encoders and tokenizers that are trained along."""
