"""What a check says of a LoRA or a state to start from, and of settings without effect."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.random_flux import ModelFiles, write_model_files
from tests.dataset_files import draw
from tests.recipe_files import ONE_FOLDER, Workshop, check_report, has, make_workshop
from tests.small_run import Run
from trainer.checkpoint.naming import position_after
from trainer.checkpoint.state import save_state
from trainer.common.files import write_text
from trainer.config import parse_config
from trainer.lora.adapter import adapter_alphas, adapter_parameters, add_lora, linear_modules
from trainer.lora.file import load_lora, load_lora_shapes, save_lora
from trainer.lora.metadata import build_metadata
from trainer.models.load import load_clip, load_transformer
from trainer.preflight.check import make_plan
from trainer.preflight.plan import RunPlan
from trainer.preflight.resume import Progress, find_state


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory, tiny_flux: ModelFiles) -> Workshop:
    return make_workshop(tmp_path_factory.mktemp("preflight"), tiny_flux, pictures=4)


# --- a LoRA to start from


@pytest.fixture(scope="module")
def lora_of(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A LoRA file of the tiny transformer, and of CLIP where it has a rank."""
    folder = tmp_path_factory.mktemp("loras")

    def make(name: str, rank: int | dict[str, int], clip_rank: int = 0) -> Path:
        transformer = load_transformer(workshop.models.transformer, "cpu", torch.float32)
        ranks = rank if isinstance(rank, dict) else dict.fromkeys(linear_modules(transformer), rank)
        add_lora(transformer, ranks, None, seed=1)
        clip = load_clip(workshop.models.clip_l, "cpu", torch.float32, eos_token_id=2) if clip_rank else None
        if clip:
            add_lora(clip, dict.fromkeys(linear_modules(clip), clip_rank), None, seed=1)
        path = folder / f"{name}.safetensors"
        save_lora(path, adapter_parameters(transformer, clip), adapter_alphas(transformer, clip), {})
        return path

    return make


def test_shapes_are_those_of_the_file(lora_of):
    path = lora_of("shapes", 3, clip_rank=2)
    whole, shapes = load_lora(path), load_lora_shapes(path)
    assert whole.modules.keys() == shapes.modules.keys() and shapes.layout == whole.layout
    for name, module in whole.modules.items():
        planned = shapes.modules[name]
        assert planned.down.is_meta and planned.rank == module.rank
        assert (planned.down.shape, planned.up.shape) == (module.down.shape, module.up.shape)


def test_another_rank_is_one_problem_beside_all_others(workshop, lora_of, tmp_path):
    resume = tmp_path / "nothing"
    problems = check_report(
        workshop.config("rank", network_weights=lora_of("eight", 8), optimizer_args=["bogus=1"], resume=resume)
    )
    assert has(problems, "--network_weights=", "more are of rank 8 in the file and 4 in this run", "--dim_from_weights")
    assert has(problems, "bogus") and has(problems, f"--resume={resume}", "no state") and len(problems) == 3


def test_other_layers_are_one_problem(workshop, lora_of):
    path = lora_of("single", {"single_transformer_blocks.0.attn.to_q": 4, "single_transformer_blocks.0.attn.to_k": 4})
    (problem,) = check_report(workshop.config("layers", network_weights=path))
    assert "more are adapted in this run but not in the file" in problem


def test_clip_in_the_file_alone_names_its_learning_rate(workshop, lora_of):
    (problem,) = check_report(workshop.config("clip", network_weights=lora_of("clip", 4, clip_rank=4)))
    assert "adapted in the file but not in this run" in problem and "--text_encoder_lr" in problem


def test_a_file_that_is_no_lora_is_told_beside_other_problems(workshop, tmp_path):
    (tmp_path / "page.safetensors").write_text("<html>")
    settings = {"network_weights": tmp_path / "page.safetensors", "ae": workshop.models.clip_l}
    problems = check_report(workshop.config("page", **settings))
    assert has(problems, "page.safetensors", "cannot be read") and has(problems, "--ae") and len(problems) == 2


def test_ranks_from_the_file_are_those_of_plan_sizes_and_metadata(workshop, lora_of):
    path = lora_of("both", 6, clip_rank=3)
    plan = make_plan(workshop.config("from file", network_weights=path, dim_from_weights=True, text_encoder_lr=1e-4))
    assert set(plan.adapter.ranks.values()) == {6} and set(plan.adapter.clip_ranks.values()) == {3}
    assert plan.adapter.alpha is None
    numbers = (module.down.numel() + module.up.numel() for module in load_lora(path).modules.values())
    assert plan.adapter.num_parameters == sum(numbers)
    metadata = build_metadata(plan.config, plan.data, Progress(1, 1, 0.0), position_after(plan.schedule, 1), "x")
    assert metadata["ss_network_dim"] == "6" and metadata["ss_network_alpha"] == "6"


