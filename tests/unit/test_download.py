"""`python -m trainer download` against a hub on loopback: which files, where to, what is fetched and what is not."""

import json
import os
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from benchmarks.random_judges import write_dinov2, write_siglip2
from tests.fake_hub import Cut, FakeHub
from tests.hub_files import (
    DEV,
    KREA,
    MIB,
    SCHNELL,
    TEXT_ENCODERS,
    download,
    made_up_file,
    models_here,
    parts_here,
    reachable,
)
from trainer.captioning.description import CAPTION_MODELS
from trainer.common.problems import Problems
from trainer.comparison.check import default_folder, judge_problems
from trainer.comparison.description import DINOV2, SIGLIP2
from trainer.comparison.features import Dinov2, Siglip2
from trainer.hub.errors import Status
from trainer.hub.wanted import KEYS, base_model, lora
from trainer.masking.description import MASK_MODELS

LAYOUT = {
    "checkpoints/flux1-dev.safetensors": (DEV, "flux1-dev.safetensors"),
    "vae/ae.safetensors": (DEV, "ae.safetensors"),
    "text_encoders/clip_l.safetensors": (TEXT_ENCODERS, "clip_l.safetensors"),
    "text_encoders/t5xxl_fp16.safetensors": (TEXT_ENCODERS, "t5xxl_fp16.safetensors"),
    "tokenizers/tokenizer/vocab.json": (DEV, "tokenizer/vocab.json"),
    "tokenizers/tokenizer/merges.txt": (DEV, "tokenizer/merges.txt"),
    "tokenizers/tokenizer/tokenizer_config.json": (DEV, "tokenizer/tokenizer_config.json"),
    "tokenizers/tokenizer_2/spiece.model": (DEV, "tokenizer_2/spiece.model"),
    "tokenizers/tokenizer_2/tokenizer.json": (DEV, "tokenizer_2/tokenizer.json"),
}


@pytest.fixture(autouse=True)
def hub(tmp_path, monkeypatch):
    with reachable(monkeypatch, tmp_path) as fake:
        yield fake


def test_everything_arrives_in_the_shared_layout(hub: FakeHub, capfd):
    assert download() == 0
    assert models_here() == {target: hub.files[repo][path] for target, (repo, path) in LAYOUT.items()}
    text = "".join(capfd.readouterr())
    assert "All files are complete." in text and "complete: models/checkpoints/flux1-dev.safetensors" in text
    assert hub.token not in text and "Signature" not in text
    assert Path("models/vae/ae.safetensors").stat().st_mode & 0o777 == 0o644


def test_the_cdn_never_sees_the_token(hub: FakeHub):
    assert download() == 0
    on_cdn = [request for request in hub.requests if request.path.startswith("/cdn/")]
    assert len(on_cdn) == 5 and all(request.token is None for request in on_cdn)
    assert all(request.token == hub.token for request in hub.requests if request not in on_cdn)


def test_a_second_run_fetches_and_reads_nothing(hub: FakeHub, monkeypatch, capfd):
    assert download() == 0
    hub.requests.clear()
    monkeypatch.setattr("trainer.hub.jobs.digest_of", lambda *_: pytest.fail("it was read again"))
    assert download() == 0
    assert all(request.path.startswith("/api/") for request in hub.requests)
    assert "0.00 GB to download" in capfd.readouterr().out


