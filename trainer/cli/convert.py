"""`python -m trainer convert FILE[:WEIGHT] … --output FILE`: change a LoRA's layout or rank, or merge several."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.common.disk import output_problems
from trainer.common.problems import Problem, Problems, raise_if_any
from trainer.config.paths import path_flag
from trainer.lora_file.writing import LAYOUTS
from trainer.routing.triggers import read_class_words

if TYPE_CHECKING:
    from trainer.lora.convert import Source

DTYPES = {"float": "float32", "fp16": "float16", "bf16": "bfloat16"}


def run(argv: Sequence[str]) -> int:
    """Convert, resize or merge LoRA files, write the result to --output, and print what was done.

    argv: the arguments after `convert`. Returns the exit status, 0.
    """
    parser = argparse.ArgumentParser("python -m trainer convert", description=__doc__)
    parser.add_argument("sources", nargs="+", metavar="FILE[:WEIGHT]", help="LoRA files; several are merged")
    parser.add_argument("--output", required=True, type=path_flag, help="file to write")
    parser.add_argument("--overwrite", action="store_true", help="replace the file if it exists")
    parser.add_argument("--format", default="diffusers", choices=LAYOUTS, help="layout to write (%(default)s)")
    parser.add_argument("--rank", type=int, help="resize to this rank by SVD")
    parser.add_argument("--energy", type=float, help="resize, keeping this fraction of each layer's squared norm")
    parser.add_argument("--save_precision", choices=DTYPES, help="if not given, that of the first file")
    parser.add_argument("--device", help="device for the SVDs (a GPU if there is one)")
    parser.add_argument(
        "--keep_apart",
        action="store_true",
        help="also store which ranks are whose, so that each LoRA can act in its own region (sample --route)",
    )
    parser.add_argument(
        "--class_words",
        action="append",
        default=[],
        metavar="TRIGGER=WORDS",
        help='with --keep_apart: what the base model calls it, as "tjtoy toy=a toy"',
    )
    arguments = parser.parse_args(argv)
    raise_if_any(output_problems([("--output", arguments.output)], arguments.overwrite))
    class_words = class_words_of(arguments.class_words)
    if class_words and not arguments.keep_apart:
        raise Problems([Problem("--class_words", "acts with --keep_apart only", "add --keep_apart or remove it")])
    import torch

    from trainer.lora.convert import convert

    dtype = getattr(torch, DTYPES[arguments.save_precision]) if arguments.save_precision else None
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    sources = [parse_source(text) for text in arguments.sources]
    how = (arguments.format, arguments.rank, arguments.energy, dtype, device)
    for line in convert(sources, arguments.output, *how, class_words if arguments.keep_apart else None):
        print(line)
    return 0


def class_words_of(given: Sequence[str]) -> dict[str, str]:
    """From each TRIGGER=WORDS, the words by trigger. Raises `Problems` for one that is not of this form."""
    pairs = {text: read_class_words(text) for text in given}
    hint = 'write --class_words "tjtoy toy=a toy"'
    raise_if_any(
        Problem(f"--class_words={text}", "is not TRIGGER=WORDS", hint) for text, pair in pairs.items() if not pair
    )
    return dict(filter(None, pairs.values()))


def parse_source(text: str) -> "Source":
    """A LoRA file and its weight (1 if not given) from FILE or FILE:WEIGHT; the file name may contain colons."""
    from trainer.lora.convert import Source

    path, colon, weight = text.rpartition(":")
    try:
        return Source(Path(path), float(weight)) if colon else Source(Path(text))
    except ValueError:
        return Source(Path(text))
