"""Training that goes wrong: it stops, says at which step and with which pictures, and leaves good files whole."""

import logging
import resource
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import trainer.engine.run
from benchmarks.random_flux import ModelFiles
from tests.kept_logging import logging_kept  # noqa: F401 (a fixture)
from tests.recipe_files import Finished, Workshop, make_workshop, read_log, started, wait_for
from trainer.__main__ import main
from trainer.common.problems import Problems
from trainer.data.cache import Encoded


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory, tiny_flux: ModelFiles) -> Iterator[Workshop]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield make_workshop(tmp_path_factory.mktemp("problems"), tiny_flux, pictures=3)
    torch.set_num_threads(threads)


def broken_model(workshop: Workshop, folder: Path) -> Path:
    tensors = load_file(workshop.models.transformer)
    tensors["double_blocks.1.img_attn.proj.weight"][3, 5] = torch.nan
    save_file(tensors, folder / "flux1-dev.safetensors")
    return folder / "flux1-dev.safetensors"


def test_a_model_file_with_nan_stops_at_the_first_step(workshop, tmp_path, capsys):
    settings = {"pretrained_model_name_or_path": broken_model(workshop, tmp_path), "save_every_n_steps": 1}
    assert main(["train", *workshop.argv("nan", **settings)]) == 1
    told = capsys.readouterr().err
    assert "step 1: loss nan" in told and "Traceback" not in told
    assert any(f"{name:02}.png" in told for name in range(3))
    assert not list((workshop.folder / "nan").rglob("*.safetensors")), "nothing was saved"


def test_a_run_that_bursts_keeps_its_last_good_checkpoint(workshop):
    """The step after a wild update has no finite loss; what was saved before it is named and whole."""
    settings = {"learning_rate": 1e18, "max_train_steps": 6, "save_every_n_steps": 1, "gradient_accumulation_steps": 2}
    with pytest.raises(Problems) as found:
        workshop.train("burst", **settings)
    (problem,) = found.value.problems
    run = Finished(workshop.config("burst", **settings))
    last = run.log("checkpoint")[-1]["step"]
    assert problem.where == f"step {last + 1}" and "with the images" in problem.what
    assert str(run.lora(f"tj-step{last:08d}")) in problem.hint
    assert run.loras() == [f"tj-step{step:08d}.safetensors" for step in range(1, last + 1)]
    for name in run.loras():
        assert all(bool(tensor.isfinite().all()) for tensor in load_file(run.config.output_dir / name).values())
    assert not list(run.config.output_dir.glob(".*"))


def test_weights_that_are_not_finite_are_never_saved(workshop):
    """The very last update breaks the adapter: no loss will tell, so the file itself is looked at."""
    workshop.train("last", max_train_steps=1)
    before = Finished(workshop.config("last")).lora().read_bytes()
    with pytest.raises(Problems, match="not finite"):
        workshop.train(
            "last", overwrite=True, max_train_steps=1, learning_rate=1e38, network_dim=8, optimizer_args=["eps=1e-30"]
        )
    run = Finished(workshop.config("last"))
    assert run.lora().read_bytes() == before and run.loras() == ["tj.safetensors"]


@contextmanager
def disk_of(size: int) -> Iterator[None]:
    """Within it no file of this process may grow past `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("settings", [{}, {"save_state_on_train_end": True}], ids=["LoRA", "state"])
def test_a_full_disk_is_told_plainly_and_leaves_the_previous_file(workshop, capsys, settings):
    place = f"full {len(settings)}"
    assert workshop.train(place, max_train_steps=1, **settings).status == 0
    run = Finished(workshop.config(place))
    before = {path: path.read_bytes() for path in run.config.output_dir.iterdir()}
    states = sorted(path.name for path in run.folder.glob("*state*"))
    size = run.lora().stat().st_size
    with disk_of(size - 100 if not settings else 2 * size):  # a state's tensors are in float32
        assert main(["train", *workshop.argv(place, max_train_steps=2, overwrite=True, **settings)]) == 1
    told = capsys.readouterr().err
    assert "File too large" in told and "Traceback" not in told
    assert str(run.config.output_dir if not settings else run.folder) in told
    if not settings:
        assert {path: path.read_bytes() for path in run.config.output_dir.iterdir()} == before
    assert sorted(path.name for path in run.folder.glob("*state*")) == states
    assert not list((workshop.folder / place).rglob("*.tmp*"))


@pytest.mark.parametrize("seed", [0, 1])
def test_kill_9_while_a_lora_is_saved_leaves_the_previous_one(workshop, seed):
    """Every step writes; whatever moment the process is killed at, each file is whole."""
    place = f"killed {seed}"
    settings = {"max_train_steps": 500, "save_every_n_steps": 1, "network_dim": 64, "save_state": True}
    command = workshop.command(place, **settings)
    run = Finished(workshop.config(place, **settings))
    log = run.folder / "log.jsonl"
    with started(command) as process:
        wait_for(lambda: log.exists() and len(read_whole_lines(log)) >= 6, process)
        time.sleep(0.017 * seed)
        process.kill()
        assert process.wait() == -signal.SIGKILL
    names = [name for name in run.loras() if not name.startswith(".")]
    assert len(names) >= 2
    for name in names:
        assert all(bool(tensor.isfinite().all()) for tensor in load_file(run.config.output_dir / name).values())
    done = [line["step"] for line in run.log("checkpoint")]
    assert [f"tj-step{step:08d}.safetensors" for step in done] == names[: len(done)]
    again = workshop.train(
        place, **{**settings, "max_train_steps": done[-1] + 2}, resume=run.folder, resume_anyway=True
    )
    assert again.status == 0 and "tj.safetensors" in again.loras()


def read_whole_lines(path: Path) -> list[dict]:
    """A line may be half written while it is read."""
    try:
        return read_log(path)
    except ValueError:
        return []


def test_a_cache_entry_that_is_damaged_between_runs_is_made_again(workshop, caplog):
    first = workshop.train("cached", max_train_steps=3)
    plain = first.tensors()
    for path in (workshop.folder / ".cache").rglob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-9])
    with caplog.at_level(logging.WARNING):
        second = workshop.train("cached", max_train_steps=3, overwrite=True)
    assert caplog.text.count("is damaged") >= 5 and second.status == 0
    assert all(torch.equal(plain[name], tensor) for name, tensor in second.tensors().items())


def test_a_cache_entry_that_is_damaged_in_mid_run_is_made_again(workshop, monkeypatch, caplog):
    """No image is skipped, nothing is trained on rubbish, and the run ends as if nothing had happened."""
    plain = workshop.train("plain", max_train_steps=6).tensors()
    damaged: list[Path] = []
    fill = trainer.engine.run.fill_cache

    def fill_then_damage(*arguments) -> Encoded:
        encoded = fill(*arguments)
        _, data, _, _, keys, cache, _ = arguments
        path = cache.path(keys.latents(data.samples[1], False))
        path.write_bytes(path.read_bytes()[:-9])
        damaged.append(path)
        return encoded

    monkeypatch.setattr(trainer.engine.run, "fill_cache", fill_then_damage)
    with caplog.at_level(logging.WARNING):
        run = workshop.train("mid", max_train_steps=6)
    assert run.status == 0 and f"{damaged[0]} is damaged" in caplog.text
    assert all(torch.equal(plain[name], tensor) for name, tensor in run.tensors().items())
