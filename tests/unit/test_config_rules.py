"""Settings that need, contradict or switch off one another."""

import pytest

from trainer.common.problems import Problems
from trainer.config import TrainConfig, parse_config
from trainer.config.rules import EFFECTIVE, NEEDS
from trainer.config.values import FIELDS


def problem_places(*argv: str) -> list[str]:
    with pytest.raises(Problems) as caught:
        parse_config(argv)
    return [problem.where for problem in caught.value.problems]


def test_the_rules_name_settings():
    assert {name for pair in NEEDS for name in pair} <= FIELDS.keys()
    assert {name for name, _, _ in EFFECTIVE} <= FIELDS.keys()


def test_the_defaults_obey():
    assert parse_config([]) == (TrainConfig(), ())


@pytest.mark.parametrize(
    ("flags", "where"),
    [
        ("--save_last_n_epochs=2", "--save_last_n_epochs"),
        ("--save_last_n_steps_state=2 --save_every_n_steps=5", "--save_last_n_steps_state"),
        ("--sample_every_n_steps=5", "--sample_every_n_steps"),
        ("--dim_from_weights", "--dim_from_weights"),
        ("--min_timestep=500 --max_timestep=500", "--min_timestep"),
        ("--min_bucket_reso=2048", "--min_bucket_reso"),
        ("--network_train_unet_only --text_encoder_lr=1e-5", "--network_train_unet_only"),
        ("--output_name=a/b", "--output_name"),
        ("--output_name=.", "--output_name"),
        ("--output_name=..", "--output_name"),
        ("--output_name=.hidden", "--output_name"),
        ("--output_name=a\x07", "--output_name"),
        ("--output_name=a\\b", "--output_name"),
        (f"--seed={2**63}", "--seed"),
        ("--seed=-1", "--seed"),
    ],
)
def test_contradictions(flags, where):
    assert problem_places(*flags.split()) == [where]


def test_a_setting_that_could_not_be_read_causes_no_second_problem():
    assert problem_places("--save_last_n_epochs=2", "--save_every_n_epochs=x") == ["--save_every_n_epochs"]


@pytest.mark.parametrize(
    "flags",
    [
        "--huber_c=0.2",
        "--discrete_flow_shift=2",
        "--sigmoid_scale=2 --timestep_sampling=uniform",
        "--weighting_scheme=mode",
        "--logit_mean=0.5",
        "--learning_rate=1e-3 --unet_lr=1e-4",
        "--save_state_on_train_end=true --save_state",
        "--dynamo_backend=eager",
        "--lr_scheduler_num_cycles=3",
    ],
)
def test_a_setting_without_effect_is_told(flags):
    _, notices = parse_config(flags.split())
    assert len(notices) == 1
    assert notices[0].startswith(flags[2:].partition("=")[0] + ": no effect in this run")


@pytest.mark.parametrize("name", ["a\nb", " ", "", "a\x85"])
def test_a_name_is_one_line_of_text(name):
    assert problem_places(f"--output_name={name}") == ["--output_name"]


@pytest.mark.parametrize("name", ["tj toy v1.2", "玩具", "a.b", "-x"])
def test_a_name_may_be_most_things(name):
    assert parse_config([f"--output_name={name}", f"--seed={2**63 - 1}"])[0].output_name == name
