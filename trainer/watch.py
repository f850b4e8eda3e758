"""What happens around a run's steps: their numbers, checkpoints, validation, sample pictures."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

from trainer.cache import free_memory
from trainer.checkpoints import (
    Position,
    lora_path,
    position_after,
    remove_outdated,
    run_dir,
    state_path,
)
from trainer.faults import Fault, Faults
from trainer.lora.file import save_lora
from trainer.lora.metadata import build_metadata
from trainer.models.load import load_autoencoder
from trainer.models.text import clip_ids
from trainer.models.transformer import Conditioning
from trainer.readback import Numbers
from trainer.run import Run
from trainer.sample import SamplePrompt, decode_picture, sample_latents, save_picture
from trainer.state.save import save_state
from trainer.validation import validation_loss

SAVE_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "float": torch.float32}
MAX_PICTURES_NAMED = 8


def after_step(run: Run, step: int, numbers: Numbers) -> None:
    """Take note of a step whose numbers have arrived. Raises `Faults` when loss or gradient is not finite."""
    if not (math.isfinite(numbers["loss"]) and math.isfinite(numbers["gradient_norm"])):
        raise Faults([_not_finite(run, step, numbers)])
    now = time.perf_counter()
    numbers["seconds_per_picture"] = (now - run.clock) / run.num_pictures(step)
    numbers["epoch"] = position_after(run.plan.schedule, step).epoch
    if run.model.device.type == "cuda":
        numbers["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    run.progress.seconds += now - run.clock
    run.clock = now
    run.log.step(step, numbers)


def _not_finite(run: Run, step: int, numbers: Numbers) -> Fault:
    names = list(dict.fromkeys(draw.sample.picture.path.name for draws in run.plan.group(step) for draw in draws))
    named = ", ".join(names[:MAX_PICTURES_NAMED]) + (" …" if len(names) > MAX_PICTURES_NAMED else "")
    what = f"loss {numbers['loss']:g}, gradient norm {numbers['gradient_norm']:g} with the pictures {named}"
    kept = f"the last good checkpoint is {run.last_checkpoint}; " if run.last_checkpoint else ""
    return Fault(f"step {step}", what, kept + "a lower --learning_rate is the usual remedy")


def save(run: Run, position: Position, with_state: bool) -> None:
    """Write the LoRA of this position, a state where one is due or asked for, and drop outdated ones."""
    config, accelerator = run.config, run.accelerator
    with_state |= config.save_state_on_train_end if position.ends_run else config.save_state
    if accelerator.is_main_process:
        start = time.perf_counter()
        path = lora_path(config, position)
        tensors = run.ema.averages if run.ema else run.model.parameters
        metadata = build_metadata(config, run.plan.data, run.progress, position, path.stem, run.plan.adapter.is_schnell)
        left_out = save_lora(path, tensors, run.model.alphas, metadata, SAVE_DTYPES[config.save_precision])
        run.last_checkpoint = path
        if with_state:
            _save_state(run, position.step)
        removed = remove_outdated(config, position, run.plan.schedule.steps_per_epoch)
        facts = {"file": path.name, "seconds": time.perf_counter() - start}
        if with_state:
            facts["state"] = str(state_path(config, position.step))
        if left_out:
            facts["metadata_left_out"] = ", ".join(left_out)
        if removed:
            facts["removed"] = ", ".join(path.name for path in removed)
        run.log.event("checkpoint", position.step, **facts)
    accelerator.wait_for_everyone()
    run.clock = time.perf_counter()


def _save_state(run: Run, step: int) -> None:
    save_state(
        state_path(run.config, step),
        tensors=run.model.parameters,
        optimizer=run.optimizer,
        scheduler=run.scheduler,
        ema=run.ema,
        progress=run.progress.record(run.config, run.plan),
    )


@contextmanager
def _as_saved(run: Run) -> Iterator[None]:
    """The adapter as it would be saved: its average where there is one, no dropout, nothing compiled anew."""
    run.model.train(False)
    with run.ema.swapped() if run.ema else nullcontext(), torch.compiler.set_stance("force_eager"):
        yield
    run.model.train(True)
    run.clock = time.perf_counter()


def validate(run: Run) -> None:
    """The loss at fixed timesteps and noise, over held-out pictures or, without any, the training ones."""
    draws = run.plan.data.validation_draws()[: run.config.max_validation_steps]
    if run.accelerator.is_main_process:
        with _as_saved(run):
            losses = validation_loss(draws, run.maker, lambda batch: run.model.losses(batch.to(run.model.device)))
        run.log.event("validation", run.progress.step, **losses)
    run.accelerator.wait_for_everyone()


def make_samples(run: Run) -> None:
    """Draw the pictures of --sample_prompts into runs/NAME/samples."""
    if run.accelerator.is_main_process:
        with _as_saved(run):
            latents = [_latents(run, index, prompt) for index, prompt in enumerate(run.plan.sample_prompts)]
        assert run.config.ae
        vae = load_autoencoder(run.config.ae, run.model.device, run.model.dtype)
        for index, (prompt, sampled) in enumerate(zip(run.plan.sample_prompts, latents, strict=True)):
            _save_sample(run, index, prompt, decode_picture(vae, sampled))
        del vae
        free_memory(run.model.device)
        run.clock = time.perf_counter()
    run.accelerator.wait_for_everyone()


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


def _save_sample(run: Run, index: int, prompt: SamplePrompt, picture) -> None:
    step, seed = run.progress.step, _seed(run, index, prompt)
    path = run_dir(run.config) / "samples" / f"{run.config.output_name}-step{step:08d}-{index:02d}.png"
    facts = {"prompt": prompt.prompt, "seed": seed, "step": step, "steps": prompt.steps, "guidance": prompt.guidance}
    save_picture(path, picture, facts)
    run.log.event("sample", step, file=str(path), prompt=prompt.prompt)
