"""`python -m trainer info FILE`: describe a LoRA file."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from trainer.lora.info import describe, render


def run(argv: Sequence[str]) -> int:
    """Print a description of each LoRA file, as text or, with --json, as one JSON object a line.

    argv: the arguments after `info`. Returns the exit status, 0.
    """
    parser = argparse.ArgumentParser("python -m trainer info", description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="LoRA file of any common layout")
    parser.add_argument("--json", action="store_true", help="print one JSON object per file")
    arguments = parser.parse_args(argv)
    for file in arguments.files:
        found = describe(file)
        print(json.dumps(found, ensure_ascii=False) if arguments.json else render(found))
    return 0