def test_what_the_file_overrides_is_told_or_refused(workshop, lora_of):
    settings = {"network_weights": lora_of("six", 6), "dim_from_weights": True}
    _, notices = parse_config(workshop.argv("over", **settings, network_dim=9, network_alpha=2))
    assert [notice.partition(":")[0] for notice in notices] == ["network_dim", "network_alpha"]
    (problem,) = check_report(workshop.config("over", **settings, network_args=["single_dim=2", "rank_dropout=0.1"]))
    assert problem.startswith("--network_args: single_dim: ") and "--dim_from_weights" in problem
    (problem,) = check_report(workshop.config("over", **settings, text_encoder_lr=1e-4))
    assert "no layer of CLIP-L" in problem


# --- a state to go on from


@pytest.fixture
def state(workshop: Workshop, tmp_path: Path) -> Callable[..., Path]:
    """A state as a run with these settings would leave it after two steps."""

    def make(**settings) -> Path:
        config = workshop.config("resumed", **settings)
        record = {**Progress.new(config).record(config, make_plan(config)), "step": 2}
        run = Run()
        save_state(tmp_path / "state-step00000002", tensors=run.parameters, progress=record, **run.rest)
        return tmp_path / "state-step00000002"

    return make


def test_a_state_that_fits_is_planned_from(workshop, state):
    plan = make_plan(workshop.config("resumed", max_train_steps=4, resume=state(max_train_steps=4)))
    assert plan.start_step == 2
    every = {"max_train_steps": 6, "save_every_n_steps": 2, "resume_anyway": True}
    assert make_plan(workshop.config("resumed", **every, resume=state(max_train_steps=4))).checkpoints == 2


def test_a_resumed_run_may_replace_its_own_files_and_no_other_runs(workshop, state):
    resume, settings = state(max_train_steps=4), {"max_train_steps": 4, "output_name": "tj"}
    config = workshop.config("resumed", **settings, resume=resume)
    for name in ("tj", "other"):
        write_text(config.output_dir / f"{name}.safetensors", "of an earlier run")
    assert make_plan(config).replaces == ()
    (problem,) = check_report(replace(config, output_name="other"))
    assert problem.startswith("--output_name=other: an earlier run") and "other.safetensors" in problem
    for name in ("tj", "other"):
        (config.output_dir / f"{name}.safetensors").unlink()


def test_auto_goes_on_in_the_precision_that_the_run_began_with(workshop, state, monkeypatch):
    auto = {"max_train_steps": 4, "base_precision": "auto"}
    assert make_plan(workshop.config("resumed", **auto, resume=state(**auto))).memory.choice.precision == "bf16"
    record = Progress.record
    monkeypatch.setattr(Progress, "record", lambda *given: record(*given) | {"base_precision": "int8"})
    assert make_plan(workshop.config("resumed", **auto, resume=state(**auto))).memory.choice.precision == "int8"


def test_differences_are_told_with_all_other_problems(workshop, state):
    settings = {"learning_rate": 2e-3, "ae": workshop.models.clip_l, "max_train_steps": 4}
    problems = check_report(workshop.config("resumed", **settings, resume=state(max_train_steps=4)), processes=2)
    assert has(problems, "learning_rate: 0.001 before, 0.002 now", "--resume_anyway")
    assert has(problems, "1 process, now there are 2") and has(problems, "--ae")


def test_a_finished_run_is_told(workshop, state):
    (problem,) = check_report(workshop.config("resumed", max_train_steps=2, resume=state(max_train_steps=2)))
    assert "this run is finished: step 2 was its last" in problem


def test_a_damaged_manifest_is_told_before_anything_is_loaded(workshop, state):
    folder = state(max_train_steps=4)
    (folder / "state.json").write_text("{")
    (problem,) = check_report(workshop.config("resumed", max_train_steps=4, resume=folder))
    assert "corrupt" in problem
    (folder / "state.json").write_text('{"format": "flux-dreambooth-state-1", "progress": {"dict": []}}')
    assert has(check_report(workshop.config("resumed", max_train_steps=4, resume=folder)), str(folder))


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("pretrained_model_name_or_path", "the transformer file is a different one"),
        ("ae", "the autoencoder file is a different one"),
        ("clip_l", "the CLIP-L file or its tokenizer is a different one"),
        ("t5xxl", "the T5 file or its tokenizer is a different one"),
    ],
)
def test_a_swapped_model_is_refused_and_can_be_accepted(workshop, state, tmp_path, flag, words):
    others = write_model_files(tmp_path / "others", "tiny", seed=1)
    other = {"pretrained_model_name_or_path": others.transformer}.get(flag) or getattr(others, flag)
    settings = {"max_train_steps": 4, "resume": state(max_train_steps=4), flag: other}
    (problem,) = check_report(workshop.config("resumed", **settings))
    assert words in problem and "--resume_anyway" in problem
    config = workshop.config("resumed", **settings, resume_anyway=True)
    assert find_state(config, make_plan(config))[1].step == 2


