"""The transformer as `trainer sample` uses it: its base in fewer bits, its blocks compiled, its steps recorded."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import FluxTransformer2DModel

from trainer.engine.compilation import compile_blocks, use_cache
from trainer.lora.blocks import layers_on_one_input, place_adapters_together, use_training_blocks
from trainer.lora.file import LoraFile
from trainer.models.attention import choose_attention
from trainer.models.description import FLUX1
from trainer.models.load import load_transformer
from trainer.models.quantized import Precision, WeightFormat
from trainer.models.transformer import predict_velocity
from trainer.sampling.adapted import apply_lora
from trainer.sampling.prompts import SamplePrompt
from trainer.sampling.recorded import RecordedVelocity


@dataclass(frozen=True)
class Sequences:
    """The sequences to sample: numbers of image tokens, of text tokens, and whether padding in the text is masked."""

    img_tokens: frozenset[int]
    txt_tokens: int
    masked: bool = False

    @classmethod
    def of(cls, prompts: Sequence[SamplePrompt], txt_tokens: int, masked: bool) -> "Sequences":
        """Those of some prompts."""
        side = FLUX1.latents.token_side
        sizes = frozenset((prompt.width // side) * (prompt.height // side) for prompt in prompts)
        return cls(sizes, txt_tokens, masked)


def load_adapted(
    path: Path,
    lora: LoraFile | None,
    device: torch.device,
    dtype: torch.dtype,
    precision: Precision = "bf16",
    fastest_for: Sequences | None = None,
) -> FluxTransformer2DModel:
    """The transformer of a file with a LoRA (None: none), to sample from.

    dtype: of everything that is not quantized; precision: of the base's blocks, where bf16 means dtype; fastest_for:
    use training's blocks and the fastest attention for these sequences, None for diffusers' own. Raises `Problems` if
    the LoRA does not fit.
    """
    transformer = load_transformer(path, device, dtype, WeightFormat(precision), joined=layers_on_one_input)
    if precision != "bf16" or fastest_for:
        use_training_blocks(transformer)  # they also compute together what fp8 stores as one
    if fastest_for:
        shapes = {(1, tokens): 1 for tokens in fastest_for.img_tokens}
        choose_attention(transformer, fastest_for.txt_tokens, shapes, fastest_for.masked)
    apply_lora(lora, transformer, "transformer.")
    return transformer


def compiled(
    transformer: FluxTransformer2DModel, num_sizes: int, cache_folder: Path | None, backend: str = "inductor"
) -> Callable[..., torch.Tensor]:
    """Compile a transformer that was loaded to be fastest, in place.

    num_sizes: how many sizes of images it will sample; cache_folder: for compiled code, None for torch's own; backend:
    of torch.compile. Returns what computes velocities in place of `predict_velocity`: on a GPU, a forward pass is also
    recorded as a CUDA graph.
    """
    if cache_folder:
        use_cache(cache_folder)
    place_adapters_together(transformer)
    compile_blocks(transformer, backend, "auto", num_sizes)
    return RecordedVelocity() if transformer.device.type == "cuda" else predict_velocity
