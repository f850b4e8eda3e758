"""Which files to download, from which repository, into which folder: the layout of ComfyUI and the trainer."""

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

from trainer.common.problems import Problem, Problems
from trainer.models.description import DEV, FLUX1, BaseModel, ModelFile, Source
from trainer.models.published_files import PublishedModel

LORA = re.compile(r"(?P<owner>\w[\w.-]*)/(?P<name>\w[\w.-]*)(/(?P<source>[^/].*\.safetensors))?")
TOKENIZERS = "tokenizers"
KEYS = (*(file.key for file in FLUX1.files), TOKENIZERS)


@dataclass(frozen=True)
class Wanted:
    """A file of a repository, or a folder with everything in it.

    key: the kind of file, like "t5xxl", by which `download --only` selects. source: its path in the repository; a
    folder ends with "/"; "" means the repository's only .safetensors file. target: its path in the models folder.
    """

    key: str
    repository: str
    source: str
    target: str


def base_model(base: BaseModel = DEV, fp8: bool = False, only: Collection[str] = ()) -> tuple[Wanted, ...]:
    """The files of a base model that training and sampling need, each with its place in ComfyUI's folders.

    fp8: choose the fp8 version, half the size, of text encoders that have one; only: the keys (of KEYS) to include, all
    if empty.
    """
    files = [_wanted(file, _source(file, base, fp8)) for file in FLUX1.files]
    for encoder in (FLUX1.clip, FLUX1.t5):
        folder = f"{encoder.tokenizer}/"
        files.append(Wanted(TOKENIZERS, base.source.repository, folder, f"{TOKENIZERS}/{folder}"))
    return tuple(file for file in files if not only or file.key in only)


def published(models: Iterable[PublishedModel]) -> tuple[Wanted, ...]:
    """The files of published helper models, a folder for each model; their key is the model's group."""
    return tuple(
        Wanted(model.group, model.repository, name, f"{model.folder}/{name}")
        for model in models
        for name in model.files
    )


def _wanted(file: ModelFile, source: Source) -> Wanted:
    return Wanted(file.key, source.repository, source.path, f"{file.folder}/{source.path}")


def _source(file: ModelFile, base: BaseModel, fp8: bool) -> Source:
    if file is FLUX1.transformer:
        return base.source
    if file is FLUX1.autoencoder:
        return Source(base.source.repository, file.source.path)
    return file.smaller if fp8 and file.smaller else file.source


def lora(name: str) -> Wanted:
    """A LoRA given as "owner/name" or, if the repository has several, as "owner/name/file.safetensors".

    "https://huggingface.co/" may precede it. The first is saved as loras/name.safetensors, the second in loras/ under
    the file's own name. Raises `Problems` if the text is neither.
    """
    found = LORA.fullmatch(name.removeprefix("https://huggingface.co/").rstrip("/"))
    if found is None or ".." in name:
        hint = "write --lora owner/name or --lora owner/name/file.safetensors"
        raise Problems([Problem(f"--lora {name}", "is not the name of a repository on the Hub", hint)])
    target = PurePosixPath(found["source"] or "").name or f"{found['name']}.safetensors"
    return Wanted("lora", f"{found['owner']}/{found['name']}", found["source"] or "", f"loras/{target}")
