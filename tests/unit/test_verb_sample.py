"""What `python -m trainer sample` accepts; nothing is drawn here."""

from pathlib import Path

import pytest
from PIL import Image

from trainer.cli.sample import OF_TRAIN, parse
from trainer.common.problems import Problems
from trainer.sampling.sampler import save_picture


def problems_of(*argv: str) -> dict[str, str]:
    with pytest.raises(Problems) as found:
        parse(argv)
    assert len(found.value.problems) == len({problem.where + problem.what for problem in found.value.problems})
    return {problem.where: f"{problem.what} {problem.hint}" for problem in found.value.problems}


def test_prompts_have_one_size_and_one_seed_after_another():
    request, _, notices = parse(["--prompt", "a", "--prompt", "b", "--seed=7", "--width=64", "--cfg", "2"])
    assert [(p.prompt, p.seed, p.width, p.height, p.steps, p.cfg) for p in request.prompts] == [
        ("a", 7, 64, 1024, 28, 2.0),
        ("b", 8, 64, 1024, 28, 2.0),
    ]
    assert notices == ()


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--width=0", "is 0; it must be at least 16"),
        ("--height=100", "is 100; it must be a multiple of 16"),
        ("--steps=0", "is 0; it must be at least 1"),
        ("--steps=many", 'is "many", not a whole number'),
        ("--guidance=nan", "is nan, not a finite number"),
        ("--cfg=x", 'is "x", not a number'),
    ],
)
def test_options_obey_the_rules_of_a_prompt_file(option, words):
    assert problems_of("--prompt=a", "--prompt=b", option)[option.partition("=")[0]].startswith(words)


@pytest.mark.parametrize("seed", [-1, 2**63 - 1, 2**64])
def test_seeds_are_within_64_bits(seed):
    assert "is not from 0 to" in problems_of("--prompt=a", f"--seed={seed}")["--seed"]


def test_flags_that_do_nothing_here_are_refused_all_at_once():
    found = problems_of("--prompt=a", "--learning_rate=1", "--sdpa", "--withd=64", "--lr_scheduler", "no such", "--ae=")
    assert found.keys() == {"--learning_rate", "--sdpa", "--withd", "--lr_scheduler", "--ae"}
    assert "did you mean --width?" in found["--withd"]
    assert all("not read by sample" in found[flag] for flag in found if flag != "--ae")


def test_flags_of_train_that_act_here_are_taken(tmp_path: Path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("one --d 3\ntwo\n")
    config = tmp_path / "run.toml"
    config.write_text('learning_rate = 1e-3\noutput_name = "x"\nclip_l = "c"\nsdpa = true\n')
    values = {"t5xxl_max_token_length": "64", "mixed_precision": "no", "sample_prompts": str(prompts)}
    values |= {"apply_t5_attn_mask": "true", "config_file": str(config)}
    words = [f"--{name}={values.get(name, name)}" for name in OF_TRAIN if name != "clip_l"]
    request, resolved, notices = parse([*words, "--mixed_precision=bf16"])
    assert (resolved.clip_l, resolved.ae, resolved.t5xxl_max_token_length) == (Path("c"), Path("ae"), 64)
    assert [(p.prompt, p.seed, p.width) for p in request.prompts] == [("one", 3, 512), ("two", 1, 512)]
    assert notices == ("--mixed_precision: given more than once; the last one counts",)


def test_a_size_without_a_prompt_is_not_swallowed(tmp_path: Path):
    (tmp_path / "prompts.txt").write_text("one\n")
    assert problems_of(f"--sample_prompts={tmp_path / 'prompts.txt'}", "--width=64").keys() == {"--width"}
    assert problems_of().keys() == {"--prompt"}


def test_help_says_which_flags_of_train_act(capsys):
    with pytest.raises(SystemExit):
        parse(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "config_file of a training may be given" in text
    assert all(f"--{name}" in text for name in OF_TRAIN)


def test_a_negative_prompt_without_cfg_is_reported_once():
    _, _, notices = parse(["--prompt=a", "--prompt=b", "--negative=dull"])
    (notice,) = notices
    assert "negative prompt has no effect" in notice and "cfg" in notice
    assert parse(["--prompt=a", "--negative=dull", "--cfg=3"])[2] == ()


def test_a_step_cache_needs_a_tolerance_and_no_route():
    assert parse(["--prompt=a", "--step_cache=0.1"])[0].step_cache == 0.1
    assert parse(["--prompt=a"])[0].step_cache is None
    assert "no tolerance above 0" in problems_of("--prompt=a", "--step_cache=0")["--step_cache"]
    assert "cannot be combined with --route" in problems_of("--prompt=a", "--step_cache=1", "--route")["--step_cache"]


def test_a_base_precision_and_compiling_are_for_images_without_routes():
    request = parse(["--prompt=a", "--base_precision=fp8", "--compile"])[0]
    assert (request.base_precision, request.compiles) == ("fp8", True)
    assert (parse(["--prompt=a"])[0].base_precision, parse(["--prompt=a"])[0].compiles) == ("bf16", False)
    found = problems_of("--prompt=a", "--route", "--lora=x.safetensors", "--base_precision=fp8", "--compile")
    assert found.keys() == {"--base_precision", "--compile"} and "with --route" in found["--compile"]


def test_an_image_of_sample_is_replaced_and_one_of_the_user_is_not(tmp_path):
    own, photo = tmp_path / "000-seed3.png", tmp_path / "001-seed4.png"
    save_picture(own, Image.new("RGB", (8, 8)), {"prompt": "a", "lora": ""})
    Image.new("RGB", (8, 8)).save(photo)
    argv = ["--prompt=a", "--prompt=b", "--seed=3", f"--output={tmp_path}"]
    (where,) = problems_of(*argv)
    assert where == f"--output={photo}"
    parse([*argv, "--overwrite"])
    photo.unlink()
    parse(argv)
