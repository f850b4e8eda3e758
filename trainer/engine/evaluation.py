"""Likeness, bleed and drift during training, and the line at its end that says which LoRA file to keep."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from PIL import Image

from trainer.checkpoint.naming import lora_path, position_after, run_dir
from trainer.checkpoint.run_log import read_log
from trainer.common.devices import free_memory
from trainer.comparison.compare import Comparer, Row
from trainer.comparison.judges import Judges, load_judges, usual_side
from trainer.comparison.measures import Figure, with_error
from trainer.comparison.pictures import Candidate, decode_png, encode_png, image_key
from trainer.comparison.prompts import PROMPTS, ComparePrompt, compare_prompts, concepts_of
from trainer.comparison.recommend import Rule, Standing, best_and_close
from trainer.data.cache import TensorCache
from trainer.engine.run import Run
from trainer.lora.adapter import disabled_adapter
from trainer.models.load import load_autoencoder
from trainer.models.text import clip_ids
from trainer.models.transformer import Conditioning
from trainer.sampling.evaluation import draw_prompts
from trainer.sampling.prompts import SamplePrompt
from trainer.sampling.sampler import as_image

EVALUATION = "evaluation"  # the kind of its events in log.jsonl
VALUES = "evaluation_values"  # that of the figures for each prompt
WEIGHED = ("benefit", "bleed", "drift")
STEPS, GUIDANCE, BATCH = 12, 3.5, 8  # as `trainer compare` has them, so that its base images are found


class LiveSource:
    """Images of a training that is under way: of its adapter as it would be saved, and of its base model."""

    def __init__(self, run: Run):
        self.run, self.config = run, run.config
        side = usual_side(run.config)
        self.settings = SamplePrompt("", width=side, height=side, steps=STEPS, guidance=GUIDANCE)
        self.cache = TensorCache(run.plan.cache_dir)
        self._vae: AutoencoderKL | None = None

    @property
    def vae(self) -> AutoencoderKL:
        """The autoencoder, in float32; loaded on first use."""
        assert self.config.ae
        self._vae = self._vae or load_autoencoder(self.config.ae, self.run.model.device, torch.float32)
        return self._vae

    def release(self) -> None:
        """Free the autoencoder's memory until it is used again."""
        self._vae = None
        free_memory(self.run.model.device)

    def images(self, candidate: Candidate | None, prompts: Sequence[ComparePrompt]) -> list[Image.Image]:
        """An RGB image for each prompt; those of the base model are cached."""
        if candidate is not None:
            return self._generate(candidate, prompts)
        model = self.run.model
        facts = (model.dtype, model.device.type, self.run.memory.choice.precision)
        keys = [image_key(self.config, self.settings, self.run.plan.models, "base", facts, each) for each in prompts]
        found = [self.cache.read(key) for key in keys]
        if all(found):
            return [decode_png(entry["png"]) for entry in found if entry]
        images = self._generate(None, prompts)
        for key, image in zip(keys, images, strict=True):
            self.cache.write(key, {"png": encode_png(image)})
        return images

    def _generate(self, candidate: Candidate | None, prompts: Sequence[ComparePrompt]) -> list[Image.Image]:
        texts = self.texts([prompt.text for prompt in prompts], candidate)
        encoded = [texts[prompt.text] for prompt in prompts]
        name = candidate.name if candidate else "base model"
        with self.applied(candidate) as transformer:
            drawn = draw_prompts(transformer, self.vae, encoded, self.settings, prompts[0].seed, BATCH, name)
        return [as_image(each) for each in drawn]

    @torch.no_grad()
    def texts(self, wanted: Sequence[str], candidate: Candidate | None = None) -> dict[str, Conditioning]:
        """The encoded texts, from the run's cache; if CLIP is trained, with its adapter or, for the base, without."""
        with self._switched(candidate):
            return {text: self._text(text) for text in dict.fromkeys(wanted)}

    def _text(self, text: str) -> Conditioning:
        maker = self.run.maker
        txt, mask, pooled = maker.encoded.text(text)
        txt_mask = mask[None] if self.config.apply_t5_attn_mask else None
        return self.run.model.conditioning(txt[None], pooled[None], txt_mask, clip_ids(maker.tokenizers.clip, [text]))

    @contextmanager
    def applied(self, candidate: Candidate | None) -> Iterator[FluxTransformer2DModel]:
        """In this context the transformer has its adapter or, without a candidate, is the base model."""
        with self._switched(candidate):
            yield self.run.model.transformer

    @contextmanager
    def _switched(self, candidate: Candidate | None) -> Iterator[None]:
        model = self.run.model
        if candidate is not None:
            yield
            return
        models = [each for each in (model.transformer, model.text_encoder) if each is not None]
        with disabled_adapter(*models):
            yield


