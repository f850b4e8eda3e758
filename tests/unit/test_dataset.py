from collections import Counter
from dataclasses import replace
from itertools import pairwise
from math import ceil
from pathlib import Path

import pytest

from tests.dataset_files import draw, draw_folder, write_toml
from trainer.common.problems import Problems
from trainer.config import TrainConfig
from trainer.data.dataset import TrainingData, load_dataset, plan_schedule, steps_per_epoch
from trainer.data.epochs import share_out, take_turns

BUCKETED = """
[[datasets]]
resolution = 64
batch_size = 3
enable_bucket = true
min_bucket_reso = 32
max_bucket_reso = 128
bucket_reso_steps = 16
[[datasets.subsets]]
image_dir = "{folder}/cat"
class_tokens = "cat"
num_repeats = 3
flip_aug = true
[[datasets.subsets]]
image_dir = "{folder}/dog"
class_tokens = "dog"
"""
REG = '\n[[datasets.subsets]]\nimage_dir = "{folder}/reg"\nclass_tokens = "animal"\nis_reg = true\n'
PLAYBOOK = """
[general]
shuffle_caption = false
keep_tokens = 2
[[datasets]]
resolution = 64
[[datasets.subsets]]
image_dir = "{folder}/toy"
class_tokens = "tjtoy toy"
flip_aug = true
[[datasets.subsets]]
image_dir = "{folder}/gpu"
class_tokens = "sparkgpu gpu"
num_repeats = 2
flip_aug = true
"""
MIXED = [(64, 64), (96, 48), (64, 64), (48, 96), (64, 64), (96, 48), (64, 64)]


@pytest.fixture
def bucketed(tmp_path: Path) -> TrainConfig:
    draw_folder(tmp_path / "cat", MIXED)
    draw_folder(tmp_path / "dog", MIXED[:4], shade=50)
    draw_folder(tmp_path / "reg", [(64, 64)] * 37, shade=100)
    return write_toml(tmp_path, BUCKETED)


def load(config: TrainConfig, num_processes: int = 1) -> TrainingData:
    return load_dataset(config, num_processes)[0]


def seen(data: TrainingData, epoch: int) -> Counter[str]:
    return Counter(draw.sample.key for batch in data.batches(epoch) for draw in batch)


def test_every_epoch_is_an_exact_pass(bucketed: TrainConfig) -> None:
    data = load(bucketed)
    expected = {f"0.0/{n:02}.png": 3 for n in range(7)} | {f"0.1/{n:02}.png": 1 for n in range(4)}
    for epoch in range(20):
        assert seen(data, epoch) == expected
        draws = [draw for batch in data.batches(epoch) for draw in batch]
        assert {(draw.sample.key, draw.repeat) for draw in draws} == {
            (key, repeat) for key, count in expected.items() for repeat in range(count)
        }
        assert all(draw.epoch == epoch for draw in draws)


def test_batches_never_mix_shapes_and_are_as_many_in_every_epoch(bucketed: TrainConfig) -> None:
    data = load(bucketed)
    assert len({draw.sample.bucket for batch in data.batches(0) for draw in batch}) == 3
    for epoch in range(10):
        batches = data.batches(epoch)
        assert len(batches) == data.num_batches == sum(count.batches for count in data.buckets())
        assert all(len({draw.sample.bucket for draw in batch}) == 1 for batch in batches)
        assert all(1 <= len(batch) <= 3 for batch in batches)


def test_an_epoch_is_a_pure_function_of_seed_and_number(bucketed: TrainConfig) -> None:
    data, again = load(bucketed), load(bucketed)
    later = again.batches(5)
    assert [data.batches(epoch) for epoch in range(6)][5] == later
    assert data.batches(0) != data.batches(1)
    assert data.batches(0) != load(replace(bucketed, seed=43)).batches(0)


def test_both_the_order_and_the_company_change(bucketed: TrainConfig) -> None:
    data = load(bucketed)
    company = {frozenset(frozenset(d.sample.key for d in batch) for batch in data.batches(e)) for e in range(8)}
    assert len(company) == 8


def test_flips_are_an_independent_even_coin(bucketed: TrainConfig) -> None:
    data = load(bucketed)
    draws = [draw for epoch in range(100) for batch in data.batches(epoch) for draw in batch]
    cat = [draw.flip for draw in draws if draw.sample.subset.flip_aug]
    assert 0.46 < sum(cat) / len(cat) < 0.54
    pairs = sum(a == b for a, b in pairwise(cat)) / (len(cat) - 1)
    assert 0.46 < pairs < 0.54
    assert not any(draw.flip for draw in draws if not draw.sample.subset.flip_aug)


