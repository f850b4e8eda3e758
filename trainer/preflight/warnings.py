"""What is allowed and seldom meant, told before a run starts: what only its data and its models can tell."""

from collections.abc import Iterator

from trainer.common.problems import Problem
from trainer.config import TrainConfig
from trainer.data.dataset import TrainingData
from trainer.models.text import CLIP_LENGTH, cut_captions
from trainer.optim.build import OptimizerSettings, optimizer_notices
from trainer.preflight.plan import AdapterPlan, RunPlan
from trainer.sampling.prompts import idle_negatives


def plan_notices(plan: RunPlan) -> list[Problem]:
    """All that is worth a warning."""
    config = plan.config
    return [
        *(Problem("settings", notice) for notice in optimizer_notices(config.select(OptimizerSettings))),
        *_cut_captions(plan),
        *_idle_with_data(config, plan.data),
        *_idle_with_model(config, plan.adapter),
        *idle_negatives(plan.sample_prompts),
    ]


def _cut_captions(plan: RunPlan) -> Iterator[Problem]:
    for reader, tokenizer, length, hint in (
        ("T5", plan.tokenizers.t5, plan.keys.t5_length, "shorten it, or raise --t5xxl_max_token_length"),
        ("CLIP", plan.tokenizers.clip, CLIP_LENGTH, "put what matters most first; T5 reads on"),
    ):
        for caption in cut_captions(tokenizer, plan.captions, length):
            yield Problem(f"{caption[:60]!r}…", f"{reader} reads only the first {length} tokens of this caption", hint)


def _idle_with_data(config: TrainConfig, data: TrainingData) -> Iterator[Problem]:
    idle = "has no effect: no subset has is_reg = true"
    if not any(subset.is_reg for subset in data.config.subsets):
        if config.prior_loss_weight != 1:
            yield Problem("--prior_loss_weight", idle)
        if config.diff_output_preservation:
            hint = "custom_attributes = { diff_output_preservation = true } sets it for any subset"
            yield Problem("--diff_output_preservation", idle, hint)
    validates = config.validate_every_n_epochs or config.validate_every_n_steps
    if data.validation and not validates and not config.validation_split:  # a flag's is told with the settings
        what = f"keeps {len(data.validation)} pictures out of training, and no validation looks at them"
        yield Problem("validation_split", what, "set --validate_every_n_epochs, or leave validation_split out")


def _idle_with_model(config: TrainConfig, adapter: AdapterPlan) -> Iterator[Problem]:
    if not adapter.base.takes_guidance and config.guidance_scale != 1:
        yield Problem("--guidance_scale", f"has no effect: {adapter.base.name} takes no guidance")
