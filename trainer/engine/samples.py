"""Sample images during training, from the model as it is now."""

import torch
from PIL import Image

from trainer.checkpoint.naming import sample_path
from trainer.common.devices import free_memory
from trainer.engine.run import Run
from trainer.models.load import load_autoencoder
from trainer.models.text import clip_ids
from trainer.models.transformer import Conditioning
from trainer.sampling.prompts import SamplePrompt
from trainer.sampling.sampler import decode_picture, sample_latents, save_picture


def make_samples(run: Run) -> None:
    """Generate an image for each of --sample_prompts with the current model, into runs/NAME/samples.

    Only the main process generates; the others wait. Each image is logged.
    """
    with run.pause("sample"):
        if run.accelerator.is_main_process:
            _make_samples(run)
        run.accelerator.wait_for_everyone()


def _make_samples(run: Run) -> None:
    prompts = run.plan.sample_prompts
    with run.as_saved():
        latents = [_latents(run, index, prompt) for index, prompt in enumerate(prompts)]
    assert run.config.ae
    vae = load_autoencoder(run.config.ae, run.model.device, run.model.dtype)
    for index, (prompt, sampled) in enumerate(zip(prompts, latents, strict=True)):
        _save_sample(run, index, prompt, decode_picture(vae, sampled))
    del vae
    free_memory(run.model.device)


def _latents(run: Run, index: int, prompt: SamplePrompt) -> torch.Tensor:
    positive, *negative = (_conditioning(run, text) for text in prompt.texts())
    return sample_latents(
        run.model.transformer, prompt, _seed(run, index, prompt), positive, negative[0] if negative else None
    )


def _seed(run: Run, index: int, prompt: SamplePrompt) -> int:
    return run.config.seed + index if prompt.seed is None else prompt.seed


def _conditioning(run: Run, text: str) -> Conditioning:
    txt, mask, pooled = run.maker.encoded.text(text)
    txt_mask = mask[None] if run.config.apply_t5_attn_mask else None
    return run.model.conditioning(txt[None], pooled[None], txt_mask, clip_ids(run.maker.tokenizers.clip, [text]))


def _save_sample(run: Run, index: int, prompt: SamplePrompt, image: Image.Image) -> None:
    step, seed = run.progress.step, _seed(run, index, prompt)
    path = sample_path(run.config, step, index)
    facts = {"prompt": prompt.prompt, "seed": seed, "step": step, "steps": prompt.steps, "guidance": prompt.guidance}
    save_picture(path, image, facts)
    run.log.event("sample", step, file=str(path), prompt=prompt.prompt)