# --- settings


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"text_encoder_lr": 0.5}, "0.5, 1.0"),
        ({"unet_lr": 0.5, "text_encoder_lr": 1.0}, "0.5, 1.0"),
        ({"network_args": ["loraplus_lr_ratio=16"]}, "1.0, 16.0"),
    ],
)
def test_prodigys_one_step_size_is_checked_early_and_once(workshop, settings, words):
    prodigy = {"optimizer_type": "Prodigy", "learning_rate": 1.0}
    (problem,) = check_report(workshop.config("prodigy", **prodigy, **settings))
    assert "one step size" in problem and words in problem
    make_plan(workshop.config("prodigy", **prodigy, text_encoder_lr=1.0))


@pytest.mark.parametrize(
    "argv",
    [
        "--sample_prompts=p.txt",
        "--validation_split=0.2",
        "--validation_seed=1",
        "--max_validation_steps=3",
        "--no_metadata --training_comment=x",
    ],
)
def test_settings_without_effect_are_told(argv):
    name = argv.split()[-1][2:].partition("=")[0]
    (notice,) = parse_config(argv.split())[1]
    assert notice.startswith(f"{name}: ")


def test_settings_with_effect_are_not_told():
    argv = "--sample_prompts=p --sample_at_first --validation_split=0.2 --validation_seed=1 --max_validation_steps=3"
    more = "--validate_every_n_epochs=1 --no_metadata --metadata_title=x"  # the title is kept without metadata too
    assert parse_config([*argv.split(), *more.split()])[1] == ()


def warned(plan: RunPlan) -> set[str]:
    return {warning.where for warning in plan.warnings}


@pytest.mark.parametrize(
    ("flag", "value", "without"),
    [
        ("keep_tokens", 1, {"shuffle_caption": True}),
        ("token_warmup_min", 2, {"token_warmup_step": 3}),
        ("min_bucket_reso", 64, {"enable_bucket": True}),
        ("max_bucket_reso", 512, {"enable_bucket": True}),
        ("bucket_reso_steps", 32, {"enable_bucket": True, "min_bucket_reso": 64}),
        ("bucket_no_upscale", True, {"enable_bucket": True}),
    ],
)
def test_flags_of_the_data_without_effect_are_warned_of(workshop, flag, value, without):
    settings = {"min_bucket_reso": 64} if "enable_bucket" in without else {}
    idle = make_plan(workshop.config("idle", **{flag: value}))
    acting = make_plan(workshop.config("acting", **{**settings, flag: value, **without}))
    assert f"--{flag}" in warned(idle) and f"--{flag}" not in warned(acting)


def test_a_flag_that_acts_in_one_dataset_is_not_warned_of(workshop):
    second = ONE_FOLDER.replace("resolution = 64", "resolution = 64\nenable_bucket = true")
    data = workshop.dataset(ONE_FOLDER + second, "two.toml")
    assert "--min_bucket_reso" not in warned(make_plan(workshop.config("two", dataset_config=data, min_bucket_reso=64)))


def test_settings_of_regularisation_need_a_folder_of_it(workshop):
    settings = {"prior_loss_weight": 0.5, "diff_output_preservation": True}
    flags = {f"--{name}" for name in settings}
    assert flags <= warned(make_plan(workshop.config("reg", **settings)))
    text = ONE_FOLDER + '[[datasets.subsets]]\nimage_dir = "{folder}/reg"\nclass_tokens = "toy"\nis_reg = true\n'
    data = workshop.dataset(text, "reg.toml")
    draw(workshop.folder / "reg" / "r.png", shade=200)
    assert not flags & warned(make_plan(workshop.config("reg", dataset_config=data, **settings)))


def test_pictures_held_out_by_the_file_for_nothing_are_warned_of(workshop):
    text = ONE_FOLDER.replace("resolution = 64", "resolution = 64\nvalidation_split = 0.5")
    data = workshop.dataset(text, "split.toml")
    assert "validation_split" in warned(make_plan(workshop.config("split", dataset_config=data)))
    config = workshop.config("split", dataset_config=data, validate_every_n_epochs=1)
    assert "validation_split" not in warned(make_plan(config))


def test_guidance_for_schnell_is_warned_of(workshop, tmp_path):
    schnell = write_model_files(tmp_path, "tiny", guidance=False).transformer
    settings = {"guidance_scale": 3.5}
    assert "--guidance_scale" not in warned(make_plan(workshop.config("dev", **settings)))
    plan = make_plan(workshop.config("schnell", pretrained_model_name_or_path=schnell, **settings))
    assert "--guidance_scale" in warned(plan)


def test_a_ratio_for_clip_without_clip_is_warned_of(workshop):
    words = ("loraplus_text_encoder_lr_ratio=4",)
    assert "--network_args" in warned(make_plan(workshop.config("ratio", network_args=words)))
    settings = {"network_args": words, "text_encoder_lr": 1e-5}
    assert "--network_args" not in warned(make_plan(workshop.config("ratio", **settings)))


def test_a_negative_prompt_without_cfg_is_warned_of(workshop):
    prompts = workshop.folder / "negative.txt"
    prompts.write_text("a toy --n dull\nanother --n grey\n", encoding="utf-8")
    settings = {"sample_prompts": prompts, "sample_at_first": True}
    assert f"{prompts}:1" in warned(make_plan(workshop.config("negative", **settings)))
