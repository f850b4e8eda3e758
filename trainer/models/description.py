"""What the trainer knows about its base models: their files, text encoders, sizes and how a file is recognised.

Everything that is true of a published model and not of one file or one run is written here, once. Whatever downloads,
checks, loads, trains or names a model reads it from here. `docs/reference/extending.md` says what another family needs.
Imports no torch.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

FULL_PRECISION = ("F32", "F16", "BF16")  # dtypes as safetensors spells them
OR_FP8 = (*FULL_PRECISION, "F8_E4M3")


@dataclass(frozen=True)
class Source:
    """A file on the Hugging Face Hub."""

    repository: str
    path: str

    def __str__(self) -> str:
        return f"{self.path} from {self.repository}"


@dataclass(frozen=True)
class ModelFile:
    """One of the files that a model consists of.

    key: its name in messages and in `download --only`. setting: the `TrainConfig` field that holds its path. title:
    what users call it. folder: where it goes below models/, as in ComfyUI. source: where to download it; for a
    transformer, that of the family's first base model. smaller: the same in fp8, if there is one. dtypes: those that
    can be loaded, as safetensors spells them.
    """

    key: str
    setting: str
    title: str
    folder: str
    source: Source
    smaller: Source | None = None
    dtypes: tuple[str, ...] = FULL_PRECISION


@dataclass(frozen=True)
class TextEncoder:
    """A text encoder's weights, tokenizer and limits.

    tokenizer: its folder in the model's repository. tokenizer_files: those without which it cannot be loaded. tokens:
    the length to which a text is padded or truncated; for T5 the maximum. width: of the output, per token.
    """

    file: ModelFile
    tokenizer: str
    tokenizer_files: tuple[str, ...]
    tokens: int
    width: int


@dataclass(frozen=True)
class Latents:
    """The latents that the transformer is trained on: (z - shift) * scale for the autoencoder's z.

    side: pixels along one side of a latent. patch: latents along one side of an image token.
    """

    channels: int
    shift: float
    scale: float
    side: int = 8
    patch: int = 2

    @property
    def features(self) -> int:
        """Numbers in one image token before the transformer's first layer."""
        return self.channels * self.patch**2

    @property
    def token_side(self) -> int:
        """Pixels along one side of an image token."""
        return self.side * self.patch


@dataclass(frozen=True)
class Blocks:
    """The sizes of the transformer as published. Loading takes all but `axes` from the shapes of the file's tensors.

    double, single: numbers of blocks. width: of the hidden states. head_width: of one attention head. axes: how many of
    a head's dimensions are rotated (RoPE) by the text index, the row and the column.
    """

    double: int
    single: int
    width: int
    head_width: int
    axes: tuple[int, int, int]


@dataclass(frozen=True)
class BaseModel:
    """A published checkpoint of a family.

    source: its transformer; the autoencoder and the tokenizers come from the same repository. takes_guidance: whether
    its transformer embeds a guidance value. t5_tokens: the number it was trained with. architecture: its name in the
    ModelSpec standard. mark: a word in the file's name that distinguishes it from a model with the same tensors; empty
    if it needs none. flag: the option of `sh download.sh` that downloads it; empty for the default.
    """

    name: str
    source: Source
    takes_guidance: bool
    t5_tokens: int
    architecture: str
    mark: str = ""
    flag: str = ""

    @property
    def title_note(self) -> str:
        """A suffix for a LoRA's title, such as " (FLUX.1-Krea-dev)"; empty for a model without a `mark`."""
        return f" ({self.name})" if self.mark else ""


