"""From captions to what FLUX.1 is conditioned on: T5's hidden states and CLIP's pooled output."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from trainer.common.files import out_of_reach
from trainer.common.problems import Problem, Problems
from trainer.config import TrainConfig
from trainer.models.description import FLUX1

if TYPE_CHECKING:
    from transformers import CLIPTextModel, T5EncoderModel

CLIP_LENGTH = FLUX1.clip.tokens
ENCODERS = (FLUX1.clip, FLUX1.t5)


@dataclass(frozen=True)
class Tokenizers:
    """CLIP's and T5's tokenizers, and a hex SHA-256 of their files."""

    clip: Any
    t5: Any
    fingerprint: str


def load_tokenizers(folder: Path) -> Tokenizers:
    """Load both from `folder`/tokenizer and `folder`/tokenizer_2, without network access.

    Raises `Problems` that name the files that are missing or unreadable.
    """
    if problems := _missing_files(folder):
        raise Problems(problems)
    from transformers import (  # imported late: it takes a second
        CLIPTokenizer,
        T5TokenizerFast,  # pyright: ignore[reportAttributeAccessIssue]
    )

    return Tokenizers(
        clip=_load(CLIPTokenizer, folder / FLUX1.clip.tokenizer),
        t5=_load(T5TokenizerFast, folder / FLUX1.t5.tokenizer),
        fingerprint=_fingerprint(folder),
    )


def find_tokenizer_dir(config: TrainConfig) -> Path | None:
    """--tokenizer_dir if given, else the first folder near --clip_l's file that has both tokenizers, or None."""
    if config.tokenizer_dir is not None:
        return config.tokenizer_dir
    if config.clip_l is None:
        return None
    folder = config.clip_l.parent
    candidates = (folder / "tokenizers", folder.parent / "tokenizers", folder)
    return next((each for each in candidates if not _missing_files(each)), None)


def clip_ids(tokenizer: Any, captions: Sequence[str]) -> torch.Tensor:
    """Token ids [n, 77] int64 of n captions, padded or truncated. tokenizer: CLIP's."""
    return _tokenize(tokenizer, captions, CLIP_LENGTH).input_ids


def truncated_captions(tokenizer: Any, captions: Sequence[str], max_length: int) -> list[str]:
    """The captions with more tokens than `max_length`, whose end the text encoder does not see.

    tokenizer: T5's or CLIP's. max_length: the length that its text encoder is used with.
    """
    # verbose: transformers would warn of indexing errors, which truncation prevents
    lengths = (len(ids) for ids in tokenizer(list(captions), verbose=False).input_ids) if captions else ()
    return [caption for caption, length in zip(captions, lengths, strict=False) if length > max_length]


@torch.no_grad()
def encode_clip(model: "CLIPTextModel", tokenizer: Any, captions: Sequence[str]) -> torch.Tensor:
    """CLIP's pooled output [n, width] of n captions in float32, as diffusers' FluxPipeline computes it."""
    return model(clip_ids(tokenizer, captions).to(model.device)).pooler_output.float()


@torch.no_grad()
def encode_t5(
    model: "T5EncoderModel", tokenizer: Any, captions: Sequence[str], max_length: int, masked: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """T5's hidden states [n, max_length, width] of n captions in the model's dtype, and the mask of real tokens.

    Captions are padded or truncated to max_length tokens. The mask is [n, max_length] bool, False for padding. masked:
    whether padding is also masked in T5's attention (`--apply_t5_attn_mask`); FLUX.1 was trained without it.
    """
    tokens = _tokenize(tokenizer, captions, max_length)
    mask = tokens.attention_mask.to(model.device)
    hidden = model(tokens.input_ids.to(model.device), attention_mask=mask if masked else None)[0]
    return hidden, mask.bool()


def _tokenize(tokenizer: Any, captions: Sequence[str], length: int) -> Any:
    return tokenizer(list(captions), padding="max_length", max_length=length, truncation=True, return_tensors="pt")


def _load(kind: Any, folder: Path) -> Any:
    try:
        return kind.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # the library raises many types for a damaged file
        raise Problems(
            [Problem(str(folder), f"cannot be read as a tokenizer: {error}", "download it again")]
        ) from error


def _missing_files(folder: Path) -> list[Problem]:
    wanted = [folder / encoder.tokenizer / name for encoder in ENCODERS for name in encoder.tokenizer_files]
    hint = "give --tokenizer_dir, a folder with tokenizer/ and tokenizer_2/ as in the FLUX.1-dev repository"
    unseen = {path: f"cannot be accessed: {why}" for path in wanted if (why := out_of_reach(path))}
    missing = {path: "no such file" for path in wanted if path not in unseen and not path.is_file()}
    return [Problem(str(path), what, hint) for path, what in {**unseen, **missing}.items()]


def _fingerprint(folder: Path) -> str:
    digest = hashlib.sha256()
    for part in (encoder.tokenizer for encoder in ENCODERS):
        for path in sorted((folder / part).iterdir()):
            digest.update(f"{part}/{path.name}".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()
