"""Our LoRA files in diffusers' own FluxPipeline: nothing left over, and the output of our own forward."""

import copy
import json
import logging
from pathlib import Path

import diffusers
import pytest
import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file

from tests.unit.test_lora import predict, tiny_clip, tiny_transformer
from trainer.lora.adapter import adapter_alphas, adapter_parameters, add_lora, linear_modules
from trainer.lora.convert import Source, convert, merge, resize, write_lora
from trainer.lora.file import load_lora, save_lora
from trainer.lora_file.flux_names import bfl_module

NO_CLIP = "No LoRA keys associated to CLIPTextModel found"  # said of a file without CLIP's modules
METADATA = {"ss_steps": "5", "modelspec.title": "x"}


class Trained:
    """A small transformer and CLIP with random adapters, as after training, and the same without."""

    def __init__(self, alpha: float | None = None, with_clip: bool = True):
        self.transformer, self.clip = tiny_transformer(layers=2), tiny_clip()
        self.base = copy.deepcopy(self.transformer), copy.deepcopy(self.clip)
        names = linear_modules(self.transformer)
        ranks = {name: 2 + index % 3 for index, name in enumerate(names)} | {names[5]: 0}
        add_lora(self.transformer, ranks, alpha, seed=1)
        if with_clip:
            add_lora(self.clip, dict.fromkeys(linear_modules(self.clip), 3), alpha, seed=1)
        self.with_clip = with_clip
        adapted = (self.transformer, self.clip if with_clip else None)
        self.parameters, self.alphas = adapter_parameters(*adapted), adapter_alphas(*adapted)
        for index, parameter in enumerate(self.parameters.values()):
            torch.nn.init.normal_(parameter, std=0.15, generator=torch.Generator().manual_seed(index))

    def save(self, path: Path) -> Path:
        save_lora(path, self.parameters, self.alphas, METADATA, torch.float32)
        return path

    def pipeline(self, path: Path, caplog: pytest.LogCaptureFixture) -> diffusers.FluxPipeline:
        """diffusers' pipeline on the untouched base, with the file loaded and no complaint."""
        transformer, clip = (copy.deepcopy(model) for model in self.base)
        pipeline = diffusers.FluxPipeline(
            scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
            vae=None,
            text_encoder=clip,
            tokenizer=None,
            text_encoder_2=None,
            tokenizer_2=None,
            transformer=transformer,
        )
        diffusers.logging.enable_propagation()
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            pipeline.load_lora_weights(str(path.parent), weight_name=path.name)
        messages = [record.getMessage() for record in caplog.records]
        assert [text for text in messages if not text.startswith(NO_CLIP)] == []
        assert len(messages) == (not self.with_clip)
        return pipeline


def encode(clip: torch.nn.Module) -> torch.Tensor:
    return clip(torch.arange(1, 9)[None]).last_hidden_state


def assert_same_output(trained: Trained, pipeline: diffusers.FluxPipeline) -> None:
    with torch.no_grad():
        ours, base, theirs = (predict(m) for m in (trained.transformer, trained.base[0], pipeline.transformer))
        assert relative_error(theirs, ours) < 1e-4
        assert relative_error(base, ours) > 0.05  # the adapter is seen at all
        assert relative_error(encode(pipeline.text_encoder), encode(trained.clip)) < 1e-4


def relative_error(one: torch.Tensor, other: torch.Tensor) -> float:
    return ((one - other).norm() / other.norm()).item()


def adapted_modules(model: torch.nn.Module) -> int:
    return sum(isinstance(module, LoraLayer) for module in model.modules())


@pytest.mark.parametrize("alpha", [None, 1.0, 5.0])
def test_our_file_gives_our_output(tmp_path, caplog, alpha):
    trained = Trained(alpha)
    pipeline = trained.pipeline(trained.save(tmp_path / "a.safetensors"), caplog)
    assert adapted_modules(pipeline.transformer) == adapted_modules(trained.transformer)
    assert adapted_modules(pipeline.text_encoder) == adapted_modules(trained.clip) == 12
    assert_same_output(trained, pipeline)


