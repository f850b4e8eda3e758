"""Smaller LoRAs and sums of LoRAs: numbers against the full weight change, metadata, refusals."""

import json
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from safetensors.torch import load_file, save_file

from custom_nodes.flux_dreambooth.lora_file.algebra import chosen_rank, merge, resize
from custom_nodes.flux_dreambooth.lora_file.concepts import read_concepts
from custom_nodes.flux_dreambooth.lora_file.keys import Survey
from custom_nodes.flux_dreambooth.lora_file.metadata import merged_metadata, with_new_ranks
from custom_nodes.flux_dreambooth.lora_file.modules import LoraModule, canonical
from custom_nodes.flux_dreambooth.lora_file.numbers import product_norm
from custom_nodes.flux_dreambooth.lora_file.writing import all_finite, diffusers_tensors, tensors_hash, tensors_like
from custom_nodes.flux_dreambooth.lora_loading import load
from custom_nodes.flux_dreambooth.nodes_lora_write import plain_modules
from custom_nodes.flux_dreambooth.safetensors_header import read_header
from tests.nodes.lora_layouts import (
    LAYOUTS,
    METADATA,
    RANK,
    SCALE,
    Layer,
    Tensors,
    make_clip_layers,
    make_layers,
    write_layout,
)
from trainer.lora.file import load_lora
from trainer.lora_file.flux_names import diffusers_modules

LAYERS, CLIP = make_layers(hidden=32, double=1, single=1), make_clip_layers(layers=1)
OTHERS = make_layers(hidden=32, double=1, single=1, seed=3)


def read(layout: str, layers: list[Layer] = LAYERS) -> tuple[dict[str, LoraModule], Survey]:
    with TemporaryDirectory() as folder:
        lora = load(write_layout(Path(folder) / "x.safetensors", layout, layers, CLIP))
    return plain_modules(lora), lora.survey


def product(layer: LoraModule) -> torch.Tensor:
    return layer.scale * layer.up.float() @ layer.down.float()


def by_part(layers: list[Layer]) -> Tensors:
    """The whole change of each diffusers module of the transformer."""
    return {
        f"transformer.{name}": change
        for layer in layers
        for name, change in zip(diffusers_modules(layer.name), layer.change.split(layer.rows), strict=True)
    }


def test_a_smaller_rank_is_the_best_of_that_rank():
    layers, _ = read("kohya")
    smaller, kept = resize(layers, rank=2)
    lost = total = 0.0
    for name, layer in layers.items():
        singular = torch.linalg.svdvals(product(layer))
        error = torch.linalg.norm(product(layer) - product(smaller[name]))
        torch.testing.assert_close(error, singular[2:].norm(), rtol=1e-3, atol=1e-5)
        assert smaller[name].rank == 2
        lost += float(error**2)
        total += float(singular.square().sum())
    assert kept == pytest.approx(1 - lost / total, abs=1e-5)


def test_the_same_rank_changes_nothing():
    layers, _ = read("ours")
    same, kept = resize(layers, rank=64)
    assert kept == pytest.approx(1)
    for name, layer in layers.items():
        torch.testing.assert_close(product(same[name]), product(layer), rtol=1e-4, atol=1e-6)


def test_energy_takes_as_few_ranks_as_it_needs():
    assert chosen_rank([8.0, 1.0, 1.0], None, 0.8) == 1
    assert chosen_rank([8.0, 1.0, 1.0], None, 0.81) == 2
    assert chosen_rank([8.0, 1.0, 1.0], 1, 1.0) == 1
    assert chosen_rank([0.0, 0.0], None, 0.9) == 1


def test_a_norm_is_that_of_the_product():
    layers, _ = read("kohya")
    for layer in layers.values():
        assert layer.scale * product_norm(layer.down, layer.up) == pytest.approx(float(product(layer).norm()), rel=1e-4)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_resized_file_keeps_its_keys_and_reads_back(layout: str, tmp_path: Path):
    path = write_layout(tmp_path / "x.safetensors", layout, LAYERS, CLIP)
    layers, found = read(layout)
    smaller, _ = resize(layers, rank=2)
    tensors = dict(tensors_like(found, smaller, torch.bfloat16))
    assert load_file(path).keys() <= tensors.keys()
    save_file(tensors, tmp_path / "y.safetensors")
    assert {module.rank for module in load_lora(tmp_path / "y.safetensors").modules.values()} == {2}
    assert {module.scale for module in load_lora(tmp_path / "y.safetensors").modules.values()} == {1}


