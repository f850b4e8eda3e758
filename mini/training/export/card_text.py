"""The text of the model card. Every number in it comes from the figures."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Figures = Mapping[str, Any]

ABOUT = """\
A tiny text-to-image model with FLUX.1-dev's architecture, trained from scratch on images of a rendered toy world. It
lets you try LoRA training on any machine in minutes: the same code loads it, its layers have the same names, and it
takes the same guidance input as FLUX.1-dev. It shares no weights with FLUX.1-dev.

It generates {size} x {size} images of toys, gpu cards and a few simple things in {places} places. It does not know
`tjtoy` and `sparkgpu`, the two concepts of `flux_data`: designs that share more than half of their traits were kept
out of its training images.

![held-out prompts, consecutive seeds from {seed}]({sheet})

The first {shown} held-out prompts, {steps} Euler steps, guidance {guidance:g}, consecutive seeds, not cherry-picked."""

LIMITS = """\
- It generates its own small world and nothing else. Words from outside that world are read letter by letter.
- Images are {size} x {size}. Other sizes were never trained.
- Two objects in one image sometimes exchange colours, and small parts blur.
- It learns new concepts only coarsely. Figures measured on it show how a trainer behaves, not how good FLUX.1-dev will
  look."""

AGAIN = """\
```sh
python -m mini all --folder work --size {recipe}
```

