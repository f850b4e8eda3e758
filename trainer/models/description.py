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

    key: its name in messages of our own and in `download --only`. setting: the setting that holds its path. title: what
    users call it. folder: where it goes below models/, as in ComfyUI. source: where to get it, of the family's first
    base model. smaller: the same in fp8, if there is one. dtypes: those that can be loaded.
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
    """A text encoder's tokenizer and limits.

    tokenizer: its folder in the model's repository. tokenizer_files: those without which it cannot be loaded. tokens:
    the number of tokens a text is padded or cut to; for T5 the largest. width: numbers per token of its output.
    """

    file: ModelFile
    tokenizer: str
    tokenizer_files: tuple[str, ...]
    tokens: int
    width: int


@dataclass(frozen=True)
class Latents:
    """What the transformer is trained on: (z - shift) * scale of the autoencoder's z.

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
    """The transformer at its published size. Loading reads the sizes from the file; only `axes` cannot be read there.

    axes: how many numbers of a head rotate with the text index, the row and the column.
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
    ModelSpec standard. mark: a word in the file's name that tells it from others with the same tensors. flag: what
    `sh download.sh` needs to fetch it.
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
        """What a LoRA's title adds, because `architecture` does not name this model; empty if it does."""
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
        """The file with this key; raises StopIteration for another one."""
        return next(file for file in self.files if file.key == key)

    def published(self, file_name: str) -> BaseModel:
        """The base model whose transformer is published under this file name; the first one for any other name."""
        return next((base for base in self.bases if base.source.path == file_name), self.bases[0])

    def recognise(self, path: Path, tensors: Iterable[str], metadata: Mapping[str, str]) -> BaseModel:
        """The base model that a transformer file holds, from the names of its tensors, its own name and its metadata.

        Tensors tell whether guidance is embedded. FLUX.1-dev and FLUX.1-Krea-dev differ in nothing but numbers, so the
        file's name or its `modelspec.title` has to tell them apart; without a hint it counts as FLUX.1-dev.
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
