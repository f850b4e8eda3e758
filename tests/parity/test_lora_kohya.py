"""The kohya conversion in kohya's own LoRA network on kohya's own FLUX: strict keys, and our output."""

import importlib
import os
import sys
from pathlib import Path
from unittest.mock import MagicMock

import pytest
import torch
from safetensors.torch import load_file

from tests.parity.test_lora_comfyui import draw_weights, make_inputs, make_transformer, relative_error
from trainer.lora.adapter import adapter_alphas, adapter_parameters, add_lora, linear_modules
from trainer.lora.convert import write_lora
from trainer.lora.file import load_lora, save_lora
from trainer.models.names import transformer_to_bfl
from trainer.models.transformer import Conditioning, pack_latents, predict_velocity, rotary_table, unpack_latents

SD_SCRIPTS = os.environ.get("SD_SCRIPTS_DIR")
pytestmark = pytest.mark.skipif(
    not SD_SCRIPTS,
    reason="sd-scripts is not here: git clone https://github.com/kohya-ss/sd-scripts, pip install einops, "
    "then set SD_SCRIPTS_DIR=sd-scripts",
)
INPUTS = make_inputs()


@pytest.fixture
def kohya(monkeypatch: pytest.MonkeyPatch):
    """kohya's modules of FLUX and of its LoRA; picture libraries that they import in passing are left out."""
    pytest.importorskip("einops", reason="pip install einops")
    monkeypatch.syspath_prepend(SD_SCRIPTS)
    for name in ("cv2", "torchvision", "torchvision.transforms"):
        if name not in sys.modules:
            monkeypatch.setitem(sys.modules, name, MagicMock())
    return importlib.import_module("library.flux_models"), importlib.import_module("networks.lora_flux")


@torch.no_grad()
def our_velocity(transformer) -> torch.Tensor:
    conditioning = Conditioning(INPUTS["txt"], INPUTS["pooled"])
    rotary = rotary_table(transformer, 8, 12, 5, torch.device("cpu"))
    return predict_velocity(transformer, INPUTS["x"], INPUTS["sigma"], conditioning, 2.5, rotary)


@torch.no_grad()
def kohyas_velocity(flux) -> torch.Tensor:
    ids = torch.zeros(4, 6, 3)
    ids[..., 1], ids[..., 2] = torch.arange(4)[:, None], torch.arange(6)
    tokens = flux(
        img=pack_latents(INPUTS["x"]),
        img_ids=ids.reshape(1, -1, 3),
        txt=INPUTS["txt"],
        txt_ids=torch.zeros(1, 5, 3),
        y=INPUTS["pooled"],
        timesteps=INPUTS["sigma"],
        guidance=INPUTS["guidance"],
    )
    return unpack_latents(tokens, 8, 12)


def kohyas_flux(flux_models, transformer):
    params = flux_models.FluxParams(
        in_channels=64, vec_in_dim=64, context_in_dim=32, hidden_size=256, mlp_ratio=4.0, num_heads=2,
        depth=2, depth_single_blocks=2, axes_dim=[16, 56, 56], theta=10000, qkv_bias=True, guidance_embed=True,
    )  # fmt: skip
    flux = flux_models.Flux(params)
    flux.load_state_dict(transformer_to_bfl(transformer.state_dict()), strict=True)
    return flux.eval()


def test_kohyas_network_takes_every_key_and_gives_our_output(tmp_path: Path, kohya):
    flux_models, lora_flux = kohya
    transformer = make_transformer()
    draw_weights(transformer, 0.04)
    flux = kohyas_flux(flux_models, transformer)
    base = our_velocity(transformer)
    assert relative_error(kohyas_velocity(flux), base) < 1e-4

    ranks = {name: 2 + index % 3 for index, name in enumerate(linear_modules(transformer))}
    add_lora(transformer, ranks, 5.0, seed=0)
    for index, parameter in enumerate(adapter_parameters(transformer).values()):
        torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(index))
    ours, converted = tmp_path / "ours.safetensors", tmp_path / "kohya.safetensors"
    save_lora(ours, adapter_parameters(transformer), adapter_alphas(transformer), {}, torch.float32)
    write_lora(converted, load_lora(ours), "kohya", torch.float32)

    tensors = load_file(converted)
    network, _ = lora_flux.create_network_from_weights(1.0, None, None, [None], flux, weights_sd=dict(tensors))
    network.apply_to([None], flux, apply_text_encoder=False, apply_unet=True)
    network.load_state_dict(tensors, strict=True)
    assert relative_error(kohyas_velocity(flux), our_velocity(transformer)) < 1e-4
    assert relative_error(base, our_velocity(transformer)) > 0.05
