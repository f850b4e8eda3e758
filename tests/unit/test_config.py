"""Defaults < config file < flags, and every mistake named with its place."""

import json
import math
import shlex
from dataclasses import FrozenInstanceError, asdict, fields, replace
from pathlib import Path

import pytest

from trainer.common.problems import Problems
from trainer.config import TrainConfig, config_differences, config_help, parse_config, to_dict, to_toml

ROOT = Path(__file__).parents[2]
PLAYBOOK = shlex.split("""
--pretrained_model_name_or_path=models/checkpoints/flux1-dev.safetensors
--clip_l=models/text_encoders/clip_l.safetensors --t5xxl=models/text_encoders/t5xxl_fp16.safetensors
--ae=models/vae/ae.safetensors --dataset_config=flux_data/data.toml --output_dir=models/loras/
--prior_loss_weight=1.0 --output_name=flux_dreambooth --save_model_as=safetensors
--network_module=networks.lora_flux --network_dim=256 --network_alpha=256 --learning_rate=1.0
--optimizer_type=Prodigy --lr_scheduler=cosine_with_restarts --gradient_accumulation_steps 4
--gradient_checkpointing --sdpa --max_train_epochs=100 --save_every_n_epochs=25 --mixed_precision=bf16
--guidance_scale=1.0 --timestep_sampling=flux_shift --model_prediction_type=raw --torch_compile
--persistent_data_loader_workers --cache_latents --cache_latents_to_disk --cache_text_encoder_outputs
--cache_text_encoder_outputs_to_disk
""")


def problems_of(*argv: str) -> dict[str, str]:
    """where → what and hint, of a call that has to fail."""
    with pytest.raises(Problems) as caught:
        parse_config(argv)
    return {problem.where: f"{problem.what} | {problem.hint}" for problem in caught.value.problems}


@pytest.fixture
def write(tmp_path):
    def write(text: str, name: str = "train.toml") -> str:
        (tmp_path / name).write_text(text, encoding="utf-8")
        return str(tmp_path / name)

    return write


# --- the playbook


def test_the_playbook_command_line():
    config, notices = parse_config(PLAYBOOK)
    assert config == TrainConfig(
        pretrained_model_name_or_path=Path("models/checkpoints/flux1-dev.safetensors"),
        clip_l=Path("models/text_encoders/clip_l.safetensors"),
        t5xxl=Path("models/text_encoders/t5xxl_fp16.safetensors"),
        ae=Path("models/vae/ae.safetensors"),
        dataset_config=Path("flux_data/data.toml"),
        network_dim=256,
        network_alpha=256.0,
        learning_rate=1.0,
        optimizer_type="Prodigy",
        lr_scheduler="cosine_with_restarts",
        gradient_accumulation_steps=4,
        gradient_checkpointing=True,
        max_train_epochs=100,
        save_every_n_epochs=25,
        torch_compile=True,
    )
    told = " ".join(notices)
    for flag in ("sdpa", "persistent_data_loader_workers", "cache_latents_to_disk", "cache_text_encoder_outputs"):
        assert told.count(f"{flag}:") + told.count(f"{flag},") == 1
    assert "no effect in this run" not in told


def test_train_toml_has_the_playbook_settings_and_recomputes_what_it_must():
    from_file, notices = parse_config([f"--config_file={ROOT / 'flux_data' / 'train.toml'}"])
    assert from_file == replace(parse_config(PLAYBOOK)[0], gradient_checkpointing=False)
    assert from_file.memory == "auto"
    assert notices == ()


# --- sources and forms


def test_defaults_suit_flux():
    config, notices = parse_config([])
    assert (config, notices) == (TrainConfig(), ())
    assert (config.timestep_sampling, config.model_prediction_type, config.guidance_scale) == ("flux_shift", "raw", 1.0)
    assert (config.mixed_precision, config.seed, config.text_encoder_lr) == ("bf16", 42, 0.0)


def test_it_is_frozen():
    with pytest.raises(FrozenInstanceError):
        TrainConfig().seed = 1  # type: ignore[misc]


def test_flags_win_over_the_file_and_the_file_over_defaults(write):
    path = write("[one]\nseed = 1\nnetwork_dim = 8\n[two]\nlearning_rate = 1\nnetwork_args = ['train_blocks=single']\n")
    config, _ = parse_config(["--config_file", path, "--seed=2"])
    assert (config.seed, config.network_dim, config.learning_rate) == (2, 8, 1.0)
    assert isinstance(config.learning_rate, float)
    assert config.network_args == ("train_blocks=single",)


def test_the_files_ending_and_a_byte_order_mark_do_not_matter(write):
    path = write("\ufeffseed = 5")
    assert parse_config(["--config_file", path.removesuffix(".toml")])[0].seed == 5


