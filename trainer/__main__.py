"""`python -m trainer <verb>`: train, check, sample, evaluate, demo, bench, … Each verb imports only what it needs."""

import importlib
import os
import sys
from collections.abc import Sequence

from trainer.common.files import FULL_DISK_ERRORS
from trainer.common.problems import Problems
from trainer.common.process import announce

VERBS = {
    "train": "train a LoRA (checks everything first)",
    "check": "find every problem with settings, images and model files, and print the plan",
    "generate": "generate the images that a dataset needs from its base model, before training",
    "find_rate": "try learning rates for a few steps each, and report a range",
    "sample": "generate images with the base model and LoRA files",
    "evaluate": "compare LoRA files on the tiny FLUX; a small classifier judges the images",
    "compare": "measure a run's LoRA files, and recommend one, in an HTML page",
    "demo": "train both concepts on the tiny FLUX; generate and score images before and after",
    "bench": "measure what training costs on this machine: time, memory, where the time goes",
    "serve": "wait for jobs in runs/queue/, and run them one at a time",
    "caption": "write captions for a concept's images with a model that looks at them",
    "mask": "create masks for a concept's images from its class word",
    "download": "fetch the model files and LoRA files from the Hugging Face Hub",
    "info": "describe a LoRA file",
    "convert": "convert a LoRA to kohya's layout and back, resize it, merge several",
}
OUTSIDE = {"bench": "benchmarks.command"}  # verbs whose module is not in trainer/cli


def main(argv: Sequence[str]) -> int:
    """Run one verb of the command line. argv: the verb and its arguments.

    Returns the exit status: 0, 1 for problems, 2 for an unknown verb, 130 and 143 after a signal, 141 if the reader of
    the output closed it; verbs may have others.
    """
    try:
        try:
            return _run(argv)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # what reads the output, as `head`, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is still buffered
        return 141


def _run(argv: Sequence[str]) -> int:
    verb, *rest = argv or ["--help"]
    if verb not in VERBS:
        lines = [f"  {name:<10}{text}" for name, text in VERBS.items()]
        print("\n".join(["usage: python -m trainer <verb> …", *lines, "", "python -m trainer <verb> --help says more"]))
        return 0 if verb in ("--help", "-h") else 2
    try:
        return importlib.import_module(OUTSIDE.get(verb, f"trainer.cli.{verb}")).run(rest)
    except Problems as found:
        count = len(found.problems)
        announce(f"{count} problem{'s' * (count > 1)} found:\n{found}")
        return 1
    except BrokenPipeError:
        raise
    except FULL_DISK_ERRORS as error:
        where = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
        announce(f"Operating system error: {error}{where}\nFiles that existed before are intact.")
        return 1
    except KeyboardInterrupt:
        announce("\nStopped. Everything cached or saved so far is intact.")
        return 130


def entry_point() -> int:
    """The console script `flux-dreambooth`: `main` with this process's command line; returns the exit status."""
    return main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(entry_point())
