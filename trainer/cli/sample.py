"""`python -m trainer sample --prompt "…" [--lora FILE[:WEIGHT]] …`: generate images without training.

The flags for model files are those of train. The config_file of a training may be given too: its other settings are
ignored, but a flag that has no effect here is refused.
"""

import argparse
import difflib
import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import torch
from accelerate import Accelerator
from PIL import Image

from trainer.cli.convert import class_words_of, parse_source
from trainer.common.devices import free_memory
from trainer.common.disk import output_problems
from trainer.common.problems import Problem, Problems, raise_if_any
from trainer.common.process import set_up_logging
from trainer.config import TrainConfig, parse_config
from trainer.config.fields import Given
from trainer.config.paths import path_flag
from trainer.config.settings import MAX_SEED
from trainer.config.sources import CONFIG_FILE, read_flags
from trainer.data.generated import cache_folder
from trainer.engine.sampling_model import Sequences, compiled, load_adapted
from trainer.lora.convert import merge
from trainer.lora.file import LoraFile, load_lora
from trainer.lora.routed_files import RoutedLora, route_loras
from trainer.models.load import load_autoencoder
from trainer.models.quantized import Precision, precision_problems
from trainer.models.text import Tokenizers
from trainer.models.transformer import Conditioning, predict_velocity
from trainer.preflight.check import check_models
from trainer.routing.masks import mask_pixels
from trainer.routing.words import route_prompt
from trainer.sampling.adapted import encode_texts
from trainer.sampling.prompt_syntax import prompt_notices
from trainer.sampling.prompts import SamplePrompt, load_sample_prompts, read_prompt
from trainer.sampling.routed import Router
from trainer.sampling.sampler import as_image, decode_picture, sample_latents, save_picture, start_noise
from trainer.sampling.step_cache import StepCache

log = logging.getLogger(__name__)
DEFAULTS = SamplePrompt("", width=1024, height=1024, steps=28)
MASKS = ".masks.png"  # in place of an image's suffix: the regions of its LoRAs
OF_PROMPT = ("width", "height", "steps", "guidance", "cfg", "negative")
OF_TRAIN = (
    "pretrained_model_name_or_path",
    "clip_l",
    "t5xxl",
    "ae",
    "tokenizer_dir",
    "t5xxl_max_token_length",
    "apply_t5_attn_mask",
    "mixed_precision",
    "sample_prompts",
    CONFIG_FILE,
)


@dataclass(frozen=True)
class SampleJob:
    """What to generate: prompts, each with its seed, the LoRA (merged if several), and the output folder.

    lora_names: the LoRA files as given on the command line, stored with each image; routed: with --route, the LoRAs
    that act in their own regions, in place of `lora`. step_cache: the tolerance of a `StepCache`, or None to evaluate
    every step. base_precision: of the transformer's blocks; compiles: whether they are compiled.
    """

    prompts: tuple[SamplePrompt, ...]
    lora: LoraFile | None
    lora_names: str
    output: Path
    routed: tuple[RoutedLora, ...] = ()
    step_cache: float | None = None
    base_precision: Precision = "bf16"
    compiles: bool = False


@dataclass(frozen=True)
class Generated:
    """One image: its latents [1, C, H/8, W/8].

    masks: with --route those of the LoRAs, [LoRAs, image tokens]. skipping: with --step_cache, in words, how many steps
    were evaluated and how far off the others may be.
    """

    latents: torch.Tensor
    masks: torch.Tensor | None = None
    skipping: str | None = None


