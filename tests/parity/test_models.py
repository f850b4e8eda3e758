"""Models loaded from single files against independent implementations on the same random weights."""

import pytest
import torch
from bfl_reference import decode, encode, flux
from diffusers import FluxPipeline
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from benchmarks.random_flux import write_model_files
from trainer.common.problems import Problems
from trainer.models.description import SCHNELL
from trainer.models.load import base_model_of, load_autoencoder, load_clip, load_t5, load_transformer
from trainer.models.text import encode_clip, encode_t5, load_tokenizers

CAPTION = ["tjtoy toy on a beach", "sparkgpu gpu"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_model_files(tmp_path_factory.mktemp("models"), size="tiny", seed=3)


@pytest.fixture(scope="module")
def inputs():
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(shape, generator=generator)  # noqa: E731
    ids = torch.cat([torch.zeros(5, 3), torch.cartesian_prod(torch.zeros(1), torch.arange(2.0), torch.arange(3.0))])
    return {
        "img": draw(2, 6, 64),
        "txt": draw(2, 5, 64),
        "pooled": draw(2, 64),
        "time": torch.rand(2),
        "ids": ids,
    }


def float_tensors(path):
    return {name: tensor.float() for name, tensor in load_file(path).items()}


def run(transformer, inputs, guidance):
    return transformer(
        hidden_states=inputs["img"],
        encoder_hidden_states=inputs["txt"],
        pooled_projections=inputs["pooled"],
        timestep=inputs["time"],
        guidance=guidance,
        txt_ids=inputs["ids"][:5],
        img_ids=inputs["ids"][5:],
    ).sample


@torch.no_grad()
def test_transformer_is_the_published_architecture(files, inputs):
    guidance = torch.tensor([1.0, 3.5])
    expected = flux(float_tensors(files.transformer), guidance=guidance, **inputs)
    transformer = load_transformer(files.transformer, "cpu", torch.float32)
    assert expected.std() > 0.1
    torch.testing.assert_close(run(transformer, inputs, guidance), expected, rtol=1e-4, atol=1e-5)
    assert not any(p.requires_grad or p.is_meta for p in transformer.parameters())
    assert not transformer.training


@torch.no_grad()
def test_schnell_is_known_by_its_missing_guidance(tmp_path, inputs):
    schnell = write_model_files(tmp_path, size="tiny", seed=3, guidance=False).transformer
    transformer = load_transformer(schnell, "cpu", torch.float32)
    assert base_model_of(schnell) is SCHNELL and not transformer.config.guidance_embeds
    expected = flux(float_tensors(schnell), guidance=None, **inputs)
    torch.testing.assert_close(run(transformer, inputs, None), expected, rtol=1e-4, atol=1e-5)


def test_other_head_widths_need_their_axes_in_the_metadata(files, tmp_path, inputs):
    tensors = float_tensors(files.transformer)
    narrow = {name: t[:64].clone() if name.endswith("_norm.scale") else t for name, t in tensors.items()}
    path = tmp_path / "narrow.safetensors"
    save_file(narrow, path)
    with pytest.raises(Problems, match="axes_dims_rope"):
        load_transformer(path, "cpu", torch.float32)
    save_file(narrow, path, metadata={"axes_dims_rope": "[16, 24, 24]"})
    transformer = load_transformer(path, "cpu", torch.float32)
    assert transformer.config.num_attention_heads == 4
    with torch.no_grad():
        expected = flux(narrow, guidance=torch.ones(2), axes=(16, 24, 24), **inputs)
        torch.testing.assert_close(run(transformer, inputs, torch.ones(2)), expected, rtol=1e-4, atol=1e-5)


def test_prefix_and_precision_do_not_matter(files, tmp_path):
    plain = load_transformer(files.transformer, "cpu", torch.float32).state_dict()
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        path = tmp_path / "other.safetensors"
        tensors = load_file(files.transformer).items()
        save_file({f"model.diffusion_model.{name}": tensor.to(dtype) for name, tensor in tensors}, path)
        for name, tensor in load_transformer(path, "cpu", torch.float32).state_dict().items():
            torch.testing.assert_close(tensor, plain[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("scale_suffix", ["scale_weight", "weight_scale", None])
def test_fp8_is_multiplied_by_its_scale(files, tmp_path, scale_suffix):
    stored, expected = {"scaled_fp8": torch.zeros(2).to(torch.float8_e4m3fn)} if scale_suffix else {}, {}
    for name, tensor in float_tensors(files.transformer).items():
        matrix = name.endswith(".weight") and "_blocks." in name
        scale = tensor.abs().max() / 448 if scale_suffix else torch.tensor(1.0)
        stored[name] = (tensor / scale).to(torch.float8_e4m3fn) if matrix else tensor
        expected[name] = stored[name].float() * scale if matrix else tensor
        if matrix and scale_suffix:
            stored[name.replace(".weight", f".{scale_suffix}")] = scale.reshape(())
            stored[name.replace(".weight", ".scale_input")] = torch.ones(())
    save_file(stored, tmp_path / "fp8.safetensors")
    save_file(expected, tmp_path / "plain.safetensors")
    found = load_transformer(tmp_path / "fp8.safetensors", "cpu", torch.float32).state_dict()
    for name, tensor in load_transformer(tmp_path / "plain.safetensors", "cpu", torch.float32).state_dict().items():
        assert torch.equal(found[name], tensor), name


def test_what_is_missing_or_too_much_is_named(files, tmp_path):
    tensors = load_file(files.transformer)
    del tensors["double_blocks.1.txt_attn.qkv.weight"]
    tensors["pos_in.weight"] = torch.zeros(3)
    tensors["final_layer.linear.bias"] = torch.zeros(63)
    save_file(tensors, tmp_path / "odd.safetensors")
    with pytest.raises(Problems) as raised:
        load_transformer(tmp_path / "odd.safetensors", "cpu", torch.float32)
    text = str(raised.value)
    assert "lacks: transformer_blocks.1.attn.add_q_proj.weight" in text
    assert "has unexpected: pos_in.weight" in text
    assert "proj_out.bias [63], not [64]" in text


@torch.no_grad()
def test_autoencoder_is_the_published_architecture(files):
    weights = float_tensors(files.ae)
    model = load_autoencoder(files.ae, "cpu", torch.float32)
    pixels = torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mean = encode(weights, pixels)
    assert mean.shape == (1, 16, 4, 6)
    torch.testing.assert_close(model.encode(pixels).latent_dist.mean, mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.decode(mean).sample, decode(weights, mean), rtol=1e-4, atol=1e-5)
    assert (model.config.scaling_factor, model.config.shift_factor) == (0.3611, 0.1159)


def test_autoencoder_keys_are_those_of_diffusers_own_converter(files):
    model = load_autoencoder(files.ae, "cpu", torch.float32)
    expected = convert_ldm_vae_checkpoint(load_file(files.ae), dict(model.config))
    found = model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor.reshape(found[name].shape)) for name, tensor in expected.items())


def plain_t5():
    return T5EncoderModel(
        T5Config(
            vocab_size=256, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4,
            feed_forward_proj="gated-gelu",
        )
    ).eval()  # fmt: skip


def plain_clip():
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=514, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=1,
            hidden_act="quick_gelu", eos_token_id=513, bos_token_id=512, pad_token_id=513,
        )
    ).eval()  # fmt: skip


