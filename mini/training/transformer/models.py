"""The transformer and the text encoders in training: built, loaded, saved, and as one set of parameters."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import FluxTransformer2DModel
from safetensors.torch import load_file
from torch import Tensor, nn

from mini.training.modules import moved
from mini.training.recipe import Recipe
from mini.training.transformer.corpus import Batch
from mini.training.transformer.text import TextEncoders
from trainer.common.files import write_safetensors
from trainer.common.problems import Problem, Problems
from trainer.common.rng import derive_seed
from trainer.models.text import Tokenizers, load_tokenizers
from trainer.models.transformer import Conditioning, RotaryTable, predict_velocity, rotary_table

TOKENIZERS = "tokenizers"  # their folder
TRANSFORMER, TEXT, GUIDED = "transformer.safetensors", "text.safetensors", "guided.safetensors"
MODULATIONS = (".norm1.linear", ".norm1_context.linear", ".norm.linear")  # of the blocks: AdaLN's


@dataclass(frozen=True)
class Models:
    """The models that are trained jointly, float32, on one device."""

    transformer: FluxTransformer2DModel
    text: TextEncoders
    rotary: RotaryTable  # for the recipe's image and text size; computing it in each step would wait for the GPU

    def parameters(self) -> dict[str, nn.Parameter]:
        """Parameters by name: the transformer's begin with "transformer.", the text encoders' with "text."."""
        modules = (("transformer", self.transformer), ("text", self.text))
        return {f"{part}.{name}": value for part, module in modules for name, value in module.named_parameters()}

    def velocity(self, batch: Batch, conditioning: Conditioning | None = None) -> Tensor:
        """The predicted velocity [B, 16, h, w], float32; computed in bfloat16 on a GPU.

        conditioning: used instead of the batch's captions, if given.
        """
        with compute_type(batch.latents.device):
            text = conditioning or Conditioning(*self.text(batch.t5_ids, batch.clip_ids))
            predicted = predict_velocity(self.transformer, batch.noisy, batch.sigmas, text, batch.guidance, self.rotary)
        return predicted.float()

    @torch.no_grad()
    def take_over(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy tensors into the parameters of the same names."""
        parameters = self.parameters()
        for name, tensor in tensors.items():
            parameters[name].copy_(tensor)


def compute_type(device: torch.device) -> torch.autocast:
    """Autocast to bfloat16 on a GPU; no autocast on a CPU."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


def build_models(recipe: Recipe, tokenizers: Tokenizers, device: torch.device) -> Models:
    """New models; the initial weights are the same on every device and in every process."""
    transformer, text = moved(build_transformer(recipe), device=device), TextEncoders(recipe, tokenizers).to(device)
    rotary = rotary_table(transformer, recipe.latent_size, recipe.latent_size, recipe.text_length, device)
    return Models(transformer, text, rotary)


def build_transformer(recipe: Recipe) -> FluxTransformer2DModel:
    """FLUX.1-dev's architecture at the recipe's size; initially each block is the identity and the velocity is 0."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(recipe.seed, "transformer"))
        transformer = FluxTransformer2DModel(
            in_channels=4 * recipe.latent_channels,
            num_layers=recipe.transformer_double_blocks,
            num_single_layers=recipe.transformer_single_blocks,
            attention_head_dim=recipe.transformer_head_width,
            num_attention_heads=recipe.transformer_heads,
            joint_attention_dim=recipe.t5_width,
            pooled_projection_dim=recipe.clip_width,
            guidance_embeds=True,
            axes_dims_rope=recipe.transformer_axes,
        )
        for name, module in transformer.named_modules():
            if isinstance(module, nn.Linear):
                _initialise(name, module)
    return transformer


def _initialise(name: str, linear: nn.Linear) -> None:
    """Initialize as DiT does (Peebles and Xie 2022, 3.2): training is far slower with PyTorch's default."""
    if name.endswith(MODULATIONS) or name in ("norm_out.linear", "proj_out"):
        nn.init.zeros_(linear.weight)
    elif name.startswith("time_text_embed."):
        nn.init.normal_(linear.weight, std=0.02)
    else:
        nn.init.xavier_uniform_(linear.weight)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)


def save_models(folder: Path, tensors: Mapping[str, Tensor], transformer: str = TRANSFORMER) -> None:
    """Write the parts that are in `tensors` (named as in `Models.parameters`) to a file each, without their prefix."""
    for part, file in (("transformer.", transformer), ("text.", TEXT)):
        own = {name.removeprefix(part): tensor for name, tensor in tensors.items() if name.startswith(part)}
        if own:
            write_safetensors(folder / file, own)


def load_models(recipe: Recipe, folder: Path, device: torch.device, transformer: str = GUIDED) -> Models:
    """The trained models, frozen. transformer: `GUIDED` or `TRANSFORMER`. Raises `Problems` if a file is missing."""
    for file in (folder / TEXT, folder / transformer):
        if not file.exists():
            raise Problems(
                [Problem(str(file), "there is no such file", "run the stages transformer and guidance first")]
            )
    models = build_models(recipe, load_tokenizers(folder / TOKENIZERS), device)
    stored = {f"transformer.{name}": tensor for name, tensor in load_file(folder / transformer).items()}
    stored |= {f"text.{name}": tensor for name, tensor in load_file(folder / TEXT).items()}
    assert set(stored) == set(models.parameters()), "files of another recipe"
    models.take_over(stored)
    models.transformer.eval().requires_grad_(False)
    models.text.eval().requires_grad_(False)
    return models