def test_a_file_without_clip_leaves_clip_alone(tmp_path, caplog):
    trained = Trained(with_clip=False)
    pipeline = trained.pipeline(trained.save(tmp_path / "a.safetensors"), caplog)
    assert adapted_modules(pipeline.text_encoder) == 0
    assert_same_output(trained, pipeline)


def test_our_bf16_file_is_as_near_as_bf16_is(tmp_path, caplog):
    trained = Trained(alpha=5.0)
    save_lora(tmp_path / "a.safetensors", trained.parameters, trained.alphas, METADATA)
    pipeline = trained.pipeline(tmp_path / "a.safetensors", caplog)
    with torch.no_grad():
        error = relative_error(predict(pipeline.transformer.float()), predict(trained.transformer))
    assert 0 < error < 2e-2


@pytest.mark.parametrize("alpha", [None, 5.0])
def test_the_kohya_conversion_gives_our_output(tmp_path, caplog, alpha):
    """Without the matrices of single blocks whose width diffusers takes to be FLUX.1-dev's (see below)."""
    trained = Trained(alpha)
    for name in [each for each in trained.alphas if is_in_linear1(each)]:
        del trained.alphas[name]
        torch.nn.init.zeros_(trained.parameters[f"{name}.lora_B.weight"])
        for key in ("lora_A", "lora_B"):
            del trained.parameters[f"{name}.{key}.weight"]
    lora = load_lora(trained.save(tmp_path / "a.safetensors"))
    write_lora(tmp_path / "kohya.safetensors", lora, "kohya", torch.float32)
    assert_same_output(trained, trained.pipeline(tmp_path / "kohya.safetensors", caplog))


def is_in_linear1(name: str) -> bool:
    return name.startswith("transformer.") and bfl_module(name.removeprefix("transformer."))[0].endswith("linear1")


def test_diffusers_reads_the_kohya_conversion_as_we_meant_it_at_full_width(tmp_path, caplog):
    lora = load_lora(write_full_width(tmp_path / "a.safetensors"))
    write_lora(tmp_path / "kohya.safetensors", lora, "kohya", torch.float32)
    diffusers.logging.enable_propagation()
    with caplog.at_level(logging.WARNING):
        theirs = diffusers.FluxPipeline.lora_state_dict(str(tmp_path), weight_name="kohya.safetensors")
    assert caplog.records == []
    assert len(theirs) == 2 * len(lora.modules)
    for name, module in lora.modules.items():
        probe = torch.randn(module.down.shape[1], generator=torch.Generator().manual_seed(0))
        found = theirs[f"{name}.lora_B.weight"] @ (theirs[f"{name}.lora_A.weight"] @ probe)
        assert relative_error(found, module.scale * module.up @ (module.down @ probe)) < 1e-5


def write_full_width(path: Path) -> Path:
    """Random adapters of differing rank for one double and one single block of FLUX.1-dev's width."""
    with torch.device("meta"):
        transformer = diffusers.FluxTransformer2DModel(num_layers=1, num_single_layers=1, guidance_embeds=True)
    tensors, alphas = {}, {}
    for index, name in enumerate(linear_modules(transformer)):
        weight, rank = transformer.get_submodule(name).weight, 1 + index % 3
        generator = torch.Generator().manual_seed(index)
        tensors[f"transformer.{name}.lora_A.weight"] = torch.randn(rank, weight.shape[1], generator=generator)
        tensors[f"transformer.{name}.lora_B.weight"] = torch.randn(weight.shape[0], rank, generator=generator)
        alphas[f"transformer.{name}"] = 2.0
    save_lora(path, tensors, alphas, METADATA, torch.float32)
    return path


