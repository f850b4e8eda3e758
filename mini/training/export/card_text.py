"""The model card as text: words are written here, every number comes from the figures."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Figures = Mapping[str, Any]

ABOUT = """\
A very small text-to-image model of FLUX.1-dev's architecture, trained from scratch on pictures of a rendered toy
world. It is there to try the training of LoRA files on any machine in minutes: it is loaded by the same code, has
the same layers by the same names, and takes the same guidance as FLUX.1-dev. It shares no weight with it.

It knows {size} x {size} pictures of toys, gpu cards and a few simple things in {places} places. It does not know
`tjtoy` and `sparkgpu`, the two concepts of `flux_data`: designs that share more than half of their traits were kept
out of its world.

![held-out prompts, seeds in a row from {seed}]({sheet})

The first {shown} of the held-out prompts, {steps} Euler steps, guidance {guidance:g}, each with the next seed; nothing
was chosen."""

LIMITS = """\
- It draws its own small world and nothing else; a word from outside of it is read letter by letter.
- Pictures are {size} x {size}. Other sizes were never trained.
- Two objects in one picture at times exchange colours, and small parts blur.
- What it learns of a new concept is coarse. Figures measured on it say how a trainer behaves, not how good
  FLUX.1-dev will look."""

AGAIN = """\
```sh
python -m mini all --folder work --size {recipe}
```

`python -m mini --help` lists the stages; with `torchrun -m mini` they use several GPUs. The recipe is in
`mini/training/recipe.py`; its SHA-256 is `{sha256}`, seed {seed}.
Another kind of GPU or another number of processes draws other random numbers and gives another model, as good as
this one."""


def card_text(figures: Figures) -> str:
    """README.md of the exported folder."""
    recipe = figures["recipe"]
    sections = {
        "FLUX.1 mini": _about(figures),
        "Files": _files(figures["files"]),
        "Architecture": _architecture(recipe),
        "Scores": _scores(figures),
        "Training": _training(figures),
        "Limits": LIMITS.format(size=recipe["size"]),
        "How to make it again": AGAIN.format(
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
    rows.append(("in all", "", f"{total / 1e6:.1f} MB"))
    return _table(("file", "parameters", "size"), rows) + (
        "\n\n`tokenizers/` holds both tokenizers, `prompts.json` the held-out prompts, `judge.safetensors` the"
        "\nclassifier that scores pictures (`python -m trainer evaluate`), `figures.json` every figure of this page."
    )


def _architecture(recipe: Figures) -> str:
    hidden = recipe["transformer_heads"] * recipe["transformer_head_width"]
    rows = [
        (
            "transformer",
            f"width {hidden} ({recipe['transformer_heads']} heads of {recipe['transformer_head_width']}),"
            f" {recipe['transformer_double_blocks']} double and {recipe['transformer_single_blocks']} single blocks,"
            f" rotary axes {_listed(recipe['transformer_axes'])}, guidance embedded",
        ),
        (
            "autoencoder",
            f"8 times smaller, {recipe['latent_channels']} channels, widths {_listed(recipe['autoencoder_widths'])},"
            f" {recipe['autoencoder_layers']} layers a block; FLUX.1's shift and scale",
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
    return _table(("part", "numbers"), rows)


def _scores(figures: Figures) -> str:
    column, judge, autoencoder = figures["scores"]["columns"][0], figures["judge"], figures["autoencoder"]
    views = [name for name, value in judge.items() if isinstance(value, dict)]
    names = list(judge[views[0]])
    accuracy = _table(
        ("percent right", *(view.replace("_", " ") for view in views)),
        [(name.replace("_", " "), *(f"{judge[view][name]:.1f}" for view in views)) for name in names],
    )
    drawn = _table(
        ("of what the prompts name, percent", "drawn"),
        [(f"right {name}", f"{value:.1f}") for name, value in column["scores"].items()],
    )
    return (
        f"{figures['sampling']['prompts']} held-out prompts, {figures['sampling']['steps']} steps, guidance"
        f" {figures['sampling']['guidance']:g}, looked at by the judge:\n\n{drawn}\n\n"
        f"The judge itself, on {judge['pictures']} held-out renders that it was not trained on:\n\n{accuracy}\n\n"
        f"The autoencoder on {autoencoder['pictures']} held-out renders: {autoencoder['psnr']:.1f} dB PSNR in the mean,"
        f" {autoencoder['psnr_lowest_tenth']:.1f} dB at the lowest tenth."
    )


def _training(figures: Figures) -> str:
    recipe, stages = figures["recipe"], figures["stages"]
    rows = []
    for name, stage in stages.items():
        batch = recipe.get(f"{name}_batch") or recipe.get(f"{name}_picture_batch")
        more = [f"{key.replace('_', ' ')} {value:.4g}" for key, value in stage.items() if key in TOLD]
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
        f"{recipe['base_pictures']:,} rendered pictures and their mirror images for the model,"
        f" {recipe['judge_pictures']:,} others for the judge. AdamW throughout, seed {recipe['seed']}; weights are"
        f" moving averages. {seconds / 60:.1f} minutes in the stages below.{''.join(lengths)}\n\n"
        + _table(("stage", "steps", "batch", "learning rate", "at the end", "time", "on"), rows)
    )


def _length(name: str, steps: float, planned: int) -> str:
    """A sentence where a stage did not take the recipe's number of steps."""
    if steps < planned:
        return f" The stage {name} was ended after {steps:,.0f} of its {planned:,} steps."
    return f" The stage {name} went on after its {planned:,} steps." if steps > planned else ""


TOLD = ("loss", "held_out_loss", "teacher_loss", "psnr", "latent_mean", "latent_deviation")


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