def copy_weights(module, path):
    """load_state_dict of the file, whichever level of names this version of transformers has."""
    own = module.state_dict()
    stored = float_tensors(path)
    module.load_state_dict({name: stored.get(name, stored.get(f"text_model.{name}")) for name in own})
    return module


@pytest.fixture(scope="module")
def pipeline(files):
    """diffusers' own pipeline around plain transformers modules."""
    tokenizers = load_tokenizers(files.tokenizer_dir)
    return FluxPipeline(
        scheduler=None, vae=None, transformer=None,
        text_encoder=copy_weights(plain_clip(), files.clip_l), tokenizer=tokenizers.clip,
        text_encoder_2=copy_weights(plain_t5(), files.t5xxl), tokenizer_2=tokenizers.t5,
    )  # fmt: skip


@torch.no_grad()
def test_texts_are_those_of_the_diffusers_pipeline(files, pipeline):
    tokenizers = load_tokenizers(files.tokenizer_dir)
    clip = load_clip(files.clip_l, "cpu", torch.float32, tokenizers.clip.eos_token_id)
    t5 = load_t5(files.t5xxl, "cpu", torch.float32)
    expected_txt, expected_pooled, _ = pipeline.encode_prompt(CAPTION, CAPTION, max_sequence_length=48)
    txt, mask = encode_t5(t5, tokenizers.t5, CAPTION, 48, masked=False)
    assert torch.equal(encode_clip(clip, tokenizers.clip, CAPTION), expected_pooled)
    assert torch.equal(txt, expected_txt)
    assert mask.sum(dim=1).tolist() == [len(ids) for ids in tokenizers.t5(CAPTION).input_ids]


@torch.no_grad()
def test_masked_t5_does_not_see_its_padding(files):
    tokenizers = load_tokenizers(files.tokenizer_dir)
    t5 = load_t5(files.t5xxl, "cpu", torch.float32)
    (short, mask), (long, _) = (encode_t5(t5, tokenizers.t5, CAPTION[1:], length, masked=True) for length in (20, 60))
    count = int(mask.sum())
    torch.testing.assert_close(short[:, :count], long[:, :count])
    seen, _ = encode_t5(t5, tokenizers.t5, CAPTION[1:], 60, masked=False)
    assert not torch.allclose(seen[:, :count], long[:, :count], atol=1e-3)


@pytest.mark.parametrize("dropped", ["shared.weight", "encoder.embed_tokens.weight"])
def test_t5_embedding_under_either_name(files, tmp_path, dropped):
    tensors = load_file(files.t5xxl)
    expected = tensors.pop(dropped)
    save_file(tensors, tmp_path / "t5.safetensors")
    model = load_t5(tmp_path / "t5.safetensors", "cpu", torch.float16)
    assert torch.equal(model.shared.weight, expected)
    assert model.encoder.embed_tokens.weight is model.shared.weight


def test_clip_heads_come_from_metadata_and_extras_are_tolerated(files, tmp_path):
    tensors = load_file(files.clip_l)
    tensors["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    tensors["text_projection.weight"] = torch.zeros(64, 64)
    unprefixed = {name.removeprefix("text_model."): tensor for name, tensor in tensors.items()}
    for stored in (tensors, unprefixed):
        save_file(stored, tmp_path / "clip.safetensors", metadata={"num_attention_heads": "4"})
        model = load_clip(tmp_path / "clip.safetensors", "cpu", torch.float32, 513)
        assert model.config.num_attention_heads == 4
