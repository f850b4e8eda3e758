"""What is known before a weight is read: all problems in one report, and a plan whose numbers are true."""

import math
import shutil
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

import trainer.common.disk
from benchmarks.random_flux import ModelFiles
from tests.dataset_files import draw_folder
from tests.recipe_files import Workshop, check_report, has, make_workshop
from trainer.data.cache import TensorCache
from trainer.data.encoding import fill_cache
from trainer.lora.adapter import adapter_alphas, adapter_parameters, add_lora, linear_modules
from trainer.lora.file import save_lora
from trainer.lora.network_args import layer_ranks, parse_network_args
from trainer.models import identify
from trainer.models.description import FLUX1
from trainer.models.load import load_clip, load_transformer
from trainer.preflight.check import make_plan

DATASET = """
[[datasets]]
resolution = 64
batch_size = 2
[[datasets.subsets]]
image_dir = "{folder}/toy"
class_tokens = "tjtoy toy"
num_repeats = 3
"""


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory, tiny_flux: ModelFiles) -> Workshop:
    made = make_workshop(tmp_path_factory.mktemp("check"), tiny_flux, pictures=5)
    made.dataset(DATASET)
    return made


def test_problems_of_all_kinds_are_in_one_report(workshop, tmp_path):
    page = tmp_path / "flux1-dev.safetensors"
    page.write_text("<html><title>401</title></html>")
    pictures = draw_folder(tmp_path / "pictures" / "toy", [(64, 64)] * 2)
    (pictures / "01.png").write_bytes((pictures / "01.png").read_bytes()[:-60])
    (tmp_path / "data.toml").write_text(
        DATASET.replace("{folder}", str(pictures.parent)) + "num_repeat = 2\n"
        f'[[datasets.subsets]]\nimage_dir = "{tmp_path}/absent"\nclass_tokens = "x"\n'
    )
    (tmp_path / "prompts.txt").write_text("fine\nbad --w 100\n")
    problems = check_report(
        workshop.config(
            "all",
            pretrained_model_name_or_path=page,
            clip_l=workshop.models.t5xxl,
            ae=tmp_path / "nothing.safetensors",
            tokenizer_dir=tmp_path,
            dataset_config=tmp_path / "data.toml",
            sample_prompts=tmp_path / "prompts.txt",
            sample_every_n_steps=1,
            optimizer_args=["bogus=1"],
            network_args=["nonsense=1"],
        )
    )
    assert has(problems, str(page), "web page")
    assert has(problems, "--clip_l", "is the T5-XXL encoder")
    assert has(problems, "--ae", "no such file")
    assert has(problems, str(tmp_path / "tokenizer" / "vocab.json"))
    assert has(problems, "data.toml", "num_repeat", "num_repeats")
    assert has(problems, str(tmp_path / "absent"))
    assert has(problems, str(pictures / "01.png"))
    assert has(problems, "prompts.txt:2", "multiple of 16")
    assert has(problems, "--optimizer_args", "bogus")
    assert has(problems, "--network_args", "nonsense")
    assert len(problems) == len(set(problems)) >= 10


def test_a_model_file_that_is_missing_can_be_downloaded_pulled_or_linked(monkeypatch):
    """models/mini comes with the repository; a container does not see the paths of its host."""
    monkeypatch.setattr(identify, "in_container", lambda: False)
    ae = FLUX1.file("ae")
    assert "sh download.sh" in identify.check_model_file(None, ae, "--ae")[0].hint
    assert "sh download.sh" in identify.check_model_file(Path("/disk/ae.safetensors"), ae, "--ae")[0].hint
    assert "git pull" in identify.check_model_file(Path("models/mini/absent.safetensors"), ae, "--ae")[0].hint
    monkeypatch.setattr(identify, "in_container", lambda: True)
    assert "link the file into models/" in identify.check_model_file(Path("/disk/ae.safetensors"), ae, "--ae")[0].hint
    assert "sh download.sh" in identify.check_model_file(Path("models/vae/absent.safetensors"), ae, "--ae")[0].hint


