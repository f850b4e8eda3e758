"""Which images to sample: kohya's prompt files (.txt, .toml, .json), every entry validated."""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from trainer.common.files import out_of_reach
from trainer.common.problems import Problem, Problems, raise_if_any
from trainer.common.utf8 import read_utf8, split_lines
from trainer.config.fields import Given, Schema, Spec
from trainer.config.toml_file import read_toml
from trainer.config.values import SPECS

LINE_OPTIONS = {"w": "width", "h": "height", "d": "seed", "s": "steps", "g": "guidance", "l": "cfg", "n": "negative"}
OTHER_NAMES = {  # kohya's in JSON and TOML, and those of its other options in a line
    "sample_steps": "steps",
    "guidance_scale": "guidance",
    "scale": "cfg",
    "negative_prompt": "negative",
    "ss": "sample_sampler",
    "cn": "controlnet_image",
    "fs": "flow_shift",
}
OPTION = re.compile(r"(?<!\S)--([A-Za-z][A-Za-z_]*)(?:\s*=\s*|\s+|(?=-?[\d.])|$)")
# an option after one hyphen, after two and a space, or after the dash that a word processor makes of two
MISTYPED = re.compile(r"(?<!\S)(?:-|--\s+|[–—−]-?)([whdsgl])(?=\s*=?\s*\d)|(?<!\S)[–—−]-?(n)(?=[\s=])", re.IGNORECASE)
UNSPACED = re.compile(r"(?<=\S)--([whdsgl])(?=\s*=?\s*\d)", re.IGNORECASE)  # "a toy--w 256"
EMPTY = ('""', "''")
PROMPT = Schema(
    specs={
        "prompt": Spec(),
        "negative": Spec(),
        "width": Spec(type=int, ge=16, multiple_of=16),
        "height": Spec(type=int, ge=16, multiple_of=16),
        "seed": SPECS["seed"],
        "steps": Spec(type=int, ge=1),
        "guidance": Spec(type=float),
        "cfg": Spec(type=float),
        "sample_sampler": SPECS["sample_sampler"],
    },
    noun="an option of a prompt",
    refused={
        "controlnet_image": "leave it out; samples use no ControlNet",
        "flow_shift": "leave it out; the shift is computed from the image size",
    },
    listing="the options are --w width, --h height, --d seed, --s steps, --g guidance, --l cfg, --n negative",
)


@dataclass(frozen=True)
class SamplePrompt:
    """One image to sample.

    width, height: in pixels; steps: of the Euler sampler; guidance: FLUX's embedded guidance; cfg: true classifier-free
    guidance with the negative prompt, if above 1; seed: None for the caller's choice; where: file and line, or flag,
    for messages.
    """

    prompt: str
    negative: str = ""
    width: int = 512
    height: int = 512
    seed: int | None = None
    steps: int = 20
    guidance: float = 3.5
    cfg: float = 1.0
    where: str = field(default="", compare=False)

    def texts(self) -> tuple[str, ...]:
        """The texts to encode for this image: the prompt, and the negative prompt only if cfg is above 1."""
        return (self.prompt, self.negative) if self.cfg > 1 else (self.prompt,)


PROMPT_FIRST = "write the prompt, and its options behind it"


@dataclass(frozen=True)
class Entry:
    """One entry of a prompt file as it was written.

    where: file and line; written: its values, not yet validated; problems: what was found while it was split into them.
    """

    where: str
    written: Sequence[Given]
    problems: Sequence[Problem] = ()


def load_sample_prompts(path: Path) -> list[SamplePrompt]:
    """Read kohya's prompt file: .txt (a prompt per line, `--w --h --d --s --g --l --n`), .toml or .json.

    Raises `Problems` with everything that is wrong, each with its line.
    """
    flag = f"--sample_prompts={path}"
    if why := out_of_reach(path):
        raise Problems([Problem(flag, f"cannot be accessed: {why}")])
    if not path.is_file():
        raise Problems([Problem(flag, "is not a file" if path.exists() else "no such file")])
    readers = {"": _text_entries, ".txt": _text_entries, ".toml": _toml_entries, ".json": _json_entries}
    if path.suffix.lower() not in readers:
        raise Problems([Problem(flag, f"{path.suffix} is not a prompt file", "save it as .txt, .toml or .json")])
    problems: list[Problem] = []
    prompts: list[SamplePrompt] = []
    entries = readers[path.suffix.lower()](path)
    for entry in entries:
        prompt, found = read_prompt(entry.where, entry.written)
        problems += [*entry.problems, *found]
        prompts += [prompt] if prompt else []
    if not entries:
        hint = "write one prompt per line" if path.suffix.lower() in ("", ".txt") else ""
        problems.append(Problem(f"{path}:1", "has no prompt", hint))
    raise_if_any(dict.fromkeys(problems))
    return prompts


