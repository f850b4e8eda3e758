"""Warnings for settings that are valid but probably unintended, as far as only data and models can tell."""

from collections.abc import Iterator

from trainer.common.problems import Problem
from trainer.common.text import counted
from trainer.config import TrainConfig
from trainer.data.dataset import TrainingData
from trainer.optim.build import OptimizerSettings, optimizer_notices
from trainer.preflight.captions import caption_warnings, long_caption_warnings
from trainer.preflight.plan import AdapterPlan, RunPlan
from trainer.sampling.prompt_syntax import prompt_notices


def plan_notices(plan: RunPlan) -> list[Problem]:
    """Warnings about settings, captions and prompts that are valid but probably unintended."""
    config = plan.config
    return [
        *(Problem("settings", notice) for notice in optimizer_notices(config.select(OptimizerSettings))),
        *caption_warnings(plan.data, plan.tokenizers),
        *long_caption_warnings(plan.data, plan.captions, plan.tokenizers, plan.keys.t5_length),
        *_idle_with_data(config, plan.data),
        *_idle_with_model(config, plan.adapter),
        *prompt_notices(plan.sample_prompts),
    ]


def _idle_with_data(config: TrainConfig, data: TrainingData) -> Iterator[Problem]:
    idle = "has no effect: no subset has is_reg = true"
    if not any(subset.is_reg for subset in data.config.subsets):
        if config.prior_loss_weight != 1:
            yield Problem("--prior_loss_weight", idle)
        if config.diff_output_preservation:
            hint = "custom_attributes = { diff_output_preservation = true } sets it for any subset"
            yield Problem("--diff_output_preservation", idle, hint)
    if config.class_preservation_weight and not data.class_words:
        hint = 'write what a concept is after its trigger, as in class_tokens = "tjtoy toy"'
        yield Problem("--class_preservation_weight", "has no effect: no concept has a class word", hint)
    validates = config.validate_every_n_epochs or config.validate_every_n_steps
    if data.validation and not validates and not config.validation_split:  # a flag is warned of with the settings
        what = f"keeps {counted(len(data.validation), 'image')} out of training, and no validation uses them"
        yield Problem("validation_split", what, "set --validate_every_n_epochs, or leave validation_split out")


def _idle_with_model(config: TrainConfig, adapter: AdapterPlan) -> Iterator[Problem]:
    if not adapter.base.takes_guidance and config.guidance_scale != 1:
        yield Problem("--guidance_scale", f"has no effect: {adapter.base.name} takes no guidance")
    ratio = "loraplus_text_encoder_lr_ratio"
    if config.text_encoder_lr == 0 and any(word.startswith(ratio) for word in config.network_args):
        yield Problem("--network_args", f"{ratio} has no effect: CLIP-L is not trained", "set --text_encoder_lr")