def test_whole_files_of_the_user_are_taken_as_they_are(hub: FakeHub):
    mine = Path("models/vae/ae.safetensors")
    mine.parent.mkdir(parents=True)
    mine.write_bytes(hub.files[DEV]["ae.safetensors"])
    before = mine.stat()
    assert download() == 0
    assert (mine.stat().st_ino, mine.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert not hub.sent("ae.safetensors")


def test_dry_run_says_all_and_writes_nothing(hub: FakeHub, capfd):
    assert download("--dry-run") == 0
    text = capfd.readouterr().out
    assert all(f"models/{target}" in text for target in LAYOUT) and "GB free" in text and "to download" in text
    assert not Path("models").exists()
    hub.accepted = False
    assert download("--dry-run") == Status.LICENCE_NOT_ACCEPTED


def test_schnell_and_fp8(hub: FakeHub):
    assert download("--schnell", "--fp8") == 0
    found = models_here()
    assert "checkpoints/flux1-schnell.safetensors" in found and "text_encoders/t5xxl_fp8_e4m3fn.safetensors" in found
    assert not {"checkpoints/flux1-dev.safetensors", "text_encoders/t5xxl_fp16.safetensors"} & found.keys()
    assert not any(DEV in request.path for request in hub.requests)


def test_krea_comes_from_its_own_repository(hub: FakeHub):
    assert download("--krea") == 0
    targets = {target.replace("flux1-dev", "flux1-krea-dev") for target in LAYOUT}
    assert models_here().keys() == targets
    assert not any(repository in request.path for request in hub.requests for repository in (DEV, SCHNELL))


def add_mask_models(hub: FakeHub) -> dict[str, bytes]:
    """The repositories of the mask models, with what nobody wants of them; returns the files that are wanted."""
    expected = {}
    for seed, model in enumerate(MASK_MODELS, 11):
        files = {name: name.encode() for name in model.files} | {"model.safetensors": made_up_file(MIB, seed)}
        expected |= {f"{model.folder}/{name}": content for name, content in files.items()}
        hub.files[model.repository] = {**files, "README.md": b"# a card", "pytorch_model.bin": b"not wanted"}
    return expected


def test_masks_brings_its_two_models_and_nothing_else(hub: FakeHub, capfd):
    expected = add_mask_models(hub)
    assert download("--masks", "--dry-run") == 0 and not Path("models").exists()
    assert download("--masks") == 0
    assert models_here() == expected
    assert {"masks/grounding-dino-base/tokenizer.json", "masks/sam2.1-hiera-large/config.json"} <= expected.keys()
    hub.requests.clear()
    assert download("--masks", "--verify") == 0
    assert not hub.sent("model.safetensors") and capfd.readouterr().out.count("sha256") == 2


def test_judges_brings_models_that_can_measure(hub: FakeHub, tmp_path, capfd):
    """Small DINOv2 and SigLIP 2 with the published files and others; the first bytes that come are wrong."""
    expected = {}
    for model, write in ((DINOV2, write_dinov2), (SIGLIP2, write_siglip2)):
        folder = write(tmp_path / "published" / model.key)
        held = {name: (folder / name).read_bytes() for name in model.files}
        hub.files[model.repository] = held | {"README.md": b"# a model card", "pytorch_model.bin": b"not wanted"}
        expected |= {f"{model.folder}/{name}": content for name, content in held.items()}
    assert download("--judges", "--dry-run") == 0 and not Path("models").exists()
    hub.wrong["model.safetensors"] = 1
    assert download("--judges") == 0 and models_here() == expected
    assert len(hub.sent("model.safetensors")) == 3
    assert not judge_problems(default_folder("dinov2"), default_folder("siglip2"))
    image = Image.new("RGB", (64, 64), "red")
    assert Dinov2(default_folder("dinov2"), torch.device("cpu"))(image).shape == (32, 32, 16)
    assert -1 <= Siglip2(default_folder("siglip2"), torch.device("cpu"))([image], ["toy"])[0] <= 1
    capfd.readouterr()
    assert download("--judges", "--verify") == 0 and capfd.readouterr().out.count("sha256") == 2
    weights = default_folder("dinov2") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    (default_folder("siglip2") / "tokenizer.json").unlink()
    assert download("--judges", "--verify") != 0
    said = "".join(capfd.readouterr())
    assert str(weights) in said and "tokenizer.json" in said


def test_captions_brings_its_model_and_can_come_with_others(hub: FakeHub):
    expected = add_mask_models(hub)
    (model,) = CAPTION_MODELS
    files = {name: name.encode() for name in model.files} | {"model.safetensors": made_up_file(MIB, 3)}
    hub.files[model.repository] = {**files, "modeling_florence2.py": b"not wanted"}
    captions = {f"captions/Florence-2-large/{name}": content for name, content in files.items()}
    assert download("--captions") == 0
    assert models_here() == captions
    assert download("--captions", "--masks") == 0
    assert models_here() == captions | expected


def test_an_interrupted_mask_model_continues(hub: FakeHub):
    expected = add_mask_models(hub)
    hub.cuts["model.safetensors"] = [Cut(300_000), Cut(200_000)]
    assert download("--masks") == 0
    assert models_here() == expected
    assert any(request.range for request in hub.sent("model.safetensors"))


def test_krea_has_a_licence_of_its_own(hub: FakeHub, capfd):
    assert download() == 0
    hub.accepted = False
    assert download("--krea") == Status.LICENCE_NOT_ACCEPTED
    assert f"/{KREA}" in capfd.readouterr().err


def test_krea_and_schnell_exclude_each_other(capfd):
    assert download("--krea", "--schnell") == 2
    assert "not allowed with" in capfd.readouterr().err


def test_schnell_after_dev_keeps_the_tokenizers_that_are_there(hub: FakeHub):
    """Theirs differ in a byte here, and either serves both models."""
    assert download() == 0
    before = models_here()
    assert download("--schnell") == 0
    new = {"checkpoints/flux1-schnell.safetensors": hub.files[SCHNELL]["flux1-schnell.safetensors"]}
    assert models_here() == before | new


def test_only_some():
    assert download("--only", "ae", "clip_l") == 0
    assert models_here().keys() == {"vae/ae.safetensors", "text_encoders/clip_l.safetensors"}


def test_every_key_can_be_named_alone():
    assert {want.key for want in base_model()} == set(KEYS)
    for key in KEYS:
        assert {want.key for want in base_model(only=[key])} == {key}


def test_another_models_folder_with_spaces():
    assert download("--only", "ae", "--models_dir", "my models") == 0
    assert Path("my models/vae/ae.safetensors").is_file() and not Path("models").exists()


def test_the_saved_login_serves_as_well(hub: FakeHub, monkeypatch, capfd):
    monkeypatch.delenv("HF_TOKEN")
    Path("saved_token").write_text(hub.token + "\n")
    assert download("--only", "ae") == 0
    assert hub.token not in "".join(capfd.readouterr())


def test_a_token_in_argv_is_refused_and_not_repeated(hub: FakeHub, capfd):
    assert download("--token", hub.token) == 2
    assert hub.token not in "".join(capfd.readouterr())


# --verify


def test_verify_needs_no_network_after_a_download(hub: FakeHub, capfd, monkeypatch):
    assert download() == 0
    hub.requests.clear()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert download("--verify") == 0
    assert not hub.requests and capfd.readouterr().out.count("complete  ") == len(LAYOUT)


def test_verify_finds_a_flipped_bit_that_size_and_time_hide(capfd):
    assert download() == 0
    path = Path("models/vae/ae.safetensors")
    time, content = path.stat().st_mtime_ns, bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(time, time))
    assert download("--verify") == Status.WRONG_BYTES
    text = capfd.readouterr().err
    assert "1 problem found" in text and str(path) in text and "other content" in text
    assert path.read_bytes() == content


