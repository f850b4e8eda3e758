import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from tests.dataset_files import draw_folder, write_toml
from trainer.config import TrainConfig
from trainer.data.dataset import TrainingData, load_dataset
from trainer.lora.file import load_lora, save_lora
from trainer.lora.metadata import build_metadata
from trainer.models.description import KREA, SCHNELL

TOML = """
[[datasets]]
resolution = 64
[[datasets.subsets]]
image_dir = "{folder}/toy"
class_tokens = "tjtoy toy"
[[datasets.subsets]]
image_dir = "{folder}/gpu"
class_tokens = "sparkgpu gpu, gold"
num_repeats = 2
[[datasets.subsets]]
image_dir = "{folder}/other"
class_tokens = "gpu"
is_reg = true
"""


@dataclass(frozen=True)
class At:
    step: int = 7
    epoch: int = 2
    session_id: int = 99
    started_at: float = 1_700_000_000.5


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[TrainConfig, TrainingData]:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000100")
    folder = tmp_path / "secret-home"
    for name, count, shade in (("toy", 2, 0), ("gpu", 3, 50), ("other", 1, 100)):
        draw_folder(folder / name, [(64, 64)] * count, shade)
    config = write_toml(folder, TOML)
    config = replace(
        config,
        pretrained_model_name_or_path=folder / "flux1-dev.safetensors",
        optimizer_type="Prodigy",
        optimizer_args=("d_coef=2", "weight_decay=0.01"),
        network_args=("train_blocks=single",),
        max_train_epochs=3,
    )
    data, _ = load_dataset(config)
    return config, data


def metadata_of(run: tuple[TrainConfig, TrainingData], **changes) -> dict[str, str]:
    config, data = run
    return build_metadata(replace(config, **changes), data, At(), At(), "name-000002")


def test_every_value_is_text_and_kohyas_keys_are_there(run):
    metadata = metadata_of(run)
    assert all(isinstance(value, str) for value in metadata.values())
    expected = {
        "ss_steps": "7",
        "ss_epoch": "2",
        "ss_num_epochs": "3",
        "ss_num_train_images": "8",
        "ss_num_reg_images": "1",
        "ss_network_dim": "16",
        "ss_network_alpha": "16",
        "ss_network_module": "networks.lora_flux",
        "ss_network_args": '{"train_blocks": "single"}',
        "ss_optimizer": "Prodigy(d_coef=2,weight_decay=0.01)",
        "ss_base_model_version": "flux1",
        "ss_sd_model_name": "flux1-dev.safetensors",
        "ss_session_id": "99",
        "ss_training_started_at": "1700000000.5",
        "ss_training_finished_at": "1700000100.0",
        "ss_unet_lr": "None",
        "ss_seed": "42",
    }
    assert {key: metadata[key] for key in expected} == expected


def test_modelspec_names_base_title_and_triggers(run):
    metadata = metadata_of(run, metadata_author="Ada")
    assert metadata["modelspec.architecture"] == "flux-1-dev/lora"
    assert metadata["modelspec.title"] == "name-000002"
    assert metadata["modelspec.trigger_phrase"] == "tjtoy toy, sparkgpu gpu, gold"
    assert metadata["modelspec.resolution"] == "64x64"
    assert metadata["modelspec.date"] == "2023-11-14T22:15:00+00:00"
    assert metadata["modelspec.author"] == "Ada"
    assert "modelspec.license" not in metadata
    assert "modelspec.timestep_range" not in metadata
    assert metadata_of(run, max_timestep=800)["modelspec.timestep_range"] == "0,800"
    config, data = run
    schnell = build_metadata(config, data, At(), At(), "x", base=SCHNELL)
    assert schnell["modelspec.architecture"] == "flux-1-schnell/lora" and schnell["modelspec.title"] == "x"
    krea = build_metadata(config, data, At(), At(), "x", base=KREA)
    assert krea["modelspec.architecture"] == "flux-1-dev/lora", "what loaders of dev's LoRAs look for"
    assert krea["modelspec.title"] == "x (FLUX.1-Krea-dev)"
    assert json.loads(krea["flux_dreambooth"])["base_model"] == "FLUX.1-Krea-dev"
    titled = build_metadata(replace(config, metadata_title="My own"), data, At(), At(), "x", base=KREA)
    assert titled["modelspec.title"] == "My own"


