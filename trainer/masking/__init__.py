"""Creates masks from a class word: a detector finds the object, a segmenter finds its outline.

    description > plan > load > create > sheet

`trainer.data.masks` reads masks for training, from whatever source; this room writes files that it can read.
"""
