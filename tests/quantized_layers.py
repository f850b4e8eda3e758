"""Layers stored in 8 and 4 bits, and a tiny FLUX that is adapted, for tests on the CPU and on a GPU."""

from importlib.util import find_spec
from typing import Any

import pytest
import torch

from benchmarks.random_flux import SIZES
from trainer.lora.adapter import adapter_parameters, add_lora, linear_modules
from trainer.lora.blocks import layers_on_one_input, use_training_blocks
from trainer.models.load import load_transformer
from trainer.models.offload import swap_blocks, swapped_names
from trainer.models.quantized import QuantizedLinear, WeightFormat
from trainer.models.transformer import Conditioning, predict_velocity, rotary_table

NUM_DOUBLE, NUM_SINGLE = SIZES["tiny"].double_blocks, SIZES["tiny"].single_blocks
EIGHT_BITS = ["fp8", "int8"]
needs_bitsandbytes = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs: pip install bitsandbytes")
PRECISIONS = [*EIGHT_BITS, pytest.param("nf4", marks=needs_bitsandbytes)]


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def cosine(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(one.flatten().double(), other.flatten().double(), dim=0))


def layer_of(weight: torch.Tensor, precision: str, both_layouts: bool = False) -> QuantizedLinear:
    layer = QuantizedLinear(weight.shape[1], weight.shape[0], WeightFormat(precision, both_layouts))  # type: ignore
    layer.store(weight)
    return layer


def keep_transposed(transformer: torch.nn.Module) -> None:
    """Give all its 8-bit layers the other layout too, as `WeightFormat(both_layouts=True)` does."""
    for layer in transformer.modules():
        if isinstance(layer, QuantizedLinear):
            layer.transposed = torch.nn.Parameter(layer.weight.t().contiguous(), requires_grad=False)
            if layer.joined:
                layer.joined = layer.joined._replace(transposed=layer.joined.weight.t().contiguous())


class Adapted:
    """The tiny FLUX with an adapter that is not zero, on a device, and a gradient of it.

    trained: with the blocks that training runs, whose layers are multiplied together; else diffusers' own.
    swapped: how many blocks wait in host memory.
    """

    def __init__(
        self,
        path,
        base: Any = "bf16",
        dtype=torch.float32,
        device: torch.device | str = "cpu",
        trained: bool = True,
        swapped: int = 0,
    ):
        self.dtype, self.device = dtype, torch.device(device)
        joined = layers_on_one_input if trained else None
        waiting = swapped_names(NUM_DOUBLE, NUM_SINGLE, swapped)
        self.transformer = load_transformer(path, device, dtype, base, waiting, joined)
        swap_blocks(self.transformer, swapped, self.device)
        if trained:
            use_training_blocks(self.transformer)
        add_lora(self.transformer, dict.fromkeys(linear_modules(self.transformer), 4), None, seed=7)
        self.parameters = adapter_parameters(self.transformer)
        for index, parameter in enumerate(self.parameters.values()):
            if not parameter.any():
                parameter.data.copy_(draw(*parameter.shape, seed=index) * 0.02)

    def predict(self) -> torch.Tensor:
        config, device = self.transformer.config, self.device
        text = Conditioning(draw(2, 24, config["joint_attention_dim"]), draw(2, config["pooled_projection_dim"]))
        sigmas, rotary = torch.tensor([0.3, 0.8], device=device), rotary_table(self.transformer, 12, 8, 24, device)
        noisy = draw(2, config["in_channels"] // 4, 12, 8).to(device, self.dtype)
        return predict_velocity(self.transformer, noisy, sigmas, text.to(device, self.dtype), 1.0, rotary)

    def gradient(self) -> torch.Tensor:
        velocity = self.predict().float().cpu()
        loss = (velocity - draw(*velocity.shape)).square().mean()
        gradients = torch.autograd.grad(loss, [*self.parameters.values()])
        return torch.cat([gradient.flatten() for gradient in gradients]).cpu()