def test_bad_toml_stands_beside_a_wrong_model(workshop, tmp_path):
    (tmp_path / "data.toml").write_text("[general]\nresolution = = 64\n")
    problems = check_report(workshop.config("toml", dataset_config=tmp_path / "data.toml", ae=workshop.models.clip_l))
    assert has(problems, "data.toml", "2") and has(problems, "--ae", "CLIP-L") and len(problems) == 2


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"network_args": ["nonsense=1"]}, ("--network_args", "nonsense")),
        ({"network_args": ["single_dim=x"]}, ("--network_args", "single_dim")),
        ({"optimizer_type": "Adamw9"}, ("--optimizer_type", "adamw")),
        ({"tokenizer_dir": None}, ("--tokenizer_dir",)),
        ({"sample_prompts": "absent.txt", "sample_at_first": True}, ("--sample_prompts", "no such file")),
        ({"dataset_config": None}, ("--dataset_config",)),
    ],
)
def test_single_problems_name_their_flag(workshop, tmp_path, settings, words):
    if "tokenizer_dir" in settings:  # not even beside the other files
        settings = settings | {"clip_l": shutil.copy(workshop.models.clip_l, tmp_path / "clip_l.safetensors")}
    (problem,) = check_report(workshop.config("single", **settings))
    assert all(word in problem for word in words)


def test_nothing_is_written_and_no_weight_is_read(workshop, monkeypatch):
    monkeypatch.setattr("trainer.models.load.stream_tensors", lambda *_, **__: pytest.fail("weights were read"))
    before = sorted(workshop.folder.rglob("*"))
    plan = make_plan(workshop.config("dry"))
    assert sorted(workshop.folder.rglob("*")) == before
    assert plan.missing_latents == 5 and plan.missing_texts == 1


@pytest.mark.parametrize(
    ("settings", "processes", "per_epoch", "total", "epochs"),
    [
        # 5 pictures, 3 repeats, 2 a batch: 8 batches
        ({"max_train_epochs": 4}, 1, 8, 32, 4),
        ({"max_train_epochs": 4, "gradient_accumulation_steps": 3}, 1, 3, 12, 4),
        ({"max_train_epochs": 4, "gradient_accumulation_steps": 4}, 1, 2, 8, 4),
        ({"max_train_steps": 20, "gradient_accumulation_steps": 3}, 1, 3, 20, 7),
        ({"max_train_epochs": 2, "gradient_accumulation_steps": 2}, 3, 2, 4, 2),
    ],
)
def test_steps_are_kohyas_arithmetic(workshop, settings, processes, per_epoch, total, epochs):
    plan = make_plan(workshop.config("steps", **settings), processes)
    schedule = plan.schedule
    assert (schedule.steps_per_epoch, schedule.total_steps, schedule.num_epochs) == (per_epoch, total, epochs)
    accumulation = settings.get("gradient_accumulation_steps", 1)
    assert per_epoch == math.ceil(math.ceil(plan.data.num_batches / processes) / accumulation)


def test_groups_share_an_epoch_out_without_rest_or_repetition(workshop):
    plan = make_plan(workshop.config("groups", max_train_epochs=3, gradient_accumulation_steps=3))
    for epoch in (2, 0, 1):
        steps = range(3 * epoch + 1, 3 * epoch + 4)
        groups = [plan.group(step) for step in steps]
        assert [len(group) for group in groups] == [3, 3, 2]
        drawn = sorted((d.sample.key, d.repeat) for group in groups for batch in group for d in batch)
        assert drawn == sorted((s.key, repeat) for s in plan.data.samples for repeat in range(3))
        assert {d.epoch for group in groups for batch in group for d in batch} == {epoch}


def adapter(config) -> tuple[dict, dict[str, float]]:
    """The trained tensors of a run and their alphas, made without a plan."""
    transformer = load_transformer(config.pretrained_model_name_or_path, "cpu", torch.float32)
    network = parse_network_args(config.network_args)
    add_lora(transformer, layer_ranks(linear_modules(transformer), config.network_dim, network), None, seed=0)
    clip = None
    if config.text_encoder_lr > 0:
        clip = load_clip(config.clip_l, "cpu", torch.float32, eos_token_id=2)
        add_lora(clip, dict.fromkeys(linear_modules(clip), config.network_dim), None, seed=0)
    return adapter_parameters(transformer, clip), adapter_alphas(transformer, clip)


