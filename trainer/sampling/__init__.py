"""Images from a model: prompts, the Euler sampler, evaluation by the judge."""
