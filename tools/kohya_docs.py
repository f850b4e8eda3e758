"""Write docs/reference/kohya.md from the tables that the program itself uses.

python tools/kohya_docs.py
"""

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import get_args

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from trainer.config.kohya import (  # noqa: E402 (the path is set first)
    ALWAYS,
    REFUSED,
    REFUSED_VALUES,
)
from trainer.config.settings import OURS, SAME  # noqa: E402
from trainer.config.values import FIELDS, kind  # noqa: E402
from trainer.data import keys as dataset_keys  # noqa: E402
from trainer.lora import network_args  # noqa: E402

TARGET = ROOT / "docs" / "reference" / "kohya.md"

INTRODUCTION = """\
# Coming from kohya's sd-scripts

<!-- Written by `python tools/kohya_docs.py` from the tables in trainer/. Change those, not this file. -->

Flags, TOML keys and file names are those of `flux_train_network.py`, so that a command line or a dataset
file that works there is understood here. This page lists every flag and key: **same**, **different** (how),
**always on** or without meaning here, or **refused** (what to use). Nothing that is accepted is ignored in
silence: a setting that has no effect is told once when the run starts, a refused one stops the run before
anything is loaded, and an unknown one is answered with the nearest known name. All mistakes of one call are
reported together.

## How settings are read

- Defaults < `--config_file FILE.toml` < flags. `--name value` and `--name=value` both work. Of a flag that
  is given twice the last one counts, and that is told.
- A switch is set by `--flag` and turned off by `--flag=false`, for instance against the config file.
- In the config file, `[sections]` are free and only for the eye, as with kohya; `.toml` may be left out of
  its name. A key that is written twice is an error.
- `max_train_epochs` wins over `max_train_steps`, as with kohya. A `--max_train_steps` flag, however, wins
  over a `max_train_epochs` that only the config file has.
- Steps may be given as a share of all steps: `--lr_warmup_steps=0.05` or `5%`.
- Abbreviated flags (`--net_dim`) are not guessed.
- A refused flag that is written down as turned off (`fp8_base = false`) asks for nothing and is accepted.
- The resolved settings are written to `runs/NAME/config.toml`, which is itself a config file.

## What differs most

- **CLIP-L is not trained** unless `--text_encoder_lr` is above 0. kohya trains it unless
  `--network_train_unet_only` is given.
- **`network_alpha` is `network_dim`** if it is not given; kohya's is 1, which divides the strength by the rank.
- **The defaults are FLUX's**: `timestep_sampling=flux_shift`, `model_prediction_type=raw`,
  `guidance_scale=1.0`, `mixed_precision=bf16`, `save_precision=bf16`, a fixed and recorded seed.
- **q, k and v have a LoRA each** (and a single block's MLP another); the file has diffusers' names, which
  ComfyUI and diffusers load. `python -m trainer convert --format kohya` writes kohya's names, exactly.
- **Everything is cached by content**, and captions may vary nevertheless.
- **Resume is exact**, in the middle of an epoch too.
"""


def document() -> str:
    """The whole page."""
    return "\n".join([INTRODUCTION, *_settings(), *_flags(), *_dataset(), *_network()])


def _settings() -> list[str]:
    lines = ["## Settings", ""]
    for group in dict.fromkeys(field.metadata["group"] for field in FIELDS.values()):
        names = [name for name, field in FIELDS.items() if field.metadata["group"] == group]
        rows = [(_code(name), _default(name), FIELDS[name].metadata["help"], _against(name)) for name in names]
        lines += [f"### {group}", "", *_table(("setting", "default", "meaning", "kohya"), rows), ""]
    return lines


def _flags() -> list[str]:
    values = {f"{name}={value}": use for (name, value), use in REFUSED_VALUES.items()}
    return [
        "## Always on, or without meaning here",
        "",
        *_table(("flag", "what is told"), _rows(ALWAYS)),
        "",
        "## Refused values",
        "",
        *_table(("setting", "what to use"), _rows(values)),
        "",
        "## Refused flags",
        "",
        *_table(("flag", "what to use"), _rows(REFUSED)),
        "",
    ]


def _dataset() -> list[str]:
    return [
        "## Keys of the dataset file",
        "",
        "Every value is looked for in the subset, then the dataset, then `[general]`, then the flags.",
        "",
        *_table(("key", "same, different, or refused"), _rows(dataset_keys.KEYS)),
        "",
    ]


def _network() -> list[str]:
    return [
        "## Keys of `--network_args`",
        "",
        "Of several matching `network_reg_dims` the last one counts (kohya: the first), and commas inside",
        "brackets belong to the expression. A key that reaches no layer is an error.",
        "",
        *_table(("key", "meaning"), _rows(network_args.KEYS)),
        "",
        *_table(("refused key", "what to use"), _rows(network_args.REFUSED_KEYS)),
        "",
    ]


def _against(name: str) -> str:
    kohya = FIELDS[name].metadata["kohya"]
    return {SAME: "same", OURS: "not there"}.get(kohya, f"different: {kohya}")


def _default(name: str) -> str:
    default = FIELDS[name].default
    if default in (None, (), ""):
        return ""
    options = get_args(kind(name))
    shown = str(default).lower() if isinstance(default, bool) else str(default)
    return f"{_code(shown)} of {', '.join(options)}" if len(options) > 1 and isinstance(default, str) else _code(shown)


def _rows(table: Mapping[str, str]) -> list[tuple[str, ...]]:
    return [(_code(name), text) for name, text in table.items()]


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    return [_row(head), _row(("---",) * len(head)), *map(_row, rows)]


def _row(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _code(text: str) -> str:
    return f"`{text}`"


if __name__ == "__main__":
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    TARGET.write_text(document(), encoding="utf-8")
    print(TARGET)
