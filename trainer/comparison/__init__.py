"""Which checkpoint to keep: images of the same prompts and seeds, measured against the training images.

    prompts > pictures > features > measures > recommend > report

A LoRA should show its concepts when asked (likeness), not when something else is asked (bleed), and change nothing else
(drift). `trainer.sampling.evaluation` asks the tiny FLUX's judge instead, which knows the answers but only that world.
"""
