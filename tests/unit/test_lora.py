import diffusers
import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel

from trainer.lora.adapter import (
    Dropouts,
    adapter_alphas,
    adapter_parameters,
    add_lora,
    disabled_adapter,
    drop,
    linear_modules,
)


def tiny_transformer(layers: int = 1) -> diffusers.FluxTransformer2DModel:
    torch.manual_seed(0)
    return diffusers.FluxTransformer2DModel(
        in_channels=16,
        num_layers=layers,
        num_single_layers=layers,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        pooled_projection_dim=20,
        guidance_embeds=True,
        axes_dims_rope=(4, 6, 6),
    ).eval()


def tiny_clip() -> CLIPTextModel:
    torch.manual_seed(1)
    config = CLIPTextConfig(
        vocab_size=60,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
    )
    return CLIPTextModel(config).eval()


def predict(transformer: torch.nn.Module) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return transformer(
        hidden_states=torch.randn(1, 4, 16, generator=generator),
        encoder_hidden_states=torch.randn(1, 3, 24, generator=generator),
        pooled_projections=torch.randn(1, 20, generator=generator),
        timestep=torch.tensor([0.4]),
        guidance=torch.tensor([1.0]),
        img_ids=torch.zeros(4, 3),
        txt_ids=torch.zeros(3, 3),
    ).sample


def test_every_block_linear_of_flux_dev_is_found():
    with torch.device("meta"):
        transformer = diffusers.FluxTransformer2DModel(guidance_embeds=True)
    names = linear_modules(transformer)
    assert len(names) == 494
    assert "transformer_blocks.18.norm1_context.linear" in names
    assert "single_transformer_blocks.37.proj_mlp" in names
    assert not [name for name in names if "block" not in name]


def test_clip_layers_are_named_in_the_file_as_in_every_version_of_transformers():
    clip = tiny_clip()
    names = linear_modules(clip)
    assert len(names) == 12
    add_lora(clip, dict.fromkeys(names, 2), None, seed=0)
    tensors = adapter_parameters(torch.nn.Module(), clip)
    assert "text_encoder.text_model.encoder.layers.1.self_attn.q_proj.lora_A.weight" in tensors
    assert len(tensors) == 24


def test_a_fresh_adapter_changes_nothing_and_only_it_is_trained():
    transformer = tiny_transformer()
    before = predict(transformer)
    add_lora(transformer, dict.fromkeys(linear_modules(transformer), 4), None, seed=0)
    assert torch.equal(predict(transformer), before)
    trained = {id(p) for p in transformer.parameters() if p.requires_grad}
    assert trained == {id(p) for p in adapter_parameters(transformer).values()}


def test_ranks_alphas_and_scale_are_each_layers_own():
    transformer = tiny_transformer(layers=2)
    names = linear_modules(transformer)
    ranks = dict.fromkeys(names, 4) | {
        names[0]: 2,
        "single_transformer_blocks.0.attn.to_q": 8,
        names[3]: 0,
    }
    add_lora(transformer, ranks, alpha=6.0, seed=0)
    parameters = adapter_parameters(transformer)
    found = {
        key.removeprefix("transformer.").removesuffix(".lora_A.weight"): value.shape[0]
        for key, value in parameters.items()
        if key.endswith("lora_A.weight")
    }
    assert found == {name: rank for name, rank in ranks.items() if rank}
    assert set(adapter_alphas(transformer).values()) == {6.0}
    layer = transformer.get_submodule("single_transformer_blocks.0.attn.to_q")
    assert layer.scaling["default"] == 6.0 / 8


def test_without_alpha_each_layer_has_scale_one():
    transformer = tiny_transformer()
    names = linear_modules(transformer)
    add_lora(transformer, {name: 3 + index % 2 for index, name in enumerate(names)}, None, seed=0)
    for name, alpha in adapter_alphas(transformer).items():
        assert alpha == adapter_parameters(transformer)[f"{name}.lora_A.weight"].shape[0]


def test_initial_weights_depend_on_seed_and_name_alone():
    def downs(seed: int, names: slice) -> dict[str, torch.Tensor]:
        transformer = tiny_transformer()
        add_lora(transformer, dict.fromkeys(linear_modules(transformer)[names], 4), None, seed)
        return {k: v.detach() for k, v in adapter_parameters(transformer).items() if "lora_A" in k}

    everything, some, other = downs(5, slice(None)), downs(5, slice(4, 9)), downs(6, slice(4, 9))
    assert len(some) == 5
    assert all(torch.equal(everything[key], value) for key, value in some.items())
    assert not any(torch.equal(other[key], value) for key, value in some.items())
    largest = everything["transformer.transformer_blocks.0.attn.to_q.lora_A.weight"].abs().max()
    assert 0.8 * 32**-0.5 < largest <= 32**-0.5


def test_float32_adapters_compute_in_the_base_models_precision():
    transformer = tiny_transformer().to(torch.bfloat16)
    add_lora(transformer, dict.fromkeys(linear_modules(transformer), 4), None, seed=0)
    layer = transformer.get_submodule("transformer_blocks.0.attn.to_q")
    output = layer(torch.randn(1, 3, 32, dtype=torch.bfloat16))
    assert output.dtype == torch.bfloat16
    output.float().sum().backward()
    assert layer.lora_B["default"].weight.grad.dtype == torch.float32


def test_disabled_adapter_gives_the_base_models_prediction_and_comes_back():
    transformer = tiny_transformer()
    before = predict(transformer)
    add_lora(transformer, dict.fromkeys(linear_modules(transformer), 4), None, seed=0)
    for parameter in adapter_parameters(transformer).values():
        torch.nn.init.normal_(parameter, std=0.1)
    adapted = predict(transformer)
    with disabled_adapter(transformer):
        assert torch.equal(predict(transformer), before)
    assert torch.equal(predict(transformer), adapted)
    assert not torch.allclose(adapted, before)
    assert all(parameter.requires_grad for parameter in adapter_parameters(transformer).values())


@pytest.mark.parametrize("shape", [(6, 64), (6, 5, 64)])
def test_rank_dropout_drops_a_rank_for_a_whole_sample_and_scales_the_rest(shape):
    torch.manual_seed(0)
    dropped = drop(torch.ones(shape), Dropouts(rank=0.25))
    assert dropped.unique().tolist() == pytest.approx([0.0, 4 / 3])
    if len(shape) == 3:
        assert torch.equal(dropped[:, 0], dropped[:, 4])
    assert not torch.equal(dropped[0], dropped[1])
    assert 0.15 < (dropped == 0).float().mean() < 0.35


def test_module_dropout_drops_all_or_nothing_without_scaling():
    torch.manual_seed(0)
    results = [drop(torch.ones(2, 3, 4), Dropouts(module=0.5)).unique().tolist() for _ in range(40)]
    assert sorted({tuple(r) for r in results}) == [(0.0,), (1.0,)]


def test_dropouts_work_only_in_training_mode():
    transformer = tiny_transformer()
    add_lora(transformer, dict.fromkeys(linear_modules(transformer), 4), None, 0, dropouts=Dropouts(0.5, 0.5, 0.5))
    for parameter in adapter_parameters(transformer).values():
        torch.nn.init.normal_(parameter, std=0.1)
    transformer.eval()
    assert torch.equal(predict(transformer), predict(transformer))
    transformer.train()
    assert not torch.equal(predict(transformer), predict(transformer))