def test_datasets_tags_and_concepts_are_those_of_the_pictures(run):
    metadata = metadata_of(run)
    tags = json.loads(metadata["ss_tag_frequency"])
    assert tags["gpu"] == {"sparkgpu gpu": 3, "gold": 3}
    (dataset,) = json.loads(metadata["ss_datasets"])
    assert dataset["resolution"] == [64, 64]
    found = [(s["image_dir"], s["img_count"], s["num_repeats"], s["class_tokens"]) for s in dataset["subsets"]]
    assert found == [("toy", 2, 1, "tjtoy toy"), ("gpu", 3, 2, "sparkgpu gpu, gold"), ("other", 1, 1, "gpu")]
    assert json.loads(metadata["ss_dataset_dirs"])["gpu"] == {"n_repeats": 2, "img_count": 3}
    ours = json.loads(metadata["flux_dreambooth"])
    assert [concept["pictures"] for concept in ours["concepts"]] == [2, 3, 1]
    assert ours["config"]["optimizer_args"] == ["d_coef=2", "weight_decay=0.01"]


def test_no_folder_of_the_users_machine_is_told(run, tmp_path: Path):
    text = json.dumps(metadata_of(run, sample_prompts=tmp_path / "prompts.txt", resume=tmp_path / "state"))
    assert "secret-home" not in text
    assert str(tmp_path) not in text
    assert "prompts.txt" in text


def test_no_metadata_leaves_what_a_loader_needs_and_no_concepts(run):
    metadata = metadata_of(run, no_metadata=True)
    assert "tjtoy" not in json.dumps(metadata)
    assert metadata["ss_network_dim"] == "16"
    assert metadata["ss_base_model_version"] == "flux1"
    assert metadata["modelspec.architecture"] == "flux-1-dev/lora"
    assert not [key for key in metadata if key in ("ss_datasets", "ss_seed", "flux_dreambooth")]


def test_alpha_is_what_the_file_holds_and_the_setting_is_ours(run, tmp_path: Path):
    metadata = metadata_of(run, network_alpha=4.0)
    assert metadata["ss_network_alpha"] == "16"
    assert json.loads(metadata["flux_dreambooth"])["config"]["network_alpha"] == 4.0
    ranks = {"transformer.transformer_blocks.0.attn.to_q": 2, "transformer.transformer_blocks.0.attn.to_k": 2}
    for last, told in ((2, "2"), (3, "Dynamic")):
        ranks |= {"transformer.transformer_blocks.0.attn.to_k": last}
        tensors = {f"{name}.lora_A.weight": torch.ones(rank, 8) for name, rank in ranks.items()}
        tensors |= {f"{name}.lora_B.weight": torch.ones(8, rank) for name, rank in ranks.items()}
        save_lora(tmp_path / "a", tensors, dict.fromkeys(ranks, 1.0), metadata)
        written = load_lora(tmp_path / "a").metadata
        assert (written["ss_network_dim"], written["ss_network_alpha"]) == (told, told)


def test_the_base_model_is_known_by_kohyas_short_hash(run):
    config, _ = run
    assert "ss_sd_model_hash" not in metadata_of(run)
    content = bytes(range(256)) * 8192
    config.pretrained_model_name_or_path.write_bytes(content)
    expected = hashlib.sha256(content[0x100000:0x110000]).hexdigest()[:8]
    assert metadata_of(run)["ss_sd_model_hash"] == expected
    assert "ss_sd_model_hash" not in metadata_of(run, no_metadata=True)
