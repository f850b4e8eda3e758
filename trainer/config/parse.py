"""One frozen configuration from three sources: flags override the --config_file, which overrides the defaults."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import toml

from trainer.common.problems import Problem, Problems, raise_if_any
from trainer.config.fields import STEPS_OR_FRACTION, Given, Read, Schema, is_off
from trainer.config.kohya import ALWAYS, MEANT, REFUSED, REFUSED_VALUES
from trainer.config.rules import contradictions, without_effect
from trainer.config.settings import TrainConfig
from trainer.config.sources import CONFIG_FILE, Written, read_config_file, read_flags
from trainer.config.values import FIELDS, SPECS, choices, is_switch, takes_many

__all__ = ["TrainConfig", "config_differences", "config_help", "parse_config", "placed_problems", "to_dict", "to_toml"]


FLAG = re.compile(r"--(\w+)(?==|$)")  # as the place of a problem: "--ae" or "--ae=FILE"
SETTINGS = Schema(
    specs=SPECS,
    noun="a setting",
    refused=REFUSED,
    elsewhere=MEANT,
    ignored=ALWAYS,
    other_names=(CONFIG_FILE,),
    listing="--help lists all settings",
)


def parse_config(argv: Sequence[str]) -> tuple[TrainConfig, tuple[str, ...]]:
    """The configuration of a command line and of the config file that it names, and notices for the user.

    argv: the words after the subcommand. Raises `Problems` with everything that is wrong. `--help` prints the settings
    and raises SystemExit.
    """
    if {"-h", "--help"} & set(argv):
        print(config_help())
        raise SystemExit(0)
    flags = read_flags(argv)
    named = flags.settings.get(CONFIG_FILE)
    file = read_config_file(str(named.value)) if named else Written({})
    settings = {**file.settings, **flags.settings}
    settings.pop(CONFIG_FILE, None)

    read = SETTINGS.read(settings.values())
    problems = [*flags.problems, *file.problems, *(_with_advice(problem, settings) for problem in read.problems)]
    notices = [*flags.notices, *_always_on(read), *_steps_or_epochs(settings, read.values)]
    config = TrainConfig(**read.values)
    where = {name: given.where for name, given in settings.items()}
    failed = settings.keys() - read.values.keys()
    problems += contradictions(config, where, failed) + _unet_only(settings, config)
    raise_if_any(problems)
    return config, tuple(notices + without_effect(config))


@contextmanager
def placed_problems(argv: Sequence[str]) -> Iterator[None]:
    """Re-raise `Problems` of the block so that those of a value from the --config_file name its file and line.

    argv: the words of the command line after the subcommand. What is found after parsing, such as a problem within
    --network_args, knows the flag alone. Problems of values given as flags stay as they are.
    """
    try:
        yield
    except Problems as found:
        flags = read_flags(argv).settings
        named = flags.get(CONFIG_FILE)
        in_file = read_config_file(str(named.value)).settings if named else {}
        places = {name: given.where for name, given in in_file.items() if name not in flags}
        raise Problems(_placed(problem, places) for problem in found.problems) from found


def _placed(problem: Problem, places: Mapping[str, str]) -> Problem:
    flag = FLAG.match(problem.where)
    if flag is None or flag[1] not in places:
        return problem
    return Problem(places[flag[1]] + problem.where[flag.end() :], problem.what, problem.hint)


def _with_advice(problem: Problem, settings: Mapping[str, Given]) -> Problem:
    """The problem; where the value is one of kohya's that is refused here, with what to use instead."""
    for (name, value), advice in REFUSED_VALUES.items():
        given = settings.get(name)
        if given and given.where == problem.where and str(given.value).lower() == value:
            return Problem(problem.where, problem.what, advice)
    return problem


def _always_on(read: Read) -> list[str]:
    by_note: dict[str, list[str]] = {}
    for each in read.ignored:
        by_note.setdefault(ALWAYS[each.name], []).append(each.name)
    return [f"{', '.join(names)}: {note}" for note, names in by_note.items()]