`python -m mini --help` lists the stages; with `torchrun -m mini` they use several GPUs. The recipe is in
`mini/training/recipe.py`; the SHA-256 of its values is `{sha256}`, its seed {seed}.
Another kind of GPU or another number of processes generates other random numbers, and so a different model of the same
quality."""


def card_text(figures: Figures) -> str:
    """The model card: README.md of the exported folder."""
    recipe = figures["recipe"]
    sections = {
        "FLUX.1 mini": _about(figures),
        "Files": _files(figures["files"]),
        "Architecture": _architecture(recipe),
        "Scores": _scores(figures),
        "Training": _training(figures),
        "Limits": LIMITS.format(size=recipe["size"]),
        "How to re-create it": AGAIN.format(
            recipe=recipe["name"],
            sha256=figures["recipe_sha256"],
            seed=recipe["seed"],
        ),
        "License": "Apache-2.0, weights and tokenizers alike.",
    }
    titles = [f"{'#' if index == 0 else '##'} {title}" for index, title in enumerate(sections)]
    parts = (f"{title}\n\n{text}" for title, text in zip(titles, sections.values(), strict=True))
    return "---\nlicense: apache-2.0\npipeline_tag: text-to-image\n---\n\n" + "\n\n".join(parts) + "\n"


def _about(figures: Figures) -> str:
    recipe, sampling = figures["recipe"], figures["sampling"]
    return ABOUT.format(
        size=recipe["size"],
        places=figures["places"],
        shown=min(recipe["card_sheet"], sampling["prompts"]),
        sheet=figures["sheet"],
        **{name: sampling[name] for name in ("steps", "guidance", "seed")},
    )


def _files(files: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [
        (f"`{name}`", f"{each['parameters'] / 1e6:.2f} M", f"{each['bytes'] / 1e6:.1f} MB")
        for name, each in files.items()
    ]
    total = sum(each["bytes"] for each in files.values())
    rows.append(("total", "", f"{total / 1e6:.1f} MB"))
    return _table(("file", "parameters", "size"), rows) + (
        "\n\n`tokenizers/` holds both tokenizers, `prompts.json` the held-out prompts, `judge.safetensors` the"
        "\nclassifier that scores images (`python -m trainer evaluate`), `figures.json` every figure on this page."
        "\n`tuning_prompts.json` has other prompts: settings are chosen with them, and then scored with `prompts.json`."
    )


def _architecture(recipe: Figures) -> str:
    hidden = recipe["transformer_heads"] * recipe["transformer_head_width"]
    rows = [
        (
            "transformer",
            f"width {hidden} ({recipe['transformer_heads']} heads of {recipe['transformer_head_width']}),"
            f" {recipe['transformer_double_blocks']} double and {recipe['transformer_single_blocks']} single blocks,"
            f" RoPE axes {_listed(recipe['transformer_axes'])}, guidance embedding",
        ),
        (
            "autoencoder",
            f"downsampling 8, {recipe['latent_channels']} channels, widths {_listed(recipe['autoencoder_widths'])},"
            f" {recipe['autoencoder_layers']} layers per block; FLUX.1's shift and scale",
        ),
        (
            "T5",
            f"width {recipe['t5_width']}, {recipe['t5_layers']} layers, {recipe['t5_heads']} heads,"
            f" {recipe['text_length']} tokens (`t5xxl_max_token_length = {recipe['text_length']}`)",
        ),
        (
            "CLIP",
            f"width {recipe['clip_width']}, {recipe['clip_layers']} layers, {recipe['clip_heads']} heads, 77 tokens",
        ),
    ]
    return _table(("part", "size"), rows)


def _scores(figures: Figures) -> str:
    column, judge, autoencoder = figures["scores"]["columns"][0], figures["judge"], figures["autoencoder"]
    views = [name for name, value in judge.items() if isinstance(value, dict)]
    names = list(judge[views[0]])
    accuracy = _table(
        ("percent correct", *(view.replace("_", " ") for view in views)),
        [(name.replace("_", " "), *(f"{judge[view][name]:.1f}" for view in views)) for name in names],
    )
    generated = _table(
        ("what the prompts name", "percent correct"),
        [(name, f"{value:.1f}") for name, value in column["scores"].items()],
    )
    return (
        f"{figures['sampling']['prompts']} held-out prompts, {figures['sampling']['steps']} steps, guidance"
        f" {figures['sampling']['guidance']:g}, scored by the judge:\n\n{generated}\n\n"
        f"The accuracy of the judge itself, on {judge['pictures']} held-out renders:\n\n{accuracy}\n\n"
        f"The autoencoder on {autoencoder['pictures']} held-out renders: mean PSNR {autoencoder['psnr']:.1f} dB,"
        f" 10th percentile {autoencoder['psnr_lowest_tenth']:.1f} dB."
    )


def _training(figures: Figures) -> str:
    recipe, stages = figures["recipe"], figures["stages"]
    rows = []
    for name, stage in stages.items():
        batch = recipe.get(f"{name}_batch") or recipe.get(f"{name}_picture_batch")
        more = [f"{key.replace('_', ' ')} {value:.4g}" for key, value in stage.items() if key in RESULTS]
        rows.append(
            (
                name,
                f"{stage['steps']:,.0f}",
                f"{batch} x {stage['processes']}",
                f"{recipe[f'{name}_learning_rate']:g}",
                ", ".join(more),
                f"{stage['seconds'] / 60:.1f} min",
                "; ".join(stage["machines"]),
            )
        )
    seconds = sum(stage["seconds"] for stage in stages.values())
    lengths = [_length(name, stage["steps"], recipe[f"{name}_steps"]) for name, stage in stages.items()]
    return (
        f"{recipe['base_pictures']:,} rendered images and their mirror images for the model,"
        f" {recipe['judge_pictures']:,} others for the judge. AdamW throughout, seed {recipe['seed']}; the model's"
        f" weights are moving averages. {seconds / 60:.1f} minutes in the stages below.{''.join(lengths)}\n\n"
        + _table(("stage", "steps", "batch", "learning rate", "at the end", "time", "hardware"), rows)
    )


def _length(name: str, steps: float, planned: int) -> str:
    """A sentence if a stage took another number of steps than the recipe's."""
    if steps < planned:
        return f" The stage {name} was stopped after {steps:,.0f} of its {planned:,} steps."
    return f" The stage {name} continued beyond its {planned:,} steps." if steps > planned else ""


RESULTS = ("loss", "held_out_loss", "teacher_loss", "psnr", "latent_mean", "latent_deviation")


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
