"""The forward pass that we spell out against diffusers' own, and its gradients against other ways to them."""

import pytest
import torch
import torch.nn.functional as F
from diffusers import FluxPipeline, FluxTransformer2DModel
from diffusers.models.embeddings import apply_rotary_emb
from torch import nn

from trainer.lora.adapter import adapter_parameters, add_lora, disabled_adapter, linear_modules
from trainer.models.transformer import Conditioning, pack_latents, predict_velocity, rotary_table, unpack_latents

HEIGHT, WIDTH, TXT = 4, 6, 5
CPU = torch.device("cpu")


def make_transformer(guidance: bool = True) -> FluxTransformer2DModel:
    """Random weights of ordinary size everywhere, norms and biases too."""
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        pooled_projection_dim=20,
        guidance_embeds=guidance,
        axes_dims_rope=(4, 6, 6),
    )
    generator = torch.Generator().manual_seed(1)
    for name, parameter in transformer.named_parameters():
        gain = parameter.ndim == 1 and name.endswith("weight")
        spread = 0.2 if parameter.ndim == 1 else parameter.shape[-1] ** -0.5
        nn.init.normal_(parameter, float(gain), spread, generator=generator)
    return transformer.eval().requires_grad_(False)


@pytest.fixture(params=[True, False], ids=["dev", "schnell"])
def transformer(request) -> FluxTransformer2DModel:
    return make_transformer(request.param)


@pytest.fixture
def noisy() -> torch.Tensor:
    return torch.randn(2, 4, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def text() -> Conditioning:
    generator = torch.Generator().manual_seed(3)
    return Conditioning(
        torch.randn(2, TXT, 24, generator=generator),
        torch.randn(2, 20, generator=generator),
        torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], dtype=torch.bool),
    )


SIGMAS = torch.tensor([0.83, 0.21])


def ours(transformer, noisy, text, guidance: float = 3.5, checkpointed: bool = False) -> torch.Tensor:
    rotary = rotary_table(transformer, *noisy.shape[-2:], text.txt.shape[1], CPU)
    return predict_velocity(transformer, noisy, SIGMAS, text, guidance, rotary, checkpointed)


