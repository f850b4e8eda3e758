"""Which files are wanted, where the hub keeps them, and where they go: the layout of ComfyUI and the trainer."""

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import PurePosixPath

from trainer.common.problems import Problem, Problems

DEV, SCHNELL = "black-forest-labs/FLUX.1-dev", "black-forest-labs/FLUX.1-schnell"
TEXT_ENCODERS = "comfyanonymous/flux_text_encoders"
LORA = re.compile(r"(?P<owner>\w[\w.-]*)/(?P<name>\w[\w.-]*)(/(?P<source>[^/].*\.safetensors))?")
KEYS = ("flux", "ae", "clip_l", "t5xxl", "tokenizers")


@dataclass(frozen=True)
class Wanted:
    """A file, or a folder with all that is in it, of a repository.

    source: its path there; one that ends with "/" is a folder; "" is the repository's only .safetensors file.
    target: its path below models/.
    """

    key: str
    repository: str
    source: str
    target: str


def base_model(schnell: bool = False, fp8: bool = False, only: Collection[str] = ()) -> tuple[Wanted, ...]:
    """The files that training and drawing need.

    schnell: FLUX.1-schnell instead of FLUX.1-dev; fp8: a T5 of half the size; only: some of KEYS.
    """
    repository = SCHNELL if schnell else DEV
    checkpoint = "flux1-schnell.safetensors" if schnell else "flux1-dev.safetensors"
    t5 = "t5xxl_fp8_e4m3fn.safetensors" if fp8 else "t5xxl_fp16.safetensors"
    files = (
        Wanted("flux", repository, checkpoint, f"checkpoints/{checkpoint}"),
        Wanted("ae", repository, "ae.safetensors", "vae/ae.safetensors"),
        Wanted("clip_l", TEXT_ENCODERS, "clip_l.safetensors", "text_encoders/clip_l.safetensors"),
        Wanted("t5xxl", TEXT_ENCODERS, t5, f"text_encoders/{t5}"),
        Wanted("tokenizers", repository, "tokenizer/", "tokenizers/tokenizer/"),
        Wanted("tokenizers", repository, "tokenizer_2/", "tokenizers/tokenizer_2/"),
    )
    return tuple(file for file in files if not only or file.key in only)


def lora(name: str) -> Wanted:
    """A LoRA named "owner/name" or, where the repository holds several, "owner/name/file.safetensors".

    The first is kept as loras/name.safetensors, the second under its file's own name. Raises `Problems`.
    """
    found = LORA.fullmatch(name.removeprefix("https://huggingface.co/").rstrip("/"))
    if found is None or ".." in name:
        hint = "as in --lora owner/name, or --lora owner/name/file.safetensors"
        raise Problems([Problem(f"--lora {name}", "does not name a repository of the hub", hint)])
    target = PurePosixPath(found["source"] or "").name or f"{found['name']}.safetensors"
    return Wanted("lora", f"{found['owner']}/{found['name']}", found["source"] or "", f"loras/{target}")