@pytest.mark.parametrize(
    "settings",
    [
        {"network_dim": 128},
        {"network_dim": 256, "save_precision": "float"},
        {"network_dim": 128, "text_encoder_lr": 1e-4},
        {"network_dim": 192, "network_args": ["train_blocks=single", "single_mod_dim=0"]},
    ],
    ids=lambda settings: " ".join(map(str, settings.values())),
)
def test_sizes_of_files_are_those_planned(workshop, tmp_path, settings):
    config = workshop.config("sizes", **settings)
    plan = make_plan(config)
    parameters, alphas = adapter(config)
    assert plan.adapter.num_parameters == sum(parameter.numel() for parameter in parameters.values())
    dtype = {"bf16": torch.bfloat16, "float": torch.float32}[config.save_precision]
    save_lora(tmp_path / "lora.safetensors", parameters, alphas, {}, dtype)
    assert (tmp_path / "lora.safetensors").stat().st_size == pytest.approx(plan.lora_bytes, rel=0.01)


def test_checkpoints_are_counted_as_they_will_be_saved(workshop):
    assert make_plan(workshop.config("n", max_train_epochs=4)).checkpoints == 1
    assert make_plan(workshop.config("n", max_train_epochs=4, save_every_n_epochs=1)).checkpoints == 4
    assert make_plan(workshop.config("n", max_train_epochs=4, save_every_n_epochs=3)).checkpoints == 2
    both = {"max_train_steps": 20, "save_every_n_steps": 6, "save_every_n_epochs": 2}  # at 6, 12, 16, 18 and 20
    assert make_plan(workshop.config("n", **both)).checkpoints == 5


def test_a_full_disk_is_known_before_it_is_full(workshop, monkeypatch):
    config = workshop.config("disk", max_train_epochs=4, save_every_n_epochs=1, save_state=True, network_dim=64)
    plan = make_plan(config)
    needed = plan.lora_bytes_kept + plan.state_bytes_kept + plan.missing_cache_bytes
    monkeypatch.setattr(trainer.common.disk, "free_disk_bytes", lambda _: needed - 1)
    (problem,) = check_report(config)
    assert problem.startswith("disk: ") and str(config.output_dir) in problem and str(plan.cache_dir) in problem
    assert "GB free" in problem and "--save_last_n_epochs" in problem
    monkeypatch.setattr(trainer.common.disk, "free_disk_bytes", lambda _: needed)
    make_plan(config)


def test_keeping_fewer_needs_less_disk(workshop):
    every = {"max_train_epochs": 9, "save_every_n_epochs": 1, "save_state": True}
    all_kept, two_kept = (
        make_plan(workshop.config("keep", **every, **more)) for more in ({}, {"save_last_n_epochs": 2})
    )
    assert all_kept.lora_bytes_kept == 9 * all_kept.lora_bytes and two_kept.lora_bytes_kept == 3 * two_kept.lora_bytes
    assert two_kept.state_bytes_kept < all_kept.state_bytes_kept


def test_cache_bytes_are_those_that_encoding_adds(workshop, tmp_path):
    config = workshop.config("cache", cache_dir=tmp_path / "cache")
    plan = make_plan(config)
    tokenizers = plan.tokenizers
    cache = TensorCache(plan.cache_dir)
    fill_cache(config, plan.data, plan.captions, tokenizers, plan.keys, cache, Accelerator(cpu=True))
    written = sum(path.stat().st_size for path in Path(cache.folder).rglob("*.safetensors"))
    assert plan.missing_cache_bytes <= written < plan.missing_cache_bytes * 1.2
    after = make_plan(config)
    assert (after.missing_latents, after.missing_texts, after.missing_cache_bytes) == (0, 0, 0)


def test_the_plan_in_words(workshop):
    text = make_plan(workshop.config("words", max_train_epochs=4, save_every_n_epochs=2)).summary()
    for words in (
        "5 images x 3, 'tjtoy toy'",
        "64 x 64: 5 images, 15 samples, 8 batches",
        "8 batches per epoch / 1 per step = 8 steps per epoch, 32 steps in 4 epochs",
        "LoRA of rank 4 on",
        "2 checkpoints in",
        "5 latents and 1 caption to encode",
    ):
        assert words in text


def test_captions_that_one_encoder_does_not_read_to_the_end_are_told(workshop):
    text = (workshop.folder / "data.toml").read_text().replace("tjtoy toy", "y" * 80)
    long = workshop.dataset(text, "long.toml")
    told = {}
    for length in (64, 512):
        plan = make_plan(workshop.config("long", dataset_config=long, t5xxl_max_token_length=length))
        told[length] = [problem.what.split()[0] for problem in plan.warnings if "reads only the first" in problem.what]
    assert told == {64: ["T5", "CLIP"], 512: ["CLIP"]}