def test_there_and_back_from_kohya_gives_our_output(tmp_path, caplog):
    trained = Trained()
    lora = load_lora(trained.save(tmp_path / "a.safetensors"))
    write_lora(tmp_path / "kohya.safetensors", lora, "kohya", torch.float32)
    back = load_lora(tmp_path / "kohya.safetensors")
    write_lora(tmp_path / "back.safetensors", back, "diffusers", torch.float32)
    assert_same_output(trained, trained.pipeline(tmp_path / "back.safetensors", caplog))


def test_a_merge_with_half_and_half_of_itself_gives_our_output(tmp_path, caplog):
    trained = Trained()
    lora = load_lora(trained.save(tmp_path / "a.safetensors"))
    write_lora(tmp_path / "m.safetensors", merge([("a", lora, 0.25), ("a", lora, 0.75)]), "diffusers", torch.float32)
    assert_same_output(trained, trained.pipeline(tmp_path / "m.safetensors", caplog))


def test_resizing_to_the_full_rank_gives_our_output(tmp_path, caplog):
    trained = Trained(alpha=5.0)
    lora, kept = resize(load_lora(trained.save(tmp_path / "a.safetensors")), rank=64)
    assert kept == pytest.approx(1)
    write_lora(tmp_path / "r.safetensors", lora, "diffusers", torch.float32)
    assert_same_output(trained, trained.pipeline(tmp_path / "r.safetensors", caplog))


def test_a_file_that_diffusers_saved_is_read_with_its_alpha(tmp_path):
    trained = Trained(alpha=5.0, with_clip=False)
    config = trained.transformer.peft_config["default"]  # type: ignore
    tensors = {key: value.detach() for key, value in trained.parameters.items()}
    diffusers.FluxPipeline.save_lora_weights(
        str(tmp_path),
        transformer_lora_layers={k.removeprefix("transformer."): v for k, v in tensors.items()},
        weight_name="theirs.safetensors",
        transformer_lora_adapter_metadata={**config.to_dict(), "target_modules": None},
    )
    lora = load_lora(tmp_path / "theirs.safetensors")
    assert json.loads(lora.metadata["lora_adapter_metadata"])["transformer.lora_alpha"] == 5.0
    assert {module.alpha for module in lora.modules.values()} == {5.0}
    assert lora.modules.keys() == trained.alphas.keys()


@pytest.mark.parametrize("use_rslora", [False, True])
def test_a_file_that_diffusers_saved_loads_there_after_a_conversion(tmp_path, caplog, use_rslora):
    """Its metadata on alpha would contradict the alphas that the new file has: diffusers refuses both together."""
    trained = Trained(alpha=5.0, with_clip=False)
    config = trained.transformer.peft_config["default"].to_dict()  # type: ignore
    tensors = {key.removeprefix("transformer."): value.detach().clone() for key, value in trained.parameters.items()}
    if use_rslora:  # whose scale is alpha / sqrt(rank): the same product from a smaller up
        for key, up in tensors.items():
            up /= up.shape[1] ** 0.5 if key.endswith("lora_B.weight") else 1.0
    diffusers.FluxPipeline.save_lora_weights(
        str(tmp_path),
        transformer_lora_layers=tensors,
        weight_name="theirs.safetensors",
        transformer_lora_adapter_metadata={**config, "target_modules": None, "use_rslora": use_rslora},
    )
    convert([Source(tmp_path / "theirs.safetensors")], tmp_path / "new.safetensors")
    assert_same_output(trained, trained.pipeline(tmp_path / "new.safetensors", caplog))


def test_a_wrong_name_would_be_noticed(tmp_path, caplog):
    """The check that diffusers complains about nothing can fail."""
    trained = Trained(with_clip=False)
    path = trained.save(tmp_path / "a.safetensors")
    tensors = {f"{name}.lora_A.weight": torch.ones(2, 32) for name in ("transformer.transformer_blocks.9.attn.to_q",)}
    tensors["transformer.transformer_blocks.9.attn.to_q.lora_B.weight"] = torch.ones(32, 2)
    save_file(tensors, path)
    with pytest.raises((AssertionError, ValueError)):
        trained.pipeline(path, caplog)