@pytest.mark.parametrize("second", LAYOUTS)
def test_a_merge_is_the_weighted_sum_whatever_the_layouts(second: str):
    sources = []
    for layout, chosen, weight in (("kohya", LAYERS, 0.5), (second, OTHERS, -2.0)):
        layers, found = read(layout, chosen)
        sources.append((canonical(found, layers), weight))
    merged = merge(sources)
    one, two = by_part(LAYERS), by_part(OTHERS)
    assert {name for name in merged if name.startswith("transformer.")} == one.keys()
    for name in one:
        torch.testing.assert_close(product(merged[name]), 0.5 * one[name] - 2.0 * two[name], rtol=1e-4, atol=1e-5)
        assert merged[name].rank == 2 * RANK


def test_metadata_is_kept_and_true():
    metadata = METADATA | {"lora_adapter_metadata": "{}", "sshs_model_hash": "old", "mine": "kept"}
    found = with_new_ranks(metadata, [2, 2])
    assert (found["ss_network_dim"], found["ss_network_alpha"], found["mine"]) == ("2", "2", "kept")
    assert "lora_adapter_metadata" not in found and "sshs_model_hash" not in found
    ours = json.loads(found["flux_dreambooth"])
    assert ours["converted"] == {
        "network_dim": 2, "network_alpha": 2, "trained_network_dim": RANK, "trained_network_alpha": RANK * SCALE,
    }  # fmt: skip
    assert ours["config"] == {"learning_rate": 1e-4}
    assert with_new_ranks(metadata, [2, 3])["ss_network_dim"] == "Dynamic"


def test_a_merge_carries_the_concepts_of_all():
    second = json.loads(METADATA["flux_dreambooth"])
    second["concepts"][0] |= {"concept": "gpu", "trigger": "sparkgpu gpu"}
    sources = [("a", METADATA, 1.0), ("b", METADATA | {"flux_dreambooth": json.dumps(second)}, 0.7)]
    merged = merged_metadata(sources, [8])
    assert [concept.trigger for concept in read_concepts(merged)] == ["tjtoy toy", "sparkgpu gpu"]
    assert merged["modelspec.merged_from"] == "a x 1, b x 0.7"


def test_the_hash_is_that_of_the_files_data(tmp_path: Path):
    import hashlib

    path = write_layout(tmp_path / "x.safetensors", "kohya", LAYERS, CLIP)
    data = path.read_bytes()[read_header(path).data_start :]
    assert tensors_hash(load_file(path)) == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"lora_te1_x.hada_w1_a": torch.zeros(2, 2)}, "LoHa"),
        ({"lora_unet_double_blocks_0_img_mlp_2.dora_scale": torch.zeros(2)}, "DoRA"),
        ({"something": torch.zeros(2)}, "1 key is of no known kind, as something"),
        ({"lora_unet_single_blocks_3_linear2.lora_up.weight": torch.zeros(2, 2)}, "not complete"),
    ],
)
def test_what_is_no_plain_lora_is_refused(extra: Tensors, message: str, tmp_path: Path):
    tensors, metadata = LAYOUTS["kohya"](LAYERS, CLIP)
    save_file(tensors | extra, tmp_path / "x.safetensors", metadata)
    lora = load(tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=message):
        plain_modules(lora)


def test_numbers_that_are_not_finite_or_do_not_fit_are_refused():
    layers, _ = read("ours")
    name = next(iter(layers))
    broken = layers | {name: replace(layers[name], down=layers[name].down * float("nan"))}
    with pytest.raises(ValueError, match="not finite"):
        resize(broken, rank=2)
    large = {name: replace(layers[name], up=layers[name].up * 1e7)}
    with pytest.raises(ValueError, match="do not fit into"):
        all_finite(diffusers_tensors(large, torch.float16), torch.float16)
