"""What each option of training does to the LoRA that comes out."""

import json

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from benchmarks.random_flux import write_model_files
from tests.dataset_files import draw_folder
from tests.recipe_files import ONE_FOLDER, Finished, Workshop, largest_difference

WITH_REGULARISATION = """
[[datasets]]
resolution = 64

[[datasets.subsets]]
image_dir = "{folder}/toy"
class_tokens = "tjtoy toy"

[[datasets.subsets]]
image_dir = "{folder}/reg"
class_tokens = "toy"
is_reg = true
MORE
"""
TWO_RESOLUTIONS = """
[general]
enable_bucket = true
min_bucket_reso = 32
bucket_reso_steps = 16

[[datasets]]
resolution = 64
[[datasets.subsets]]
image_dir = "{folder}/shapes"
class_tokens = "tjtoy toy"

[[datasets]]
resolution = [96, 96]
batch_size = 2
[[datasets.subsets]]
image_dir = "{folder}/shapes"
class_tokens = "tjtoy toy"
num_repeats = 2
"""


@pytest.fixture(scope="module")
def plain(workshop: Workshop) -> Finished:
    """Three steps with nothing special, to compare with."""
    return workshop.train("plain", max_train_steps=3, save_precision="float", save_state_on_train_end=True)


def test_without_an_average_the_file_is_what_was_trained(plain):
    trained = load_file(plain.state(3) / "adapter-00000.safetensors")
    saved = {name: tensor for name, tensor in plain.tensors().items() if not name.endswith("alpha")}
    assert largest_difference({name.removeprefix("adapter/"): tensor for name, tensor in trained.items()}, saved) == 0


def test_ema_saves_the_average_and_trains_the_same(workshop, plain):
    settings = {"max_train_steps": 3, "save_precision": "float", "save_state_on_train_end": True}
    averaged = workshop.train("ema", **settings, ema_decay=0.5)
    trained = [load_file(run.state(3) / "adapter-00000.safetensors") for run in (averaged, plain)]
    assert largest_difference(*trained) == 0
    average = load_file(averaged.state(3) / "ema-00000.safetensors")
    saved = {name: tensor for name, tensor in averaged.tensors().items() if not name.endswith("alpha")}
    assert largest_difference({name.removeprefix("ema/"): tensor for name, tensor in average.items()}, saved) == 0
    assert largest_difference(averaged.tensors(), plain.tensors()) > 0.01


def test_gradient_checkpointing_changes_no_bit(workshop, plain):
    settings = {"max_train_steps": 3, "save_precision": "float", "gradient_checkpointing": True}
    again = workshop.train("checkpointing", **settings)
    assert largest_difference(again.tensors(), plain.tensors()) == 0
    dropped = {"network_dropout": 0.2, "network_args": ["rank_dropout=0.1"]}
    runs = [
        workshop.train(f"checkpointing {on}", **{**settings, **dropped, "gradient_checkpointing": on})
        for on in (True, False)
    ]
    assert largest_difference(*(run.tensors() for run in runs)) == 0
    assert largest_difference(runs[0].tensors(), plain.tensors()) > 0


def test_text_encoder_lr_trains_clip(workshop, plain):
    run = workshop.train("clip", max_train_steps=3, text_encoder_lr=1e-3, save_precision="float")
    of_clip = {name: tensor for name, tensor in run.tensors().items() if name.startswith("text_encoder.text_model.")}
    ups = [tensor for name, tensor in of_clip.items() if ".lora_B." in name]
    assert len(ups) == 12, "six linear layers in each of two"
    # the last layers' attention may see nothing of some tokens, but every layer has its gradient
    assert all(tensor.abs().max() > 0 for tensor in ups)
    assert run.tensors().keys() - of_clip.keys() == plain.tensors().keys()
    assert run.log("step")[0]["loss"] == pytest.approx(plain.log("step")[0]["loss"], rel=1e-5)
    assert run.log("step")[0]["gradient_norm"] > plain.log("step")[0]["gradient_norm"]


def first_losses(workshop: Workshop, place: str, more: str = "", **settings) -> tuple[float, float]:
    """The losses of the first two steps, each over all ten draws of an epoch, half of them regularisation."""
    draw_folder(workshop.folder / "reg", [(64, 64)] * 3, shade=100)
    data = workshop.dataset(WITH_REGULARISATION.replace("MORE", more), f"{place}.toml")
    run = workshop.train(
        place,
        dataset_config=data,
        max_train_steps=2,
        gradient_accumulation_steps=10,
        save_precision="float",
        **settings,
    )
    assert run.metadata()["ss_num_batches_per_epoch"] == "10"
    first, second = (line["loss"] for line in run.log("step"))
    return first, second


def test_prior_loss_weight_weighs_the_regularisation_pictures(workshop):
    without, once, twice = (first_losses(workshop, f"prior {w}", prior_loss_weight=w)[0] for w in (0, 1, 2))
    assert 0.2 * once < without < 0.8 * once
    assert twice - once == pytest.approx(once - without, rel=1e-5)


def test_a_preserved_output_costs_nothing_before_the_first_step(workshop):
    without, alone = first_losses(workshop, "prior nothing", prior_loss_weight=0)
    first, second = first_losses(workshop, "preserved", diff_output_preservation=True)
    assert first == pytest.approx(without, rel=1e-6)
    _, unpreserved = first_losses(workshop, "unpreserved")
    assert alone < second < unpreserved
    attribute = "custom_attributes = { diff_output_preservation = true }"
    assert first_losses(workshop, "attribute", attribute) == (first, second)