def run(argv: Sequence[str]) -> int:
    """Generate an image for each prompt, write it to --output and print its path.

    argv: the flags after `sample`. Returns the exit status, 0. Raises `Problems`.
    """
    job, config, notices = parse(argv)
    set_up_logging()
    for notice in notices:
        log.info("%s", notice)
    tokenizers = check_models(config)
    raise_if_any(precision_problems(job.base_precision))
    device = Accelerator(mixed_precision="no").device
    dtype = torch.float32 if device.type == "cpu" or config.mixed_precision == "no" else torch.bfloat16
    wanted = [text for prompt in job.prompts for text in prompt.texts()]
    wanted += [class_text for prompt in job.prompts if (class_text := _class_text(prompt, job.routed))]
    texts = encode_texts(config, job.lora, list(dict.fromkeys(wanted)), tokenizers, device, dtype)
    generated = _draw(config, job, texts, tokenizers, device, dtype)
    assert config.ae
    vae = load_autoencoder(config.ae, device, dtype)
    for index, (prompt, drawn) in enumerate(zip(job.prompts, generated, strict=True)):
        path = _image_file(job.output, index, prompt)
        facts = {name: getattr(prompt, name) for name in ("prompt", "negative", "seed", "steps", "guidance", "cfg")}
        facts |= {"lora": job.lora_names} | ({"routed": True} if job.routed else {})
        facts |= {} if job.base_precision == "bf16" else {"base_precision": job.base_precision}
        if drawn.skipping:
            facts["step_cache"] = f"{job.step_cache:g}: {drawn.skipping}"
            log.info("%s: %s", path.name, drawn.skipping)
        save_picture(path, decode_picture(vae, drawn.latents), facts)
        print(path)
        if drawn.masks is not None:
            height, width = prompt.height, prompt.width
            pixels = mask_pixels(drawn.masks, height // 16, width // 16, height, width)
            save_picture(path.with_suffix(MASKS), as_image(pixels.permute(2, 0, 1)), facts)
            print(path.with_suffix(MASKS))
    return 0


def parse(argv: Sequence[str]) -> tuple[SampleJob, TrainConfig, tuple[str, ...]]:
    """Read the flags after `sample`, prompt file and LoRA files: the job, the models' settings, and notices.

    Raises `Problems` with everything that is wrong with flags and prompts.
    """
    given, rest = _parser().parse_known_args(argv)
    written = read_flags(rest)
    problems = _foreign_flags(written.settings)
    refused = {problem.where for problem in problems}
    config, listed = TrainConfig(), []
    try:
        config, _ = parse_config(rest)  # its notices are about training
        listed = load_sample_prompts(config.sample_prompts) if config.sample_prompts else []
    except Problems as found:
        problems += [problem for problem in found.problems if problem.where not in refused]
    prompts = _seeded([*_own_prompts(given, problems), *listed], given.seed, problems)
    if not prompts and not problems:
        problems.append(Problem("--prompt", "not given", 'for example --prompt "tjtoy toy on a desk"'))
    if given.class_words and not given.route:
        problems.append(Problem("--class_words", "acts with --route only", "add --route or remove it"))
    problems += _step_cache_problems(given)
    problems += _route_problems(given)
    images = [_image_file(given.output, index, prompt) for index, prompt in enumerate(prompts)]
    images += [path.with_suffix(MASKS) for path in images] if given.route else []
    problems += output_problems([("--output", path) for path in images], given.overwrite, _is_own)
    raise_if_any(problems)
    sources = [parse_source(text) for text in given.lora]
    loras = [(source.path.stem, load_lora(source.path), source.weight) for source in sources]
    names, output = " ".join(given.lora), given.output
    if given.route:
        named = [(str(s.path), lora, s.weight) for s, (_, lora, _) in zip(sources, loras, strict=True)]
        routed, left_out = _routed(named, given.class_words)
        job = SampleJob(tuple(prompts), None, names, output, tuple(routed))
        left_out += [f"{each.prompt!r} calls no LoRA" for each in prompts if not _class_text(each, job.routed)]
    else:
        lora = merge(loras) if loras else None
        how = {"step_cache": given.step_cache, "base_precision": given.base_precision, "compiles": given.compile}
        job, left_out = SampleJob(tuple(prompts), lora, names, output, **how), []
    assumed = [
        f"--lora={source.path}: {lora.note}" for source, (_, lora, _) in zip(sources, loras, strict=True) if lora.note
    ]
    return job, config, (*written.notices, *assumed, *left_out, *map(str, prompt_notices(prompts)))


def _image_file(output: Path, index: int, prompt: SamplePrompt) -> Path:
    return output / f"{index:03d}-seed{prompt.seed}.png"


def _is_own(path: Path) -> bool:
    """Whether an image has the facts that this command writes into its own."""
    try:
        with Image.open(path) as image:
            return {"prompt", "lora"} <= image.info.keys()
    except OSError:
        return False


def _step_cache_problems(given: argparse.Namespace) -> list[Problem]:
    if given.step_cache is None or given.route:
        return []
    if not 0 < given.step_cache < math.inf:
        what = f"{given.step_cache:g} is no tolerance above 0"
        return [Problem("--step_cache", what, "for example 0.1, which skips about half of 28 steps")]
    return []


def _route_problems(given: argparse.Namespace) -> list[Problem]:
    """Problems for flags that act on all of an image, where --route lets each LoRA act on its region."""
    used = {"step_cache": given.step_cache is not None, "compile": given.compile}
    used["base_precision"] = given.base_precision != "bf16"
    hint = "leave one of the two out"
    return [
        Problem(f"--{name}", "cannot be combined with --route", hint) for name, on in used.items() if on and given.route
    ]


def _routed(
    loras: Sequence[tuple[str, LoraFile, float]], class_words: Sequence[str]
) -> tuple[list[RoutedLora], list[str]]:
    """The LoRAs of --route, and notices on what of them is left out."""
    if not loras:
        raise Problems([Problem("--route", "no LoRA to route", "give --lora FILE, once for each concept")])
    return route_loras(loras, class_words_of(class_words))


def _class_text(prompt: SamplePrompt, routed: Sequence[RoutedLora]) -> str | None:
    """The prompt with class words in place of triggers; None if it has no trigger."""
    route = route_prompt(prompt.prompt, [lora.triggers for lora in routed])
    return route.class_text if route.called else None


def _parser() -> argparse.ArgumentParser:
    epilog = f"Flags of train that have an effect here: {', '.join(f'--{name}' for name in OF_TRAIN)}."
    parser = argparse.ArgumentParser("python -m trainer sample", description=__doc__, epilog=epilog, allow_abbrev=False)
    parser.add_argument("--prompt", action="append", default=[], help="may be given several times")
    parser.add_argument(
        "--lora",
        action="append",
        default=[],
        metavar="FILE[:WEIGHT]",
        help="several add up",
    )
    parser.add_argument("--route", action="store_true", help="each LoRA acts only where its trigger's words attend")
    parser.add_argument(
        "--class_words",
        action="append",
        default=[],
        metavar="TRIGGER=WORDS",
        help='with --route: what the base model calls it, as "tjtoy toy=a toy"; usually the words after the first one',
    )
    parser.add_argument(
        "--step_cache",
        type=float,
        metavar="TOLERANCE",
        help="skip steps in which the velocity should change by less than this share, such as 0.1; the error is logged",
    )
    parser.add_argument(
        "--base_precision",
        choices=get_args(Precision),
        default="bf16",
        help="of the transformer's blocks: fewer bits take less memory and change the image slightly (%(default)s)",
    )
    parser.add_argument(
        "--compile", action="store_true", help="compile first, which pays for many images (needs Triton)"
    )
    parser.add_argument("--output", type=path_flag, default=Path("output"), help="output folder (%(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace files there that sample did not write")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first image; the next has the next seed")
    for name in OF_PROMPT:
        about = getattr(DEFAULTS, name) or "negative prompt; needs --cfg above 1"
        parser.add_argument(f"--{name}", help=str(about))
    return parser


def _foreign_flags(names: Iterable[str]) -> list[Problem]:
    """Problems for flags that only train reads, or that do not exist."""
    known = [
        *OF_TRAIN,
        "prompt",
        "lora",
        "route",
        "class_words",
        "step_cache",
        "base_precision",
        "compile",
        "output",
        "overwrite",
        "seed",
    ]
    known += OF_PROMPT
    problems = []
    for name in sorted({*names} - {*OF_TRAIN}):
        near = difflib.get_close_matches(name.lower().replace("-", "_"), known, n=1)
        hint = f"did you mean --{near[0]}?" if near else "remove it; sample --help lists the flags"
        problems.append(Problem(f"--{name}", "is not read by sample", hint))
    return problems


def _own_prompts(given: argparse.Namespace, problems: list[Problem]) -> list[SamplePrompt]:
    """The prompts of --prompt, read by the rules of a prompt file."""
    options = {name: value for name in OF_PROMPT if (value := getattr(given, name)) is not None}
    usual = {name: getattr(DEFAULTS, name) for name in OF_PROMPT}
    if options and not given.prompt:
        hint = "give it in the file, for each prompt"
        problems += [Problem(f"--{name}", "acts on --prompt, which is not given", hint) for name in options]
    written = [Given(name, value, f"--{name}", from_text=True) for name, value in {**usual, **options}.items()]
    read = [read_prompt("--prompt", [Given("prompt", text, "--prompt"), *written]) for text in given.prompt]
    problems += dict.fromkeys(problem for _, found in read for problem in found)
    return [prompt for prompt, _ in read if prompt]


def _seeded(prompts: Sequence[SamplePrompt], seed: int, problems: list[Problem]) -> list[SamplePrompt]:
    """Give each prompt without a seed the first seed plus its index."""
    most = MAX_SEED - len(prompts)
    if not 0 <= seed <= most:
        problems.append(Problem("--seed", f"{seed} is not from 0 to {most}"))
    return [p if p.seed is not None else replace(p, seed=seed + i) for i, p in enumerate(prompts)]


def _draw(
    config: TrainConfig,
    job: SampleJob,
    texts: dict[str, Conditioning],
    tokenizers: Tokenizers,
    device: torch.device,
    dtype: torch.dtype,
) -> list[Generated]:
    assert config.pretrained_model_name_or_path
    txt_tokens = next(iter(texts.values())).txt.shape[1]
    sequences = Sequences.of(job.prompts, txt_tokens, config.apply_t5_attn_mask) if job.compiles else None
    path, predict = config.pretrained_model_name_or_path, predict_velocity
    transformer = load_adapted(path, job.lora, device, dtype, job.base_precision, sequences)
    if sequences:
        folder = cache_folder(config)
        predict = compiled(transformer, len(sequences.img_tokens), folder / "compiled" if folder else None)
    router = Router(transformer, job.routed, tokenizers.t5) if job.routed else None
    generated = []
    for prompt in job.prompts:
        positive, *negatives = (texts[text] for text in prompt.texts())
        negative = negatives[0] if negatives else None
        assert prompt.seed is not None
        if router and (route := router.route(prompt.prompt)).called:
            noise = start_noise(transformer, prompt, [prompt.seed])
            images = router.sample(noise, prompt, [route], positive, texts[route.class_text], negative)
            generated.append(Generated(images.latents, images.masks[0]))
        else:
            cache = StepCache(job.step_cache, prompt.steps) if job.step_cache else None
            latents = sample_latents(transformer, prompt, prompt.seed, positive, negative, cache, predict)
            generated.append(Generated(latents, skipping=cache.summary if cache else None))
    del transformer, router
    free_memory(device)
    return generated
