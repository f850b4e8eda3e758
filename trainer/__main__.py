"""`python -m trainer <verb>`: train, check, sample, evaluate, demo, bench, … Each imports only what it needs."""

import importlib
import sys
from collections.abc import Sequence

from trainer.common.files import FULL_DISK_ERRORS
from trainer.common.problems import Problems
from trainer.common.process import announce

VERBS = {
    "train": "train a LoRA (checks everything first)",
    "check": "find everything that is wrong with settings, pictures and model files, and print the plan",
    "sample": "draw pictures with the base model and LoRA files",
    "evaluate": "compare LoRA files with the embedded model, by a judge of its pictures",
    "demo": "teach both concepts to the embedded model, draw and score before and after",
    "bench": "measure what training costs on this machine: time, memory, where it goes",
    "download": "fetch the model files from the Hugging Face hub, and LoRA files",
    "info": "say what a LoRA file holds",
    "convert": "turn a LoRA into kohya's layout and back, resize it, merge several",
}
BESIDE = {"bench": "benchmarks.command"}  # verbs whose code stands beside trainer/


def main(argv: Sequence[str]) -> int:
    """Run one verb. Returns the exit status: 0, 1 for problems, 2 for no such verb, 130 and 143 after a signal."""
    verb, *rest = argv or ["--help"]
    if verb not in VERBS:
        lines = [f"  {name:<9}{text}" for name, text in VERBS.items()]
        print("\n".join(["usage: python -m trainer <verb> …", *lines, "", "python -m trainer <verb> --help says more"]))
        return 0 if verb in ("--help", "-h") else 2
    try:
        return importlib.import_module(BESIDE.get(verb, f"trainer.cli.{verb}")).run(rest)
    except Problems as found:
        count = len(found.problems)
        announce(f"{count} thing{'s' * (count > 1)} to mend:\n{found}")
        return 1
    except FULL_DISK_ERRORS as error:
        where = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
        announce(f"The system refused: {error}{where}\nFiles that were there before are whole.")
        return 1
    except KeyboardInterrupt:
        announce("\nStopped. What was cached or saved is whole.")
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