def read_prompt(where: str, written: Iterable[Given]) -> tuple[SamplePrompt | None, list[Problem]]:
    """Validate one prompt; returns it and no problems, or None and every problem.

    where: the file and line, or flag, to name in problems; written: its values, under our names or kohya's.
    """
    given = [_renamed(each) for each in written if each.value is not None]
    given = [each for each in given if each.name != "prompt" or str(each.value).strip()]
    read = PROMPT.read(given)
    problems = [] if any(each.name == "prompt" for each in given) else [Problem(where, "has no prompt", PROMPT_FIRST)]
    problems += _options_in_text(where, str(read.values.get("prompt", "")))
    problems += _other_programs_line(where, str(read.values.get("prompt", "")))
    if problems := problems + read.problems:
        return None, problems
    names = {each.name for each in fields(SamplePrompt)}
    values = {name: value for name, value in read.values.items() if name in names}
    return SamplePrompt(**values, where=where), []


def idle_negatives(prompts: Sequence[SamplePrompt]) -> list[Problem]:
    """One notice about all negative prompts that have no effect because cfg is at most 1; empty if there are none."""
    idle = [prompt for prompt in prompts if prompt.negative and prompt.cfg <= 1]
    if not idle:
        return []
    more = f" (and {len(idle) - 1} more)" if len(idle) > 1 else ""
    what = f"the negative prompt has no effect with cfg {idle[0].cfg:g}{more}"
    return [Problem(idle[0].where, what, "set cfg above 1 (--l 4 in a prompt file), or leave the negative prompt out")]


def _options_in_text(where: str, prompt: str) -> list[Problem]:
    """Options of a prompt line in a prompt that is not such a line, where they would be read as text."""
    names = dict.fromkeys(option[1] for option in OPTION.finditer(prompt) if option[1].lower() in LINE_OPTIONS)
    return [
        Problem(where, f"--{name} is part of the prompt", f"give {LINE_OPTIONS[name.lower()]} a value of its own")
        for name in names
    ]


def _other_programs_line(where: str, prompt: str) -> list[Problem]:
    """Lines that describe the prompt above them, as other programs write them; each would be a prompt of its own."""
    if re.match(r"negative prompt\s*:", prompt, re.IGNORECASE):
        return [Problem(where, "is another program's negative prompt", "write --n and the text behind the prompt")]
    if re.match(r"steps:\s*\d+,", prompt, re.IGNORECASE):
        return [Problem(where, "is another program's settings", "write them behind the prompt, as in --s 20 --d 1")]
    return []


def _renamed(given: Given) -> Given:
    """The value under our name; a whole number may be written 256.0, as some JSON writers do."""
    name = given.name.lower()
    name = OTHER_NAMES.get(name) or LINE_OPTIONS.get(name, name)
    value = given.value
    if isinstance(value, float) and value.is_integer() and PROMPT.specs.get(name, Spec()).type is int:
        value = int(value)
    return Given(name, value, given.where, from_text=True, subject=given.subject)


def parse_line(line: str, where: str = "") -> tuple[list[Given], list[Problem]]:
    """Split one of kohya's prompt lines, like "a toy --w 512 --s 20", into the prompt and its options, not validated.

    where: file and line, for problems. The problems returned are about text that looks like a mistyped option.
    """
    options = list(OPTION.finditer(line))
    ends = [option.start() for option in options] + [len(line)]
    prompt = line[: ends[0]].strip()
    given = [Given("prompt", prompt, where, subject="prompt")]
    for option, end in zip(options, ends[1:], strict=True):
        letters, value = option[1], line[option.end() : end].strip()
        name = LINE_OPTIONS.get(letters.lower(), letters)
        given.append(Given(name, "" if value in EMPTY else value, where, subject=f"--{letters}"))
    mistyped = [next(filter(None, match.groups())) for match in MISTYPED.finditer(prompt)]
    problems = [Problem(where, f"-{letter} is part of the prompt", f"write --{letter}") for letter in mistyped]
    for letter in UNSPACED.findall(prompt):
        problems.append(Problem(where, f"--{letter} is part of the prompt", f"write a space before --{letter}"))
    return given, problems