def test_verify_names_what_is_missing_and_what_differs(capfd):
    assert download("--only", "ae") == 0
    assert download("--only", "ae", "--verify") == 0
    assert download("--only", "ae", "clip_l", "--verify") == Status.MISSING
    assert "clip_l.safetensors: no such file" in capfd.readouterr().err
    Path("models/vae/ae.safetensors").write_bytes(b"short")
    assert download("--only", "ae", "clip_l", "--verify") == Status.WRONG_BYTES
    assert "has 5 bytes" in capfd.readouterr().err


# what is the user's


@pytest.mark.parametrize("content", [b"mine", made_up_file(1 << 20, 77)])
def test_a_different_file_stays_until_replaced(hub: FakeHub, capfd, content):
    mine = Path("models/vae/ae.safetensors")
    mine.parent.mkdir(parents=True)
    mine.write_bytes(content)
    assert download("--only", "ae") == Status.IN_THE_WAY
    assert mine.read_bytes() == content and not hub.sent("ae.safetensors")
    assert "--replace" in capfd.readouterr().err
    hub.wrong["ae.safetensors"] = 2
    assert download("--only", "ae", "--replace") == Status.WRONG_BYTES
    assert mine.read_bytes() == content, "the old one stays until the new one is whole"
    assert download("--only", "ae", "--replace") == 0
    assert mine.read_bytes() == hub.files[DEV]["ae.safetensors"]