def test_both_forms_of_a_flag_negative_numbers_and_words_up_to_the_next_flag():
    words = "--logit_mean -0.5 --weighting_scheme=logit_normal --timestep_sampling sigma --network_args a=1 b=2,3"
    config, notices = parse_config(
        [*words.split(), "--optimizer_args=betas=(0.9,0.99)", "weight_decay=0.1", "--seed=7"]
    )
    assert (config.logit_mean, config.seed, notices) == (-0.5, 7, ())
    assert config.network_args == ("a=1", "b=2,3")
    assert config.optimizer_args == ("betas=(0.9,0.99)", "weight_decay=0.1")


def test_a_switch_of_the_file_is_turned_off_by_a_flag(write):
    path = write("torch_compile = true")
    assert parse_config([f"--config_file={path}"])[0].torch_compile
    assert not parse_config([f"--config_file={path}", "--torch_compile=false"])[0].torch_compile


def test_the_last_of_two_flags_counts_and_is_told():
    config, notices = parse_config(["--seed=1", "--seed=2"])
    assert config.seed == 2
    assert notices == ("--seed: given more than once; the last one counts",)


@pytest.mark.parametrize(("text", "value"), [("100", 100), ("0.05", 0.05), ("5%", 0.05), ("0", 0)])
def test_warm_up_is_steps_or_a_share(text, value):
    config, _ = parse_config([f"--lr_warmup_steps={text}", "--lr_scheduler=cosine"])
    assert config.lr_warmup_steps == value
    assert type(config.lr_warmup_steps) is type(value)


@pytest.mark.parametrize(("written", "value"), [("768", "768"), ("[1152, 896]", "1152,896"), ('"640,512"', "640,512")])
def test_resolution(write, written, value):
    assert parse_config(["--config_file", write(f"resolution = {written}")])[0].resolution == value


def test_the_learning_rate_of_clip_may_be_a_pair_whose_second_is_zero():
    assert parse_config(["--text_encoder_lr", "1e-5", "0"])[0].text_encoder_lr == 1e-5
    assert "T5" in problems_of("--text_encoder_lr", "1e-5", "1e-5")["--text_encoder_lr"]


def test_choices_do_not_mind_case():
    assert parse_config(["--loss_type=L2"])[0].loss_type == "l2"


# --- steps and epochs


def test_epochs_win_and_that_is_told():
    config, notices = parse_config(["--max_train_epochs=3", "--max_train_steps=50"])
    assert (config.max_train_epochs, config.max_train_steps) == (3, 1600)
    assert notices == ("max_train_steps: no effect; max_train_epochs wins",)


def test_a_steps_flag_wins_over_the_files_epochs(write):
    config, notices = parse_config(["--config_file", write("max_train_epochs = 3"), "--max_train_steps=50"])
    assert (config.max_train_epochs, config.max_train_steps) == (None, 50)
    assert "overrides max_train_epochs" in notices[0]


# --- mistakes


def test_all_mistakes_of_flags_and_file_are_told_together(write):
    path = write(
        "[network]\n# a rank\nnetwork_dimm = 3\nseed = 'x'\n\n[other]\nlearning_rate = true\nnoise_offset = 0.1\n"
    )
    told = problems_of("--config_file", path, "--network_alfa=2", "--fp8_base", "--mixed_precision=fp16", "stray")
    assert set(told) == {
        f"{path}:3: network_dimm",
        f"{path}:4: seed",
        f"{path}:7: learning_rate",
        f"{path}:8: noise_offset",
        "--network_alfa",
        "--fp8_base",
        "--mixed_precision",
        "stray",
    }
    assert "did you mean network_dim?" in told[f"{path}:3: network_dimm"]
    assert "did you mean network_alpha?" in told["--network_alfa"]
    assert "without quotes" in told[f"{path}:4: seed"]
    assert "use bf16" in told["--mixed_precision"]


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--network_dim=1.5", "not a whole number"),
        ("--network_dim=0", "must be at least 1"),
        ("--learning_rate=0", "must be above 0"),
        ("--learning_rate=fast", "not a number"),
        ("--learning_rate=nan", "not a finite number"),
        ("--validation_split=1.5", "must be at most 0.9"),
        ("--lr_warmup_steps=1.5", "below 1"),
        ("--gradient_checkpointing=maybe", "not true or false"),
        ("--timestep_sampling=flux", "flux_shift"),
        ("--resize_interpolation=lancos", "did you mean lanczos?"),
        ("--learning_rate=0,0001", "decimal point"),
        ("--resolution=12a", "write a side"),
        ("--resume=", "is empty"),
        ("--seed", "needs a value"),
        ("--rank=8", "use network_dim"),
        ("--class_tokens=x", "dataset_config"),
        ("--network-dim=8", "did you mean network_dim?"),
        ("--zzzzzz=8", "--help"),
    ],
)
def test_one_wrong_flag(flag, words):
    assert words in problems_of(flag)[flag.partition("=")[0]]


def test_a_typographic_dash_is_recognised():
    assert "write --seed=1" in problems_of("–seed=1")["–seed=1"]


def test_a_missing_value_does_not_eat_the_next_flag():
    assert set(problems_of("--output_name", "--seed=x")) == {"--output_name", "--seed"}


