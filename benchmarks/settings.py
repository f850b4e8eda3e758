"""The settings to measure: presets and the user's own, each as training flags."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trainer.common.problems import Problem, Problems

PLAYBOOK = """
    --prior_loss_weight=1.0 --save_model_as=safetensors --network_module=networks.lora_flux --network_dim=256
    --network_alpha=256 --learning_rate=1.0 --optimizer_type=Prodigy --lr_scheduler=cosine_with_restarts
    --gradient_accumulation_steps 4 --gradient_checkpointing --sdpa --max_train_epochs=100
    --save_every_n_epochs=25 --mixed_precision=bf16 --guidance_scale=1.0 --timestep_sampling=flux_shift
    --model_prediction_type=raw --torch_compile --persistent_data_loader_workers --cache_latents
    --cache_latents_to_disk --cache_text_encoder_outputs --cache_text_encoder_outputs_to_disk
""".split()
RANK_16 = """
    --network_dim=16 --learning_rate=1e-4 --optimizer_type=AdamW --mixed_precision=bf16 --torch_compile
""".split()
PRESETS: dict[str, tuple[str, Sequence[str]]] = {
    "rank16": ("rank 16, AdamW, compiled, no checkpointing", RANK_16),
    "checkpointed": ("rank 16 with checkpointing", [*RANK_16, "--gradient_checkpointing"]),
    "playbook": ("the playbook: rank 256, accumulation 4, Prodigy, checkpointing, compiled", PLAYBOOK),
    "playbook-fast": ("the playbook without checkpointing", [*PLAYBOOK, "--gradient_checkpointing=false"]),
    "512": ("rank 16 at 512 px, batches of 4", [*RANK_16, "--resolution=512", "--train_batch_size=4"]),
    "eager": ("rank 16, not compiled", [*RANK_16, "--torch_compile=false"]),
}
# the bench sets these: the length of a run, what it writes, and where
DECIDED = frozenset(
    "max_train_steps max_train_epochs output_dir output_name run_dir cache_dir log_with log_every resume overwrite"
    " save_every_n_epochs save_every_n_steps config_file".split()
)
ON_CPU = ["--mixed_precision=no", "--torch_compile=false"]


@dataclass(frozen=True)
class Setting:
    """One setting to measure: its name, and flags of `trainer train`."""

    name: str
    flags: tuple[str, ...]


def read_settings(
    presets: Sequence[str], own: Sequence[str], flags: Sequence[str], defaults: Sequence[str], on_gpu: bool
) -> list[Setting]:
    """The settings of a command line, in its order. Raises `Problems`.

    own: NAME=FLAGS, where FLAGS may begin with the name of a preset. flags: apply to all settings and override them.
    defaults: the flags of the model's size; presets override them. On the CPU, presets compute in float32 and are not
    compiled.
    """
    named: list[tuple[str, Sequence[str]]] = [(name, [name]) for name in presets]
    problems: list[Problem] = []
    for text in own:
        name, equals, words = text.partition("=")
        if not equals or not name.strip() or name.startswith("-"):
            problems.append(Problem(f"--setting {text!r}", "has no name", 'write --setting "NAME=--flag value …"'))
            continue
        named.append((name.strip(), shlex.split(words)))
    settings = []
    for name, words in named or [("rank16", ["rank16"])]:
        preset, rest = _preset(name, words, problems)
        if preset and not on_gpu:
            preset = merge_flags(preset, ON_CPU)
        merged = merge_flags(defaults, preset, rest, flags)
        problems += _decided(name, [*rest, *flags])
        settings.append(Setting(name, tuple(word for word in merged if not _is_decided(word))))
    problems += _repeated(settings)
    if problems:
        raise Problems(dict.fromkeys(problems))
    return settings


def _preset(name: str, words: Sequence[str], problems: list[Problem]) -> tuple[list[str], list[str]]:
    """The flags of a preset, and the words after its name."""
    if not words or words[0].startswith("-"):
        return [], list(words)
    if words[0] not in PRESETS:
        problems.append(Problem(name, f"{words[0]!r} is not a preset", f"choose from {', '.join(PRESETS)}"))
        return [], []
    return list(PRESETS[words[0]][1]), list(words[1:])


def _decided(name: str, words: Sequence[str]) -> list[Problem]:
    found = [flag for flag in by_name(words) if flag in DECIDED]
    hint = "leave it out; --pictures and --warm_up set the length of a run, --work its folder"
    return [Problem(f"--{flag}", f"is set by the bench (in {name})", hint) for flag in found]


def _is_decided(word: str) -> bool:
    return word.startswith("--") and word[2:].partition("=")[0] in DECIDED


def _repeated(settings: Sequence[Setting]) -> list[Problem]:
    names = [setting.name for setting in settings]
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    return [Problem(name, "is the name of two settings", "give each setting its own name") for name in twice]


def by_name(words: Sequence[str]) -> Mapping[str, list[str]]:
    """Flags by name, each with its words; the last of several with the same name counts."""
    groups: dict[str, list[str]] = {}
    current: list[str] = []
    for word in words:
        if word.startswith("--"):
            name = word[2:].partition("=")[0]
            groups.pop(name, None)
            current = groups[name] = [word]
        else:
            current.append(word)
    return groups


def merge_flags(*lists: Sequence[str]) -> list[str]:
    """Merge command lines; a flag of a later list replaces that of an earlier one."""
    groups: dict[str, list[str]] = {}
    for words in lists:
        groups |= by_name(words)
    return [word for words in groups.values() for word in words]
