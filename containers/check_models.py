"""Check that the model files that a first workflow loads are there and complete, before ComfyUI starts.

usage: check_models.py MODELS WORKFLOW      exit status 1 and one message with every problem

Only headers are read; `sh download.sh --verify` reads everything.
"""

import sys
from pathlib import Path

from safetensors import SafetensorError, safe_open

# for each file: its folder, the usual name, and the names of other variants (FLUX.1-schnell, a T5 in fp8)
FULL = (
    ("checkpoints", "flux1-dev", "flux1[-_]*"),
    ("vae", "ae", "ae[-_]*"),
    ("text_encoders", "clip_l", "clip[-_]*"),
    ("text_encoders", "t5xxl_fp16", "t5xxl[-_]*"),
)
MINI = tuple(("mini", f"{name}-mini", f"{name}-mini") for name in ("flux1", "ae", "clip_l", "t5"))
MINI_TOKENIZERS = ("mini/tokenizers/tokenizer", "mini/tokenizers/tokenizer_2")
FIX = "sh download.sh                 (downloads what is missing and re-downloads what is incomplete)"
FIX_MINI = "git pull                       (the tiny FLUX comes with the repository)"


def find(models: Path, folder: str, usual: str, variants: str) -> Path:
    """The usual file, or else the first of its variants. Without any: the usual file, which then does not exist."""
    file = models / folder / f"{usual}.safetensors"
    others = sorted((models / folder).glob(f"{variants}.safetensors"))
    return file if file.exists() or not others else others[0]


def flaw(file: Path) -> str | None:
    """What is wrong with a model file, as the end of a sentence."""
    if not file.exists() or not file.stat().st_size:
        return "is missing"
    try:
        with safe_open(file, framework="np"):  # compares the header with the size of the file
            return None
    except SafetensorError:
        return "is incomplete"
    except OSError as error:
        return f"cannot be read ({error.strerror})" if error.strerror else "cannot be read"


def problems(models: Path, mini: bool) -> list[str]:
    """One sentence for each file that is missing, incomplete or unreadable."""
    files = [find(models, *each) for each in (MINI if mini else FULL)]
    found = [f"models/{file.relative_to(models)} {what}." for file in files if (what := flaw(file))]
    folders = MINI_TOKENIZERS if mini else ()
    return found + [f"models/{folder} is missing." for folder in folders if not (models / folder).is_dir()]


def main(arguments: list[str]) -> int:
    if len(arguments) != 2:
        sys.exit(__doc__)
    mini = arguments[1].startswith("mini_")
    if not (found := problems(Path(arguments[0]), mini)):
        return 0
    lines = [f"{len(found)} problem{'s' * (len(found) > 1)} found:"]
    lines += [f"  {number}. {what}" for number, what in enumerate(found, 1)]
    print(*lines, f"         {FIX_MINI if mini else FIX}", "(--skip-checks starts anyway)", sep="\n", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
