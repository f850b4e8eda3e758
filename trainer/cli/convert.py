"""`python -m trainer convert FILE[:WEIGHT] … --output FILE`: another layout, a smaller rank, several in one."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from trainer.lora.convert import LAYOUTS, Source, convert

DTYPES = {"float": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def run(argv: Sequence[str]) -> int:
    """Convert, resize or merge; prints what was done."""
    parser = argparse.ArgumentParser("python -m trainer convert", description=__doc__)
    parser.add_argument("sources", nargs="+", metavar="FILE[:WEIGHT]", help="LoRA files; several are merged")
    parser.add_argument("--output", required=True, type=Path, help="file to write")
    parser.add_argument("--format", default="diffusers", choices=LAYOUTS, help="names of the tensors (%(default)s)")
    parser.add_argument("--rank", type=int, help="resize to this rank by SVD")
    parser.add_argument("--energy", type=float, help="resize each layer to keep this share of its squared norm")
    parser.add_argument("--save_precision", choices=DTYPES, help="as the first file's if not given")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="where SVDs run")
    arguments = parser.parse_args(argv)
    dtype = DTYPES[arguments.save_precision] if arguments.save_precision else None
    sources = [parse_source(text) for text in arguments.sources]
    for line in convert(
        sources, arguments.output, arguments.format, arguments.rank, arguments.energy, dtype, arguments.device
    ):
        print(line)
    return 0


def parse_source(text: str) -> Source:
    """FILE or FILE:WEIGHT, where a file's own name may hold a colon."""
    path, colon, weight = text.rpartition(":")
    try:
        return Source(Path(path), float(weight)) if colon else Source(Path(text))
    except ValueError:
        return Source(Path(text))