def test_the_playbooks_arithmetic(tmp_path: Path) -> None:
    draw_folder(tmp_path / "toy", [(64, 64)] * 6)
    draw_folder(tmp_path / "gpu", [(64, 64)] * 7, shade=20)
    config = replace(write_toml(tmp_path, PLAYBOOK), gradient_accumulation_steps=4, max_train_epochs=100)
    data, warnings = load_dataset(config)
    assert data.num_batches == 20
    assert (data.schedule.steps_per_epoch, data.schedule.total_steps, data.schedule.num_epochs) == (5, 500, 100)
    assert data.captions_used(100) == ["tjtoy toy", "sparkgpu gpu"]
    assert len(data.views()) == 26
    assert [warning.what.split()[0] for warning in warnings] == ["keep_tokens"]


@pytest.mark.parametrize("batches", [1, 7, 20, 21])
@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("accumulation", [1, 4, 6])
def test_steps_per_epoch_is_kohyas_division(batches: int, processes: int, accumulation: int) -> None:
    assert steps_per_epoch(batches, processes, accumulation) == ceil(batches / processes / accumulation)


def test_epochs_win_over_steps() -> None:
    config = TrainConfig(max_train_steps=12)
    assert plan_schedule(config, 5).num_epochs == 3
    assert plan_schedule(replace(config, max_train_epochs=4), 5).total_steps == 20


def test_regularisation_pictures_match_the_training_pictures_and_take_turns(bucketed: TrainConfig) -> None:
    assert bucketed.dataset_config
    bucketed = write_toml(bucketed.dataset_config.parent, BUCKETED + REG)
    data = load(replace(bucketed, prior_loss_weight=0.5, diff_output_preservation=True))
    total: Counter[str] = Counter()
    for epoch in range(37):
        reg = Counter({key: count for key, count in seen(data, epoch).items() if key.startswith("0.2/")})
        assert sum(reg.values()) == 7 * 3 + 4
        assert max(reg.values()) == 1
        assert len(data.batches(epoch)) == data.num_batches
        total += reg
    assert set(total.values()) == {25}
    reg_samples = [sample for sample in data.samples if sample.is_reg]
    assert all(sample.loss_weight == 0.5 and sample.preserves_output for sample in reg_samples)
    assert all(s.loss_weight == 1 and not s.preserves_output for s in data.samples if not s.is_reg)


def test_few_regularisation_pictures_are_repeated_evenly(tmp_path: Path) -> None:
    draw_folder(tmp_path / "toy", [(64, 64)] * 6)
    draw_folder(tmp_path / "gpu", [(64, 64)] * 7, shade=20)
    draw_folder(tmp_path / "reg", [(64, 64)] * 3, shade=40)
    data = load(write_toml(tmp_path, PLAYBOOK + REG))
    for epoch in range(3):
        counts = [count for key, count in seen(data, epoch).items() if key.startswith("0.2/")]
        assert sorted(counts) == [6, 7, 7]
    draws = [draw for batch in data.batches(0) for draw in batch]
    assert len({(draw.sample.key, draw.repeat) for draw in draws}) == len(draws) == 40


def test_regularisation_shapes_keep_their_share() -> None:
    assert share_out(10, {(1, 1): 97, (2, 1): 2, (1, 2): 1}) == {(1, 1): 8, (2, 1): 1, (1, 2): 1}
    assert share_out(1, {(1, 1): 1, (2, 1): 5}) == {(1, 1): 0, (2, 1): 1}
    assert sum(share_out(100, {(n, n): n for n in range(1, 14)}).values()) == 100
    assert take_turns("abc", 2, 0) + take_turns("abc", 2, 1) + take_turns("abc", 2, 2) == list("abcabc")


VARIED = """
[[datasets]]
resolution = 64
[[datasets.subsets]]
image_dir = "{folder}/cat"
shuffle_caption = true
caption_dropout_rate = 0.1
token_warmup_step = 4
"""


def test_captions_used_are_exactly_those_of_all_draws(tmp_path: Path) -> None:
    draw_folder(tmp_path / "cat", [(64, 64)] * 4)
    for number in range(4):
        (tmp_path / "cat" / f"{number:02}.txt").write_text(f"tag {number}, a, b, c")
    data = load(replace(write_toml(tmp_path, VARIED), max_train_epochs=5))
    drawn = {draw.caption for epoch in range(5) for batch in data.batches(epoch) for draw in batch}
    plain = {draw.caption for draw in data.validation_draws()}
    used = data.captions_used(5)
    assert set(used) == drawn | plain and len(used) == len(set(used))
    assert plain == {f"tag {number}, a, b, c" for number in range(4)}
    assert data.tag_frequency()["cat"]["a"] == 4