def test_masks_leave_what_is_outside_of_them(workshop):
    """Before the first step the adapter changes nothing, so keeping the base's prediction costs what ignoring does."""
    folder = draw_folder(workshop.folder / "masked", [(64, 64)] * 2)
    for number in range(2):
        mask = Image.new("L", (64, 64), 0)
        mask.paste(255, (0, 0, 64, 16))
        mask.save(folder / f"{number:02}.mask.png")
    data = workshop.dataset(ONE_FOLDER.replace("/toy", "/masked"), "masked.toml")

    def losses(place, **more):
        run = workshop.train(place, dataset_config=data, max_train_steps=2, save_precision="float", **more)
        return [line["loss"] for line in run.log("step")]

    everywhere = losses("masks none")
    ignored = losses("masks ignored", masked_loss=True)
    kept = losses("masks kept", masked_loss=True, mask_background="preserve")
    half = losses("masks weighed", masked_loss=True, mask_background=0.5)
    assert kept[0] == pytest.approx(ignored[0], rel=1e-6) and kept[1] > ignored[1]
    assert ignored[0] < half[0] < everywhere[0]
    assert half[0] == pytest.approx((ignored[0] + everywhere[0]) / 2, rel=1e-6)


def test_held_out_pictures_are_not_trained(workshop):
    run = workshop.train("split", max_train_epochs=1, validation_split=0.4, validate_every_n_epochs=1)
    metadata = run.metadata()
    assert (metadata["ss_num_train_images"], metadata["ss_num_validation_images"]) == ("3", "2")
    assert len(run.log("step")) == 3
    (line,) = run.log("validation")
    assert line["step"] == 3
    assert line["loss"] == pytest.approx(sum(line[f"loss_q{q}"] for q in (125, 375, 625, 875)) / 4)


def test_two_resolutions_with_buckets(workshop):
    draw_folder(workshop.folder / "shapes", [(64, 64), (128, 64), (64, 128), (96, 80)])
    data = workshop.dataset(TWO_RESOLUTIONS, "shapes.toml")
    run = workshop.train("shapes", dataset_config=data, max_train_epochs=1)
    sections = json.loads(run.metadata()["ss_datasets"])
    shapes = [
        {tuple(bucket["resolution"]): bucket["count"] for bucket in section["bucket_info"]["buckets"].values()}
        for section in sections
    ]
    assert sum(shapes[0].values()) == 4 and sum(shapes[1].values()) == 8
    assert all(64 * 64 * 0.6 <= width * height <= 64 * 64 for width, height in shapes[0])
    assert all(96 * 96 * 0.6 <= width * height <= 96 * 96 for width, height in shapes[1])
    assert all({1, 0, -1} == {(w > h) - (w < h) for w, h in found} for found in shapes), "square, wide and tall"
    assert len(run.log("step")) == 4 + 4, "batches of one, and of two repeats of the one picture of each shape"


def test_save_last_n_epochs_removes_only_its_own(workshop):
    settings = {"max_train_epochs": 5, "save_every_n_epochs": 1, "save_last_n_epochs": 2, "save_state": True}
    expected = Finished(workshop.config("last", **settings))
    others = ["other-000001.safetensors", "tj-000001.txt", "tj-v2-000001.safetensors", "tj2.safetensors"]
    expected.config.output_dir.mkdir(parents=True)
    for name in others:
        (expected.config.output_dir / name).touch()
    foreign = expected.folder / "state-step00000001"
    foreign.mkdir(parents=True)
    (foreign / "mine.txt").touch()

    run = workshop.train("last", **settings)
    own = ["tj-000003.safetensors", "tj-000004.safetensors", "tj.safetensors"]
    assert run.loras() == sorted([*others, *own])
    states = sorted(path.name for path in run.folder.glob("state-*"))
    assert states == ["state-step00000001", "state-step00000015", "state-step00000020", "state-step00000025"]
    assert (foreign / "mine.txt").exists()
    assert [line.get("removed") for line in run.log("checkpoint")][-2:] == [
        "tj-000002.safetensors, state-step00000010",
        None,
    ]


def test_full_bf16_keeps_the_adapter_in_bf16(workshop):
    settings = {"mixed_precision": "bf16", "full_bf16": True, "save_state_on_train_end": True}
    run = workshop.train("bf16", max_train_steps=3, **settings)
    trained = load_file(run.state(3) / "adapter-00000.safetensors")
    assert {tensor.dtype for tensor in trained.values()} == {torch.bfloat16}
    assert all(tensor.abs().max() > 0 for tensor in trained.values())


def test_schnell_trains_without_guidance(workshop, tmp_path):
    schnell = Workshop(workshop.folder, write_model_files(tmp_path, "tiny", guidance=False))
    first, second = (schnell.train(f"schnell {g}", max_train_steps=3, guidance_scale=g) for g in (1, 4))
    assert first.metadata()["modelspec.architecture"] == "flux-1-schnell/lora"
    assert largest_difference(first.tensors(), second.tensors()) == 0
    assert all(tensor.abs().max() > 0 for tensor in first.tensors().values())


def test_network_weights_go_on_where_a_file_ended(workshop, plain):
    more = workshop.train("more", max_train_steps=1, network_weights=plain.lora(), dim_from_weights=True, network_dim=2)
    assert more.tensors().keys() == plain.tensors().keys()
    assert more.log("step")[0]["loss"] != plain.log("step")[0]["loss"]
    assert largest_difference(more.tensors(), plain.tensors()) < 0.9