@pytest.mark.parametrize(
    ("text", "where", "words"),
    [
        ("a = 1\nb = = 2", ":2:5", "not valid TOML"),
        ("[a]\nseed = 1\n[b]\nseed = 2", ":4: seed", "given twice (also at"),
        ("[a.b]\nseed = 1", ":1: b", "is a table"),
        ("[[datasets]]\nresolution = 512", ":1: datasets", "dataset_config"),
        ('config_file = "x"', ":1: config_file", "cannot name another"),
        ("network_dim = '16'", ":1: network_dim", "without quotes"),
        ("torch_compile = 'true'", ":1: torch_compile", "without quotes"),
        ("network_dim = 16.0", ":1: network_dim", "not a whole number"),
        ("output_name = 3", ":1: output_name", "not text"),
        ("network_args = [1]", ":1: network_args", "not a list of texts"),
    ],
)
def test_one_wrong_line(write, text, where, words):
    path = write(text)
    told = problems_of("--config_file", path)
    assert words in told[path + where]
    assert len(told) == 1


def test_a_missing_and_a_binary_file(tmp_path):
    assert list(problems_of("--config_file=nowhere")) == ["nowhere.toml"]
    (tmp_path / "bad.toml").write_bytes(b"a = '\xff'")
    assert "UTF-8" in str(problems_of("--config_file", str(tmp_path / "bad.toml")))


def test_a_secret_is_never_repeated():
    told = problems_of("--huggingface_token=hf_secret", "--wandb_api_key", "secret", "--hf_token=secret")
    assert len(told) == 3
    assert "secret" not in str(told)


def test_a_refused_flag_that_is_off_asks_for_nothing(write):
    path = write("fp8_base = false\nnoise_offset = 0\nhuggingface_repo_id = ''\nbase_weights = []")
    assert parse_config(["--config_file", path])[0] == TrainConfig()


# --- out again


CHANGED = TrainConfig(
    training_comment='quo"te \\x41 ünï \\d\ttab \x7f\x01',
    caption_separator="\\|",
    network_args=("network_reg_dims=attn\\.to_[qk]=4,.*=2", ""),
    learning_rate=1e-07,
    lr_warmup_steps=0.1,
    max_train_epochs=3,
    text_encoder_lr=2e-5,
    resume=Path("runs/a b/state"),
    metadata_description="two\nlines 'and' \"quotes\"",
    gradient_checkpointing=True,
)


@pytest.mark.parametrize("config", [TrainConfig(), CHANGED, parse_config(PLAYBOOK)[0]])
def test_the_written_file_gives_the_same_config_again(write, config):
    again, notices = parse_config(["--config_file", write(to_toml(config))])
    assert again == replace(config, lr_warmup_steps=again.lr_warmup_steps)
    assert math.isclose(again.lr_warmup_steps, config.lr_warmup_steps)
    assert notices == ()


def test_to_dict_is_json_and_complete():
    values = to_dict(CHANGED)
    assert json.loads(json.dumps(values)) == values
    assert list(values) == [field.name for field in fields(TrainConfig)] == list(asdict(CHANGED))


def test_differences_name_what_changes_the_training():
    old = TrainConfig(ae=Path("/a/ae.safetensors"), seed=1)
    new = replace(old, seed=2, network_alpha=4.0, ae=Path("/b/ae.safetensors"), output_name="new", log_every=5)
    assert config_differences(to_dict(old), to_dict(old)) == []
    assert config_differences(to_dict(old), to_dict(new)) == [
        "network_alpha: nothing before, 4.0 now",
        "seed: 1 before, 2 now",
    ]
    assert config_differences(to_dict(old), to_dict(replace(old, ae=Path("/a/other.safetensors")))) != []


def test_a_setting_that_an_older_state_does_not_know_had_its_default():
    now = to_dict(TrainConfig())
    older = {name: value for name, value in now.items() if name != "base_precision"}
    assert config_differences(older, now) == []
    assert config_differences(older, now | {"base_precision": "int8"}) == ["base_precision: bf16 before, int8 now"]


def test_differences_of_other_tables_name_what_came_and_went():
    old, new = {"picture a.png": "1", "picture b.png": "2"}, {"picture a.png": "1", "picture c.png": "3"}
    assert config_differences(old, new) == [
        "picture b.png: 2 before, nothing now",
        "picture c.png: nothing before, 3 now",
    ]


def test_the_learning_rate_of_the_transformer():
    assert TrainConfig().transformer_lr == 1e-4
    assert TrainConfig(unet_lr=2e-4).transformer_lr == 2e-4


def test_help_lists_every_setting(capsys):
    with pytest.raises(SystemExit) as caught:
        parse_config(["--seed=1", "--help"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.strip() == config_help().strip()
    assert all(f"\n  --{field.name}" in config_help() for field in fields(TrainConfig))
    assert "--network_args KEY=VALUE ..." in config_help()
