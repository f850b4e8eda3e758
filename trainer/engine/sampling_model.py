"""The transformer as `trainer sample` uses it: its base in fewer bits, its blocks compiled, its steps recorded."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from diffusers import FluxTransformer2DModel

from trainer.engine.compilation import compile_blocks, use_cache
from trainer.lora.blocks import layers_on_one_input, place_adapters_together, use_training_blocks
from trainer.lora.file import LoraFile
from trainer.models.attention import choose_attention
from trainer.models.load import load_transformer
from trainer.models.quantized import Precision, WeightFormat
from trainer.models.transformer import predict_velocity
from trainer.sampling.adapted import apply_lora
from trainer.sampling.prompts import SamplePrompt
from trainer.sampling.recorded import RecordedVelocity


def load_adapted(
    path: Path, lora: LoraFile | None, device: torch.device, dtype: torch.dtype, precision: Precision = "bf16"
) -> FluxTransformer2DModel:
    """The transformer of a file with a LoRA (None: none), to sample from.

    dtype: of everything that is not quantized; precision: of the base's blocks, where bf16 means dtype. Raises
    `Problems` if the LoRA does not fit.
    """
    transformer = load_transformer(path, device, dtype, WeightFormat(precision), joined=layers_on_one_input)
    if precision != "bf16":
        use_training_blocks(transformer)  # they compute the layers that are stored as one together
    apply_lora(lora, transformer, "transformer.")
    return transformer


def compiled(
    transformer: FluxTransformer2DModel,
    prompts: Sequence[SamplePrompt],
    txt_length: int,
    masked: bool,
    cache_folder: Path | None,
    backend: str = "inductor",
) -> Callable[..., torch.Tensor]:
    """Compile the transformer's blocks, in place, for the sizes of these prompts.

    txt_length: T5 tokens; masked: whether their padding is masked; cache_folder: for compiled code, None for torch's
    own; backend: of torch.compile. Returns what computes velocities in place of `predict_velocity`: on a GPU, a forward
    pass is also recorded as a CUDA graph.
    """
    if cache_folder:
        use_cache(cache_folder)
    use_training_blocks(transformer)
    place_adapters_together(transformer)
    sizes = {(prompt.width // 16) * (prompt.height // 16) for prompt in prompts}
    choose_attention(transformer, txt_length, {(1, tokens): 1 for tokens in sizes}, masked)
    compile_blocks(transformer, backend, "auto", len(sizes))
    return RecordedVelocity() if transformer.device.type == "cuda" else predict_velocity
