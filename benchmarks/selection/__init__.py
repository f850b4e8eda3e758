"""Does `python -m trainer compare` recommend the checkpoint that the tiny FLUX's judge would choose?

    runs > training > depths > judged > results > archive

Half of the runs, judged on the tuning prompts, are for choosing how the comparison measures. The other half, judged on
the scoring prompts, says how good the choice is.
"""
