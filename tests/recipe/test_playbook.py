"""The command line of NVIDIA's playbook, as its users have it, in front of small files."""

import shutil
import sys
from pathlib import Path

import pytest

from benchmarks.random_flux import ModelFiles
from tests.dataset_files import draw_folder
from tests.recipe_files import ROOT, finish, read_log
from trainer.lora.info import describe

PLAYBOOK = """
--pretrained_model_name_or_path=models/checkpoints/flux1-dev.safetensors
--clip_l=models/text_encoders/clip_l.safetensors --t5xxl=models/text_encoders/t5xxl_fp16.safetensors
--ae=models/vae/ae.safetensors
--dataset_config=flux_data/data.toml --output_dir=models/loras/ --prior_loss_weight=1.0
--output_name=flux_dreambooth --save_model_as=safetensors --network_module=networks.lora_flux
--network_dim=256 --network_alpha=256 --learning_rate=1.0 --optimizer_type=Prodigy
--lr_scheduler=cosine_with_restarts --gradient_accumulation_steps 4 --gradient_checkpointing --sdpa
--max_train_epochs=100 --save_every_n_epochs=25 --mixed_precision=bf16 --guidance_scale=1.0
--timestep_sampling=flux_shift --model_prediction_type=raw --torch_compile
--persistent_data_loader_workers --cache_latents --cache_latents_to_disk
--cache_text_encoder_outputs --cache_text_encoder_outputs_to_disk
""".split()
# of each: eager for speed here, one epoch instead of a hundred
APPENDED = ["--dynamo_backend=eager", "--max_train_epochs=1"]
LAUNCHERS = {
    "python": [sys.executable, "-m", "trainer", "train"],
    "accelerate": [sys.executable, "-m", "accelerate.commands.launch", "-m", "trainer", "train"],
}
STEPS = 10  # 6 pictures once and 7 twice, and as many to preserve, in fours


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, tiny_flux: ModelFiles) -> Path:
    """A folder laid out as the repository: our data.toml at 64 pixels, small pictures, small models."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copytree(tiny_flux.transformer.parents[1], folder / "models")
    draw_folder(folder / "flux_data" / "tjtoy", [(64, 64), (80, 64), (64, 90)] * 2)
    draw_folder(folder / "flux_data" / "sparkgpu", [(64, 64)] * 7, shade=100)
    data = (ROOT / "flux_data" / "data.toml").read_text(encoding="utf-8")
    assert "resolution = 1024" in data
    assert "num_images = 120" in data
    few = data.replace("resolution = 1024", "resolution = 64").replace("num_images = 120", "num_images = 2\nsteps = 1")
    (folder / "flux_data" / "data.toml").write_text(few)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_the_playbooks_command_line_runs_unchanged(project, launcher):
    for written in ("runs", "models/loras"):
        shutil.rmtree(project / written, ignore_errors=True)
    said = finish([*LAUNCHERS[launcher], *PLAYBOOK, *APPENDED], folder=project, fresh=True)
    for flag in ("sdpa", "persistent_data_loader_workers", "cache_latents_to_disk", "cache_text_encoder_outputs"):
        assert sum(flag in line for line in said.splitlines()) == 1, f"{flag} is told once"
    assert "there will be no composites: no concept has masks" in said
    assert [path.name for path in (project / "models" / "loras").iterdir()] == ["flux_dreambooth.safetensors"]
    facts = describe(project / "models" / "loras" / "flux_dreambooth.safetensors")
    assert "tjtoy toy" in str(facts) and "sparkgpu gpu" in str(facts)
    assert facts["ranks"] == [256] and facts["scales"] == [1]
    log = read_log(project / "runs" / "flux_dreambooth" / "log.jsonl", "step")
    assert [line["step"] for line in log] == list(range(1, STEPS + 1))
    assert all(line["prodigy_d"] > 0 for line in log)