@dataclass(frozen=True)
class ModelFamily:
    """Base models of one architecture, which share all but the transformer's weights."""

    name: str
    transformer: ModelFile
    autoencoder: ModelFile
    clip: TextEncoder
    t5: TextEncoder
    latents: Latents
    blocks: Blocks
    bases: tuple[BaseModel, ...]

    @property
    def files(self) -> tuple[ModelFile, ...]:
        """The files that settings name, in the order in which they are checked."""
        return self.transformer, self.autoencoder, self.clip.file, self.t5.file

    def file(self, key: str) -> ModelFile:
        """The file whose `ModelFile.key` is `key`, such as "ae". Raises StopIteration for an unknown key."""
        return next(file for file in self.files if file.key == key)

    def published(self, file_name: str) -> BaseModel:
        """The base model whose transformer is published under this file name; the first one for any other name."""
        return next((base for base in self.bases if base.source.path == file_name), self.bases[0])

    def recognise(self, path: Path, tensors: Iterable[str], metadata: Mapping[str, str]) -> BaseModel:
        """The base model that a transformer file holds, from its tensors' names, its file name and its metadata.

        path: only its name is used. metadata: of the file's safetensors header. The tensors show whether guidance is
        embedded. FLUX.1-dev and FLUX.1-Krea-dev differ only in their weights, so the file's name or its
        `modelspec.title` has to tell them apart; without a hint it counts as FLUX.1-dev.
        """
        guided = any("guidance_in." in name for name in tensors)
        said = f"{path.name} {metadata.get('modelspec.title', '')}".lower()
        possible = [base for base in self.bases if base.takes_guidance == guided]
        return next((base for base in possible if base.mark and base.mark in said), possible[0])


_DEV, _KREA, _SCHNELL = (f"black-forest-labs/FLUX.1-{name}" for name in ("dev", "Krea-dev", "schnell"))
_ENCODERS = "comfyanonymous/flux_text_encoders"

FLUX1 = ModelFamily(
    name="FLUX.1",
    transformer=ModelFile(
        key="flux",
        setting="pretrained_model_name_or_path",
        title="the FLUX.1 transformer",
        folder="checkpoints",
        source=Source(_DEV, "flux1-dev.safetensors"),
        dtypes=OR_FP8,
    ),
    autoencoder=ModelFile("ae", "ae", "FLUX.1's autoencoder", "vae", Source(_DEV, "ae.safetensors")),
    clip=TextEncoder(
        ModelFile(
            key="clip_l",
            setting="clip_l",
            title="CLIP-L's text encoder",
            folder="text_encoders",
            source=Source(_ENCODERS, "clip_l.safetensors"),
        ),
        tokenizer="tokenizer",
        tokenizer_files=("vocab.json", "merges.txt"),
        tokens=77,
        width=768,
    ),
    t5=TextEncoder(
        ModelFile(
            key="t5xxl",
            setting="t5xxl",
            title="the T5-XXL encoder",
            folder="text_encoders",
            source=Source(_ENCODERS, "t5xxl_fp16.safetensors"),
            smaller=Source(_ENCODERS, "t5xxl_fp8_e4m3fn.safetensors"),
            dtypes=OR_FP8,
        ),
        tokenizer="tokenizer_2",
        tokenizer_files=("tokenizer.json",),
        tokens=512,
        width=4096,
    ),
    latents=Latents(channels=16, shift=0.1159, scale=0.3611),
    blocks=Blocks(double=19, single=38, width=3072, head_width=128, axes=(16, 56, 56)),
    bases=(
        BaseModel(
            name="FLUX.1-dev",
            source=Source(_DEV, "flux1-dev.safetensors"),
            takes_guidance=True,
            t5_tokens=512,
            architecture="flux-1-dev",
        ),
        BaseModel(
            name="FLUX.1-Krea-dev",
            source=Source(_KREA, "flux1-krea-dev.safetensors"),
            takes_guidance=True,
            t5_tokens=512,
            architecture="flux-1-dev",
            mark="krea",
            flag="--krea",
        ),
        BaseModel(
            name="FLUX.1-schnell",
            source=Source(_SCHNELL, "flux1-schnell.safetensors"),
            takes_guidance=False,
            t5_tokens=256,
            architecture="flux-1-schnell",
            flag="--schnell",
        ),
    ),
)
DEV, KREA, SCHNELL = FLUX1.bases