def _line_entry(line: str, where: str) -> Entry:
    return Entry(where, *parse_line(line, where))


def _text_entries(path: Path) -> list[Entry]:
    lines = ((number, line.strip()) for number, line in enumerate(split_lines(read_utf8(path)), start=1))
    return [_line_entry(line, f"{path}:{number}") for number, line in lines if line and not line.startswith("#")]


def _toml_entries(path: Path) -> list[Entry]:
    """One for each [[prompt.subset]], with the keys of [prompt] as defaults."""
    file = read_toml(path)
    table = file.values.get("prompt")
    subsets = table.get("subset") if isinstance(table, dict) else None
    if not isinstance(table, dict) or not isinstance(subsets, list) or not all(isinstance(s, dict) for s in subsets):
        hint = 'write [prompt], and [[prompt.subset]] with prompt = "..." for each image'
        raise Problems([Problem(file.where("prompt", 0), "has no [[prompt.subset]]", hint)])
    strays = [name for name in file.values if name != "prompt"]
    if strays:
        hint = "put the defaults of all prompts under [prompt], and each prompt under [[prompt.subset]]"
        raise Problems(Problem(file.where(name), f"{name} is not a table of a prompt file", hint) for name in strays)
    entries = []
    for index, subset in enumerate(subsets):
        place = ("prompt", "subset", index)
        own = [Given(name, value, file.where(*place, name), subject=name) for name, value in subset.items()]
        shared = [
            Given(name, value, file.where("prompt", name), subject=name)
            for name, value in table.items()
            if name != "subset" and name not in subset
        ]
        entries.append(Entry(file.where(*place), shared + own))
    return entries


def _json_entries(path: Path) -> list[Entry]:
    """One for each item of a list: an object, or a line as in a text file."""
    text = read_utf8(path)
    decoder = json.JSONDecoder(object_pairs_hook=tuple)  # pairs, so that a key that is given twice is seen
    try:
        items = decoder.decode(text)
    except json.JSONDecodeError as error:
        line = text.split("\n")[error.lineno - 1].strip()
        hint = f"the line is: {line}" if line else ""
        hint = f"JSON has no comments; {hint}" if line.startswith(("//", "#", "/*")) else hint
        raise Problems(
            [Problem(f"{path}:{error.lineno}:{error.colno}", f"not valid JSON: {error.msg}", hint)]
        ) from None
    except RecursionError:
        raise Problems([Problem(f"{path}:1", "is nested too deeply to be read")]) from None
    if not isinstance(items, list) or not all(isinstance(item, str | tuple) for item in items):
        hint = 'write [{"prompt": "..."}, ...]'
        raise Problems([Problem(f"{path}:1", "is not a list of prompts, each a line or an object", hint)])
    entries, position = [], text.index("[") + 1
    for item in items:
        start = position + len(text[position:]) - len(text[position:].lstrip(" \t\r\n,"))
        _, position = decoder.raw_decode(text, start)
        if not (isinstance(item, str) and item.lstrip().startswith("#")):  # a comment, as in a text file
            entries.append(_json_entry(path, text, start, position, item))
    return entries


def _json_entry(path: Path, text: str, start: int, end: int, item: Any) -> Entry:
    """The entry at these positions of the text, each key with its line."""

    def where(position: int) -> str:
        return f"{path}:{1 + text.count(chr(10), 0, position)}"

    if isinstance(item, str):
        return _line_entry(item, where(start))
    written = []
    for name, value in item:
        key = re.compile(rf'"{re.escape(name)}"\s*:').search(text, start, end)
        written.append(Given(name, value, where(key.start() if key else start), subject=name))
    return Entry(where(start), written)