def _steps_or_epochs(settings: Mapping[str, Given], values: dict[str, Any]) -> list[str]:
    """max_train_epochs wins, except that a max_train_steps flag overrides a max_train_epochs of the config file."""
    if not {"max_train_steps", "max_train_epochs"} <= values.keys():
        return []
    if settings["max_train_steps"].from_text and not settings["max_train_epochs"].from_text:
        del values["max_train_epochs"]
        return ["--max_train_steps: overrides max_train_epochs of the config_file"]
    changed = values.pop("max_train_steps") != FIELDS["max_train_steps"].default
    return ["max_train_steps: no effect; max_train_epochs wins"] if changed else []


def _unet_only(settings: Mapping[str, Given], config: TrainConfig) -> list[Problem]:
    asked = settings.get("network_train_unet_only")
    if asked is None or is_off(asked.value) or config.text_encoder_lr == 0:
        return []
    return [Problem(asked.where, f"contradicts text_encoder_lr {config.text_encoder_lr}", "keep one of them")]


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """Every setting by name, as JSON can hold it: paths as text, tuples as lists, None kept."""
    return {
        name: str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
        for name, value in asdict(config).items()
    }


def to_toml(config: TrainConfig) -> str:
    """The text of a --config_file that gives this configuration again; settings that are None are left out."""
    sections: dict[str, dict[str, Any]] = {}
    for name, value in to_dict(config).items():
        if value is not None:
            section = FIELDS[name].metadata["group"].lower().replace(" ", "_")
            sections.setdefault(section, {})[name] = value
    encoder = toml.TomlEncoder()
    encoder.dump_funcs[str] = _dump_text
    return toml.dumps(sections, encoder)


def _dump_text(text: str) -> str:
    """A TOML string: JSON's, but for DEL. toml's own writer loses the backslash of a `\\x`."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


_WITHOUT_INFLUENCE = {"cache_dir", "tokenizer_dir"} | {
    name for name, field in FIELDS.items() if field.metadata["group"] in ("Output", "Watching", "Memory")
}
_NAMES_A_FILE = {"pretrained_model_name_or_path", "clip_l", "t5xxl", "ae", "dataset_config", "network_weights"}


def config_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs between two configurations, one line for each setting, with both values.

    old, new: results of `to_dict`, or other flat tables of what was trained on; a setting that one of them lacks counts
    as its default. Settings that do not change the weights (output folders, logging, memory) are left out, and a model
    file may have moved to another folder.
    """
    differences, usual = [], to_dict(TrainConfig())
    for name in dict.fromkeys([*old, *new]):
        before, after = old.get(name, usual.get(name)), new.get(name, usual.get(name))
        if name in _NAMES_A_FILE and before and after:
            before, after = Path(before).name, Path(after).name
        if before != after and name not in _WITHOUT_INFLUENCE:
            differences.append(f"{name}: {_shown(before)} before, {_shown(after)} now")
    return differences


def _shown(value: Any) -> str:
    return "nothing" if value is None else str(value)


def config_help() -> str:
    """The text of --help: all settings by group, with type, meaning and default."""
    lines = ["usage: python -m trainer {train,check,generate} [--config_file FILE.toml] [--SETTING VALUE ...]"]
    group = ""
    for name, field in FIELDS.items():
        if field.metadata["group"] != group:
            group = field.metadata["group"]
            lines += ["", f"{group}:"]
        default = "" if field.default in (None, False, (), "") else f" [{field.default}]"
        lines += [f"  --{name}{_placeholder(name)}", f"        {field.metadata['help']}{default}"]
    return "\n".join(lines)


def _placeholder(name: str) -> str:
    if is_switch(name):
        return ""
    if options := choices(name):
        return f" {{{','.join(options)}}}"
    if takes_many(name) and name != "text_encoder_lr":
        return " KEY=VALUE ..."
    return " " + {int: "N", float: "X", STEPS_OR_FRACTION: "N_OR_FRACTION", Path: "PATH"}.get(SPECS[name].type, "TEXT")