def test_warm_up_counts_optimizer_steps_of_all_processes(tmp_path: Path) -> None:
    draw_folder(tmp_path / "cat", [(64, 64)] * 8)
    for path in (tmp_path / "cat").glob("*.png"):
        path.with_suffix(".txt").write_text("a, b, c, d, e")
    text = VARIED.replace("caption_dropout_rate = 0.1\n", "")
    config = replace(write_toml(tmp_path, text), gradient_accumulation_steps=2, max_train_epochs=5)
    for processes in (1, 2):
        batches = [batch for epoch in range(3) for batch in load(config, processes).batches(epoch)]
        lengths = [len(batch[0].caption.split(", ")) for batch in batches]
        group = 2 * processes
        assert lengths == [min(5, 1 + index // group) for index in range(len(batches))]


def test_several_datasets_train_one_folder_at_several_resolutions(tmp_path: Path) -> None:
    draw_folder(tmp_path / "cat", [(64, 64)] * 4)
    subset = '[[datasets.subsets]]\nimage_dir = "{folder}/cat"\nclass_tokens = "cat"\n'
    small, large = "[[datasets]]\nresolution = 48\nbatch_size = 4\n", "[[datasets]]\nresolution = 64\n"
    data = load(write_toml(tmp_path, small + subset + large + subset))
    assert [(count.bucket, count.batches) for count in data.buckets()] == [((48, 48), 1), ((64, 64), 4)]
    assert len({sample.key for sample in data.samples}) == 8


def test_validation_holds_out_whole_pictures_from_every_dataset(tmp_path: Path) -> None:
    draw_folder(tmp_path / "cat", [(64, 64)] * 10)
    draw_folder(tmp_path / "copies", [(64, 64)] * 10)
    subset = '[[datasets.subsets]]\nimage_dir = "{folder}/cat"\nclass_tokens = "cat"\nflip_aug = true\n'
    first = "[[datasets]]\nresolution = 64\nvalidation_split = 0.2\nvalidation_seed = 1\n" + subset
    second = "[[datasets]]\nresolution = 48\nvalidation_split = 0.3\nvalidation_seed = 9\n" + subset
    third = "[[datasets]]\nresolution = 32\n" + subset.replace("/cat", "/copies")
    data = load(write_toml(tmp_path, first + second + third))
    trained = {sample.picture.sha256 for sample in data.samples}
    held = {sample.picture.sha256 for sample in data.validation}
    assert trained and 3 <= len(held) <= 5 and not trained & held
    assert len(data.samples) + len(data.validation) == 30
    draws = data.validation_draws()
    assert {draw.sample.key for draw in draws} == {sample.key for sample in data.validation}
    assert not any(draw.flip for draw in draws) and draws == data.validation_draws()


def test_the_loss_of_validation_is_of_what_is_taught(tmp_path: Path) -> None:
    """Where the base model's prediction is the target, the loss begins at zero, and only measures drift."""
    for name, shade in (("cat", 0), ("others", 30)):
        draw_folder(tmp_path / name, [(64, 64)] * 10, shade=shade)
    subset = '[[datasets.subsets]]\nimage_dir = "{folder}/cat"\nclass_tokens = "cat"\n'
    kept = '[[datasets.subsets]]\nimage_dir = "{folder}/others"\nclass_tokens = "animal"\n'
    kept += "custom_attributes = { diff_output_preservation = true }\n"
    split = "[[datasets]]\nresolution = 64\nvalidation_split = 0.2\nvalidation_seed = 1\n"
    for text, at_least in ((split + subset + kept, 1), ("[[datasets]]\nresolution = 64\n" + subset + kept, 10)):
        data = load(write_toml(tmp_path, text))
        draws = data.validation_draws()
        assert len(draws) >= at_least and {draw.sample.subset.class_tokens for draw in draws} == {"cat"}


def test_regularisation_pictures_are_never_held_out(tmp_path: Path) -> None:
    draw_folder(tmp_path / "toy", [(64, 64)] * 6)
    draw_folder(tmp_path / "gpu", [(64, 64)] * 7, shade=20)
    draw_folder(tmp_path / "reg", [(64, 64)] * 3, shade=40)
    data = load(replace(write_toml(tmp_path, PLAYBOOK + REG), validation_split=0.5))
    assert not any(sample.is_reg for sample in data.validation) and len(data.validation) == 3 + 3


def test_a_split_that_leaves_nothing(tmp_path: Path) -> None:
    draw(tmp_path / "cat" / "a.png")
    draw(tmp_path / "copy" / "a.png")
    draw_folder(tmp_path / "copy", [(64, 64)] * 9, shade=1)
    subset = '[[datasets]]\nresolution = 64\n[[datasets.subsets]]\nimage_dir = "{folder}/%s"\nclass_tokens = "cat"\n'
    config = write_toml(tmp_path, subset % "cat" + subset % "copy")
    outcomes = []
    for seed in range(20):
        try:
            outcomes.append(len(load(replace(config, validation_split=0.4, seed=seed)).validation))
        except Problems as error:
            outcomes.append(str(error))
    assert any("leaves none" in str(outcome) for outcome in outcomes)
    assert any(outcome == 4 for outcome in outcomes)


def test_the_manifest_tells_what_changed(bucketed: TrainConfig) -> None:
    before = load(bucketed).manifest()
    assert load(bucketed).manifest() == before
    assert bucketed.dataset_config
    folder = bucketed.dataset_config.parent
    draw(folder / "cat" / "03.png", (48, 96), shade=200)
    (folder / "dog" / "01.txt").write_text("another caption")
    after = load(bucketed).manifest()
    assert {name for name in before if before[name] != after[name]} == {"picture 0.0/03.png", "picture 0.1/01.png"}