def _measure(run: Run) -> Row:
    """Measure the adapter as it is now; the first time also the base model and the training images."""
    judges = load_judges(run.config, run.model.device)
    if run.comparer is None:
        concepts = concepts_of(run.plan.data)
        prompts = compare_prompts(concepts, PROMPTS)
        run.comparer = Comparer(LiveSource(run), run.plan.data, concepts, prompts, judges)
    comparer, position = run.comparer, position_after(run.plan.schedule, run.progress.step)
    comparer.judges = judges
    row = comparer.row(Candidate(f"step {position.step}", lora_path(run.config, position), position.step))
    comparer.judges = Judges(judges.uses_features)  # until the next time, the models' memory is for training
    comparer.source.release()
    return row


def evaluate(run: Run) -> None:
    """Generate images of the prompts of `trainer compare` with the current model, measure them, and log the figures.

    Only the main process does; the others wait.
    """
    with run.pause(EVALUATION):
        if run.accelerator.is_main_process:
            with run.as_saved():
                row = _measure(run)
            figures = figures_of(row)
            run.guard.see_evaluation(run.progress.step, figures)
            run.log.event(EVALUATION, run.progress.step, **figures)
            run.log.record(VALUES, run.progress.step, values_of(row))
        run.accelerator.wait_for_everyone()


def values_of(row: Row) -> dict[str, list[float]]:
    """What the rule weighs, prompt by prompt, so that scores can be told apart at the end."""
    standing = row.standing
    found = dict(zip(WEIGHED, (standing.benefit, standing.bleed, standing.drift), strict=True))
    return {name: [round(value, 2) for value in figure.values] for name, figure in found.items() if figure}


def figures_of(row: Row, rule: Rule | None = None) -> dict[str, float]:
    """What an evaluation logs, by name: the score with its standard error, if known, and each measure's mean."""
    rule, standing = rule or Rule(), row.standing
    found = {
        "score": standing.score(rule),
        **({"error": standing.error(rule)} if math.isfinite(standing.error(rule)) else {}),
        "loss_on_images": row.losses.held_out.mean,
        "loss_drift": row.losses.drift.mean,
    }
    if row.measures:
        measures = row.measures
        named = {"likeness": measures.likeness, "bleed": measures.bleed, "drift": measures.drift}
        found |= {name: figure.mean for name, figure in named.items()}
        found |= {f"likeness_{name}": figure.mean for name, figure in measures.likeness_of.items()}
        found["copied"] = len(measures.copies) / len(row.images)
        if measures.agreement:
            found["agreement"] = measures.agreement.mean
    return found


def announce_best(run: Run) -> None:
    """At the end of a run: log which LoRA file to keep, or what is missing to know it."""
    if run.accelerator.is_main_process:
        folder = run_dir(run.config)
        best, text = best_of(read_log(folder / "log.jsonl"), str(folder))
        if best:
            run.log.event("recommendation", run.progress.step, **best)
        run.log.say(text)


def best_of(events: Sequence[Mapping[str, Any]], run: str) -> tuple[dict[str, Any], str]:
    """The best evaluation of a run that has ended, and a line for its user.

    events: of its log.jsonl; run: its folder, for the command in the line. The first is {} without an evaluation, else
    {"best_step", "file", "score"}, with file "" if no LoRA file was saved at that step.
    """
    files = {int(event["step"]): str(event["file"]) for event in events if event.get("kind") == "checkpoint"}
    scores = {int(event["step"]): event for event in events if event.get("kind") == EVALUATION}
    command = f"python -m trainer compare {run}"
    if not scores:
        if len(files) < 2:
            return {}, "one LoRA file, so there is nothing to choose from; --save_every_n_epochs saves more"
        return {}, f"which of the {len(files)} LoRA files to keep: {command}"
    step = _best_step(scores, {int(event["step"]): event for event in events if event.get("kind") == VALUES})
    best = {"best_step": step, "file": files.get(step, ""), "score": scores[step]["score"]}
    told = ", ".join(
        f"{name} {scores[step][name]:.0f}" for name in ("likeness", "bleed", "drift") if name in scores[step]
    )
    measured = f"{told or 'by losses alone'}, score {with_error(best['score'], scores[step].get('error', math.nan))}"
    kept = best["file"] or f"step {step}, at which no LoRA file was saved"
    return best, f"best of {len(scores)} evaluations: {kept} ({measured}); images and details: {command}"


def _best_step(scores: Mapping[int, Mapping[str, Any]], values: Mapping[int, Mapping[str, Any]]) -> int:
    """The step whose model to keep, as `compare` chooses it; the one with the highest score without values of all."""
    steps = sorted(scores)
    shapes = {tuple((name, len(values.get(step, {}).get(name, ()))) for name in WEIGHED) for step in steps}
    if len(shapes) > 1 or not all(
        step in values and values[step].get("benefit") and values[step].get("drift") for step in steps
    ):
        return max(scores, key=lambda each: (math.isfinite(scores[each]["score"]), scores[each]["score"]))
    standings = [_standing_at(step, values[step]) for step in steps]
    return steps[best_and_close(standings, Rule())[0]]


def _standing_at(step: int, values: Mapping[str, Any]) -> Standing:
    benefit, bleed, drift = (Figure(tuple(values[name])) if values.get(name) else None for name in WEIGHED)
    assert benefit and drift, "written by values_of"
    return Standing(f"step {step}", benefit, bleed, drift, step=step)
