"""What to draw: kohya's prompt files (.txt, .toml, .json), each line checked."""

import json
import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from trainer.common.files import out_of_reach
from trainer.common.problems import Problem, Problems, raise_if_any

LINE_OPTIONS = {"w": "width", "h": "height", "d": "seed", "s": "steps", "g": "guidance", "l": "cfg", "n": "negative"}


KOHYA_KEYS = {
    "sample_steps": "steps",
    "guidance_scale": "guidance",
    "scale": "cfg",
    "negative_prompt": "negative",
}


LEAST = {"width": 16, "height": 16, "steps": 1, "seed": 0}


MOST = {"seed": 2**63 - 1}


@dataclass(frozen=True)
class SamplePrompt:
    """One picture to make. guidance is FLUX's embedded guidance; cfg > 1 adds true classifier-free guidance."""

    prompt: str
    negative: str = ""
    width: int = 512
    height: int = 512
    seed: int | None = None
    steps: int = 20
    guidance: float = 3.5
    cfg: float = 1.0

    def texts(self) -> tuple[str, ...]:
        """The captions whose encodings this picture needs."""
        return (self.prompt, self.negative) if self.cfg > 1 else (self.prompt,)


def load_sample_prompts(path: Path) -> list[SamplePrompt]:
    """Read kohya's prompt file: .txt (one line each, `--w --h --d --s --g --l --n`), .toml or .json.

    Raises `Problems` naming each line that cannot be used.
    """
    if why := out_of_reach(path):
        raise Problems([Problem(f"--sample_prompts={path}", f"cannot be looked at: {why}")])
    if not path.is_file():
        raise Problems([Problem(f"--sample_prompts={path}", "no such file")])
    try:
        entries = _entries(path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Problems([Problem(str(path), f"cannot be read: {error}")]) from None
    problems: list[Problem] = []
    prompts = [prompt for where, values in entries if (prompt := read_prompt(where, values, problems))]
    if not entries:
        problems.append(Problem(str(path), "holds no prompt"))
    raise_if_any(problems)
    return prompts


def _entries(path: Path) -> list[tuple[str, dict[str, Any]]]:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".toml":
        table = tomllib.loads(text)["prompt"]
        shared = {key: value for key, value in table.items() if key != "subset"}
        return [(f"{path}: subset {i}", {**shared, **subset}) for i, subset in enumerate(table["subset"], 1)]
    if path.suffix == ".json":
        items = json.loads(text)
        if not isinstance(items, list) or not all(isinstance(item, str | dict) for item in items):
            raise ValueError("it is not a list of prompts, each a line or an object")
        return [(f"{path}: entry {i}", parse_line(e) if isinstance(e, str) else e) for i, e in enumerate(items, 1)]
    lines = [(i, line.strip()) for i, line in enumerate(text.splitlines(), 1)]
    return [(f"{path}: line {i}", parse_line(line)) for i, line in lines if line and not line.startswith("#")]


def parse_line(line: str) -> dict[str, Any]:
    """kohya's prompt line to the fields of `SamplePrompt`; an unknown option keeps its letters as its name."""
    prompt, *options = re.split(r"(?:^|\s)--(?=[A-Za-z]+\s)", line)
    values: dict[str, Any] = {"prompt": prompt.strip()}
    for option in options:
        letters, value = option.split(maxsplit=1)
        values[LINE_OPTIONS.get(letters.lower(), f"--{letters}")] = value.strip()
    return values


def read_prompt(where: str, values: Mapping[str, Any], problems: list[Problem]) -> SamplePrompt | None:
    """One prompt from texts or numbers by name, ours or kohya's; else None, with the reasons added to `problems`."""
    types = {field.name: field.type for field in fields(SamplePrompt)}
    values = {KOHYA_KEYS.get(key, key): value for key, value in values.items()}
    if not values.get("prompt"):
        problems.append(Problem(where, "holds no prompt"))
        return None
    found = [Problem(where, f"unknown option {key}") for key in values if key not in types]
    converted: dict[str, Any] = {}
    for key in values.keys() & types.keys():
        convert = str if types[key] is str else float if types[key] is float else int
        try:
            converted[key] = convert(values[key])
            if convert is float and not math.isfinite(converted[key]):
                raise ValueError
        except (TypeError, ValueError, OverflowError):
            found.append(Problem(where, f"{key} is not a number: {values.get(key)!r}"))
    for key, least in LEAST.items():
        if converted.get(key, least) < least:
            found.append(Problem(where, f"{key} {converted[key]} is below {least}"))
    for key, most in MOST.items():
        if converted.get(key, most) > most:
            found.append(Problem(where, f"{key} {converted[key]} is above {most}"))
    for side in ("width", "height"):
        if converted.get(side, 16) % 16:
            found.append(Problem(where, f"{side} {converted[side]} is not divisible by 16"))
    problems += found
    return None if found else SamplePrompt(**converted)