def theirs(transformer, noisy, text, guidance: float = 3.5) -> torch.Tensor:
    height, width = noisy.shape[-2:]
    tokens = transformer(
        hidden_states=FluxPipeline._pack_latents(noisy, *noisy.shape),
        encoder_hidden_states=text.txt,
        pooled_projections=text.pooled,
        timestep=SIGMAS,
        guidance=torch.full((2,), guidance) if transformer.config.guidance_embeds else None,
        img_ids=FluxPipeline._prepare_latent_image_ids(2, height // 2, width // 2, CPU, torch.float32),
        txt_ids=torch.zeros(text.txt.shape[1], 3),
    ).sample
    return FluxPipeline._unpack_latents(tokens, height * 8, width * 8, vae_scale_factor=8)


def unmasked(text: Conditioning) -> Conditioning:
    return Conditioning(text.txt, text.pooled)


def test_the_whole_forward_pass(transformer, noisy, text):
    expected = theirs(transformer, noisy, unmasked(text))
    assert expected.std() > 0.1
    torch.testing.assert_close(ours(transformer, noisy, unmasked(text)), expected, rtol=1e-5, atol=1e-6)


def test_guidance_counts_for_dev_alone(transformer, noisy, text):
    same = torch.equal(ours(transformer, noisy, text, 1.0), ours(transformer, noisy, text, 3.5))
    assert same is not transformer.config.guidance_embeds


def test_packing_is_the_pipelines(noisy):
    packed = pack_latents(noisy)
    assert torch.equal(packed, FluxPipeline._pack_latents(noisy, *noisy.shape))
    assert torch.equal(unpack_latents(packed, HEIGHT, WIDTH), noisy)


@pytest.mark.parametrize(("height", "width"), [(4, 6), (10, 2), (128, 96)])
def test_rotary_table_is_that_of_the_pipelines_ids(height, width):
    transformer = make_transformer()
    ids = FluxPipeline._prepare_latent_image_ids(1, height // 2, width // 2, CPU, torch.float32)
    expected = transformer.pos_embed(torch.cat([torch.zeros(TXT, 3), ids]))
    for own, table in zip(rotary_table(transformer, height, width, TXT, CPU), expected, strict=True):
        assert own.dtype == torch.float32
        torch.testing.assert_close(own, table, rtol=0, atol=1e-6)


def test_hidden_padding_has_no_influence(transformer, noisy, text):
    """What a masked token holds does not matter; what an unmasked one holds does."""
    changed = text.txt.clone()
    changed[0, 3:] = 99
    other = Conditioning(changed, text.pooled, text.txt_mask)
    torch.testing.assert_close(ours(transformer, noisy, other), ours(transformer, noisy, text), rtol=1e-5, atol=1e-6)
    assert (ours(transformer, noisy, unmasked(other)) - ours(transformer, noisy, unmasked(text)))[0].abs().max() > 1e-3


def test_a_masked_text_is_a_shorter_text(transformer, noisy, text):
    """Text tokens all stand at position 0, so hiding the last two equals leaving them out."""
    row = Conditioning(text.txt[:1, :3], text.pooled[:1])
    short = ours(transformer, noisy[:1], Conditioning(row.txt.repeat(2, 1, 1), row.pooled.repeat(2, 1)))[0]
    torch.testing.assert_close(ours(transformer, noisy, text)[0], short, rtol=1e-5, atol=1e-6)
    full = ours(transformer, noisy, unmasked(text))[1]
    torch.testing.assert_close(ours(transformer, noisy, text)[1], full, rtol=1e-5, atol=1e-6)


def masked_attention(attention, img, txt, rotary, hidden: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Joint attention in plain words: softmax with minus infinity at hidden text tokens."""

    def project(letter: str) -> torch.Tensor:
        streams = [(img, getattr(attention, f"to_{letter}"), getattr(attention, f"norm_{letter}", None))]
        if txt is not None:
            added = getattr(attention, f"add_{letter}_proj"), getattr(attention, f"norm_added_{letter}", None)
            streams.insert(0, (txt, *added))
        heads = [(layer(x).unflatten(-1, (attention.heads, -1)), norm) for x, layer, norm in streams]
        return torch.cat([norm(x) if norm else x for x, norm in heads], dim=1)

    query, key = (apply_rotary_emb(project(letter), rotary, sequence_dim=1) for letter in "qk")
    scores = torch.einsum("bqhd,bkhd->bhqk", query, key) / query.shape[-1] ** 0.5
    blocked = F.pad(hidden, (0, scores.shape[-1] - hidden.shape[-1]), value=False)
    weights = scores.masked_fill(blocked[:, None, None, :], -torch.inf).softmax(-1)
    mixed = torch.einsum("bhqk,bkhd->bqhd", weights, project("v")).flatten(2)
    if txt is None:
        return (mixed,)
    split = txt.shape[1]
    return attention.to_out[0](mixed[:, split:]), attention.to_add_out(mixed[:, :split])


def test_text_mask_against_attention_in_plain_words(transformer, noisy, text, monkeypatch):
    expected_mask = ~text.txt_mask
    rotary = rotary_table(transformer, HEIGHT, WIDTH, TXT, CPU)

    def plain(self, hidden_states, encoder_hidden_states=None, **_):
        out = masked_attention(self, hidden_states, encoder_hidden_states, rotary, expected_mask)
        return out if encoder_hidden_states is not None else out[0]

    result = ours(transformer, noisy, text)
    monkeypatch.setattr(type(transformer.transformer_blocks[0].attn), "forward", plain)
    torch.testing.assert_close(result, theirs(transformer, noisy, text), rtol=1e-4, atol=1e-5)


def adapted(rank: int = 3) -> tuple[FluxTransformer2DModel, dict[str, nn.Parameter]]:
    transformer = make_transformer()
    add_lora(transformer, dict.fromkeys(linear_modules(transformer), rank), alpha=1.5, seed=0)
    parameters = adapter_parameters(transformer)
    generator = torch.Generator().manual_seed(4)
    for parameter in parameters.values():
        nn.init.normal_(parameter, 0, 0.1, generator=generator)
    return transformer, parameters


def gradients(transformer, parameters, noisy, text, checkpointed: bool = False) -> dict[str, torch.Tensor]:
    loss = ours(transformer, noisy, text, checkpointed=checkpointed).square().mean()
    return dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))


def test_checkpointing_changes_no_gradient(noisy, text):
    transformer, parameters = adapted()
    plain = gradients(transformer, parameters, noisy, text)
    again = gradients(transformer, parameters, noisy, text, checkpointed=True)
    for name, gradient in plain.items():
        assert gradient.abs().max() > 0, name
        assert torch.equal(gradient, again[name]), name


def test_adapter_gradients_are_those_of_merged_weights(noisy, text):
    """With W' = W + s·B·A as a leaf, dL/dB = s·dL/dW'·Aᵀ and dL/dA = s·Bᵀ·dL/dW'."""
    transformer, parameters = adapted()
    merged, scale = make_transformer(), 1.5 / 3
    leaves = {name: merged.get_submodule(name).weight for name in linear_modules(merged)}
    with torch.no_grad():
        for name, weight in leaves.items():
            down, up = (parameters[f"transformer.{name}.{key}.weight"] for key in ("lora_A", "lora_B"))
            weight += scale * up @ down
    for weight in leaves.values():
        weight.requires_grad_(True)
    velocity = theirs(merged, noisy, unmasked(text))
    torch.testing.assert_close(ours(transformer, noisy, unmasked(text)), velocity, rtol=1e-4, atol=1e-5)
    found = gradients(transformer, parameters, noisy, unmasked(text))
    wholes = torch.autograd.grad(velocity.square().mean(), list(leaves.values()))
    for name, whole in zip(leaves, wholes, strict=True):
        down, up = (parameters[f"transformer.{name}.{key}.weight"].detach() for key in ("lora_A", "lora_B"))
        expected = {"lora_A": scale * up.T @ whole, "lora_B": scale * whole @ down.T}
        for key, value in expected.items():
            torch.testing.assert_close(found[f"transformer.{name}.{key}.weight"], value, rtol=2e-3, atol=1e-6)


def test_adapter_gradient_is_a_slope(noisy, text):
    """The loss along a random direction, in double precision, by central differences."""
    transformer, parameters = adapted()
    transformer.double()
    wide = Conditioning(text.txt.double(), text.pooled.double(), text.txt_mask)
    found = gradients(transformer, parameters, noisy.double(), wide)
    generator = torch.Generator().manual_seed(6)
    direction = {n: torch.randn(p.shape, generator=generator, dtype=torch.float64) for n, p in parameters.items()}

    @torch.no_grad()
    def loss_at(distance: float) -> float:
        for name, parameter in parameters.items():
            parameter += distance * direction[name]
        value = float(ours(transformer, noisy.double(), wide).square().mean())
        for name, parameter in parameters.items():
            parameter -= distance * direction[name]
        return value

    slope = (loss_at(1e-3) - loss_at(-1e-3)) / 2e-3  # not finer: diffusers turns by angles in float32
    expected = sum(float((found[name] * direction[name]).sum()) for name in parameters)
    assert slope == pytest.approx(expected, rel=1e-3)


def test_disabled_adapter_is_the_base(noisy, text):
    transformer, _ = adapted()
    expected = ours(make_transformer(), noisy, text)
    assert not torch.allclose(ours(transformer, noisy, text), expected, atol=1e-3)
    with disabled_adapter(transformer):
        assert torch.equal(ours(transformer, noisy, text), expected)


def embedded_timesteps(transformer, noisy, text, sigmas: torch.Tensor) -> torch.Tensor:
    seen: list[torch.Tensor] = []
    embedder = transformer.time_text_embed.time_proj
    embedder.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    low = Conditioning(text.txt.bfloat16(), text.pooled.bfloat16(), text.txt_mask)
    rotary = rotary_table(transformer, HEIGHT, WIDTH, TXT, CPU)
    with torch.no_grad():
        predict_velocity(transformer, noisy.bfloat16(), sigmas, low, 1.0, rotary)
    return seen[0]


def test_timesteps_keep_their_precision_in_a_bfloat16_model(noisy, text):
    """Two sigmas that bfloat16 cannot tell apart are embedded apart."""
    transformer = make_transformer().bfloat16()
    sigmas = torch.tensor([0.8001, 0.8008])
    assert (sigmas * 1000).bfloat16().unique().numel() == 1
    timesteps = embedded_timesteps(transformer, noisy, text, sigmas)
    assert timesteps.dtype == torch.float32
    torch.testing.assert_close(timesteps, sigmas * 1000)
    first, second = transformer.time_text_embed.time_proj(timesteps)
    assert (first - second).abs().max() > 0.1