def test_a_link_to_nowhere_is_not_replaced_silently(capfd):
    mine = Path("models/vae/ae.safetensors")
    mine.parent.mkdir(parents=True)
    mine.symlink_to("/nowhere/ae.safetensors")
    assert download("--only", "ae") == Status.IN_THE_WAY
    assert mine.is_symlink() and "link" in capfd.readouterr().err


def test_a_damaged_record_costs_only_time(hub: FakeHub):
    assert download("--only", "ae") == 0
    record = Path("models/.download/record.json")
    for text in ("{", "[]", '{"vae/ae.safetensors": 3}', json.dumps({"a": {"stated": {}, "seen": []}})):
        record.write_text(text)
        hub.requests.clear()
        assert download("--only", "ae") == 0
        assert not hub.sent("ae.safetensors")


# --lora


def lora_file(path: Path) -> bytes:
    layer = "transformer.transformer_blocks.0.attn.to_q"
    factors = {f"{layer}.lora_A.weight": torch.ones(4, 16), f"{layer}.lora_B.weight": torch.ones(16, 4)}
    save_file(factors, path)
    return path.read_bytes()


def test_a_lora(hub: FakeHub, tmp_path, capfd):
    content = lora_file(tmp_path / "made.safetensors")
    hub.files["someone/flux-toy"] = {"pytorch_lora_weights.safetensors": content, "README.md": b"x"}
    assert download("--lora", "someone/flux-toy") == 0
    assert models_here() == {"loras/flux-toy.safetensors": content}
    hub.files["someone/several"] = {"a.safetensors": content, "more/b.safetensors": content}
    assert download("--lora", "someone/several") == Status.NOT_FOUND
    assert "--lora someone/several/a.safetensors" in capfd.readouterr().err
    assert download("--lora", "someone/several/more/b.safetensors") == 0
    assert models_here().keys() == {"loras/flux-toy.safetensors", "loras/b.safetensors"}
    assert download("--lora", "someone/flux-toy", "--verify") == 0


def test_what_is_no_lora_does_not_stay(hub: FakeHub, capfd):
    hub.files["someone/model"] = {"model.safetensors": made_up_file(512, 1)}
    assert download("--lora", "someone/model") == Status.NOT_A_LORA
    assert not models_here() and not parts_here()
    assert "someone/model" in capfd.readouterr().err


@pytest.mark.parametrize("name", ["", "flux", "a/../b", "a/b/c.bin", "/a/b", "a b/c", "../../etc/x.safetensors"])
def test_names_that_are_no_repository(name):
    with pytest.raises(Problems, match="owner/name"):
        lora(name)


@pytest.mark.parametrize("name", ["a/b", "https://huggingface.co/a/b"])
def test_names_that_are(name):
    assert (lora(name).repository, lora(name).target) == ("a/b", "loras/b.safetensors")
