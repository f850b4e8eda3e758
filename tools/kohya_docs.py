"""Write docs/reference/kohya.md from the tables that the program itself uses.

python tools/kohya_docs.py
"""

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from trainer.config.groups import OURS, SAME  # noqa: E402
from trainer.config.kohya import (  # noqa: E402 (the path is set first)
    ALWAYS,
    DOCS,
    REFUSED,
    REFUSED_VALUES,
)
from trainer.config.values import FIELDS, choices  # noqa: E402
from trainer.data import keys as dataset_keys  # noqa: E402
from trainer.lora import network_args  # noqa: E402

TARGET = ROOT / DOCS

INTRODUCTION = """\
# Coming from kohya's sd-scripts

<!-- Written by `python tools/kohya_docs.py` from the tables in trainer/. Change those, not this file. -->

Flags, TOML keys and file names are those of `flux_train_network.py`, so a command line or dataset file that works
there is understood here. This page lists every flag and key: **same**, **different** (and how), **always on** or
without meaning here, or **refused** (with what to use instead). Nothing is ignored silently: a setting without effect
is reported once when the run starts, a refused setting stops the run before anything is loaded, and an unknown one is
answered with the nearest known name. All problems are reported together, each with its flag or its file and line.

## How settings are read

- Flags override `--config_file FILE.toml`, which overrides the defaults. `--name value` and `--name=value` both work.
  If a flag is given twice, the last one counts, with a notice.
- `--flag` turns a switch on, and `--flag=false` turns it off, for example to override the config file.
- In the config file, `[sections]` are for readability only, as in kohya, and `.toml` may be left out of the file name.
  A key that is given twice is an error.
- `max_train_epochs` wins over `max_train_steps`, as in kohya. However, a `--max_train_steps` flag overrides a
  `max_train_epochs` in the config file.
- Steps may be given as a fraction of all steps: `--lr_warmup_steps=0.05` or `5%`.
- Abbreviated flags (`--net_dim`) are not accepted.
- A refused flag that is turned off (`fp8_base = false`) is accepted, since it asks for nothing.
- In double quotes, TOML reads `\\` as the start of an escape: write Windows paths as `'D:\\train\\toy'` or
  `"D:/train/toy"`.
- The resolved settings are written to `runs/NAME/config.toml`, which is itself a config file.

## Main differences

- **CLIP-L is not trained** unless `--text_encoder_lr` is above 0. kohya trains it unless
  `--network_train_unet_only` is given.
- **`network_alpha` defaults to `network_dim`**. kohya's default is 1, which divides the LoRA's strength by the rank.
- **The defaults are FLUX's**: `timestep_sampling=flux_shift`, `model_prediction_type=raw`,
  `guidance_scale=1.0`, `mixed_precision=bf16`, `save_precision=bf16`, and a fixed, recorded seed.
- **q, k and v have separate LoRAs** (and so has a single block's MLP). The file uses diffusers' names, which
  ComfyUI and diffusers load. `python -m trainer convert --format kohya` converts to kohya's names, exactly.
- **Everything is cached by content**, and captions may still vary between samples.
- **Resume is exact**, mid-epoch too.
- **Nothing is replaced** unless you ask for it. If an earlier run with the same `output_name` has left LoRA files,
  states or samples, a new run is refused, with their names. `--resume` continues that run; `--overwrite` replaces its
  files. kohya replaces them silently.
"""


def document() -> str:
    """The complete page."""
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
        *_table(("flag", "notice"), _rows(ALWAYS)),
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
        "A value is taken from the subset, else the dataset, else `[general]`, else the flag.",
        "",
        *_table(("key", "same, different, or refused"), _rows(dataset_keys.KEYS)),
        "",
    ]


def _network() -> list[str]:
    return [
        "## Keys of `--network_args`",
        "",
        "If several `network_reg_dims` match a layer, the last one counts (in kohya the first). Commas inside",
        "brackets belong to the expression. A key that matches no layer is an error.",
        "",
        *_table(("key", "meaning"), _rows(network_args.KEYS)),
        "",
        *_table(("refused key", "what to use"), _rows(network_args.REFUSED_KEYS)),
        "",
    ]


def _against(name: str) -> str:
    kohya = FIELDS[name].metadata["kohya"]
    return {SAME: "same", OURS: "not in kohya"}.get(kohya, f"different: {kohya}")


def _default(name: str) -> str:
    default = FIELDS[name].default
    if default in (None, (), ""):
        return ""
    options = choices(name)
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
