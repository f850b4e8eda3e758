"""One frozen configuration from three sources: defaults < --config_file < flags."""

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import toml

from trainer.common.problems import Problem, raise_if_any
from trainer.config.kohya import ALWAYS, MEANT, REFUSED, REFUSED_VALUES
from trainer.config.rules import contradictions, without_effect
from trainer.config.settings import TrainConfig
from trainer.config.sources import CONFIG_FILE, Given, Written, read_config_file, read_flags
from trainer.config.values import FIELDS, choices, convert, is_switch, kind, takes_many

__all__ = ["TrainConfig", "config_differences", "config_help", "parse_config", "to_dict", "to_toml"]


def parse_config(argv: Sequence[str]) -> tuple[TrainConfig, tuple[str, ...]]:
    """The configuration of a command line and of the file that it names, and what to tell about it once.

    Raises Problems with everything that is wrong. `--help` prints the settings and exits.
    """
    if {"-h", "--help"} & set(argv):
        print(config_help())
        raise SystemExit(0)
    flags = read_flags(argv)
    named = flags.settings.get(CONFIG_FILE)
    file = read_config_file(str(named.value)) if named else Written({})
    settings = {**file.settings, **flags.settings}
    settings.pop(CONFIG_FILE, None)

    problems = [*flags.problems, *file.problems]
    values: dict[str, Any] = {}
    for given in settings.values():
        problems += _settle(given, values)
    notices = [*flags.notices, *_always_on(settings.values()), *_steps_or_epochs(settings, values)]
    config = TrainConfig(**values)
    where = {name: given.where for name, given in settings.items()}
    failed = settings.keys() - values.keys()
    problems += contradictions(config, where, failed) + _unet_only(settings, config)
    raise_if_any(problems)
    return config, tuple(notices + without_effect(config))


def _settle(given: Given, values: dict[str, Any]) -> list[Problem]:
    """Put the setting into `values`, or say why not."""
    if given.name in ALWAYS:
        return []
    if given.name not in FIELDS:
        return _not_ours(given)
    try:
        values[given.name] = convert(given.name, given.value, from_words=given.by_flag)
    except ValueError as error:
        hint = REFUSED_VALUES.get((given.name, str(given.value).lower()), "")
        return [Problem(given.where, str(error), hint)]
    return []


def _not_ours(given: Given) -> list[Problem]:
    if given.name in REFUSED:
        return [] if _is_off(given.value) else [Problem(given.where, "is not supported", REFUSED[given.name])]
    if given.name in MEANT:
        return [Problem(given.where, "is not a setting", MEANT[given.name])]
    known = [*FIELDS, *ALWAYS, *REFUSED, CONFIG_FILE]
    near = difflib.get_close_matches(given.name.lower().replace("-", "_"), known, n=1)
    return [Problem(given.where, "is not a setting", f"did you mean {near[0]}?" if near else "--help lists them all")]


def _is_off(value: Any) -> bool:
    """A refused feature that is written down as turned off asks for nothing."""
    return value in (False, 0, "", []) or str(value).lower() in ("false", "0", "0.0")


def _always_on(settings: Iterable[Given]) -> list[str]:
    by_note: dict[str, list[str]] = {}
    for each in settings:
        if each.name in ALWAYS:
            by_note.setdefault(ALWAYS[each.name], []).append(each.name)
    return [f"{', '.join(names)}: {note}" for note, names in by_note.items()]


def _steps_or_epochs(settings: Mapping[str, Given], values: dict[str, Any]) -> list[str]:
    """Let max_train_epochs win, except over a max_train_steps flag that stands against a file's epochs."""
    if not {"max_train_steps", "max_train_epochs"} <= values.keys():
        return []
    if settings["max_train_steps"].by_flag and not settings["max_train_epochs"].by_flag:
        del values["max_train_epochs"]
        return ["--max_train_steps: counts instead of the config_file's max_train_epochs"]
    told = values.pop("max_train_steps") != FIELDS["max_train_steps"].default
    return ["max_train_steps: no effect; max_train_epochs wins"] if told else []


def _unet_only(settings: Mapping[str, Given], config: TrainConfig) -> list[Problem]:
    asked = settings.get("network_train_unet_only")
    if asked is None or _is_off(asked.value) or config.text_encoder_lr == 0:
        return []
    return [Problem(asked.where, f"contradicts text_encoder_lr {config.text_encoder_lr}", "keep one of them")]


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """Every setting as JSON can hold it: paths as text, tuples as lists, None kept."""
    return {
        name: str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
        for name, value in asdict(config).items()
    }


def to_toml(config: TrainConfig) -> str:
    """The resolved configuration as a config_file that gives the same configuration again."""
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


_NO_WEIGHT_DEPENDS_ON = {"cache_dir", "tokenizer_dir"} | {
    name for name, field in FIELDS.items() if field.metadata["group"] in ("Output", "Watching", "Memory")
}
_NAMES_A_FILE = {"pretrained_model_name_or_path", "clip_l", "t5xxl", "ae", "dataset_config", "network_weights"}


def config_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What changed, one line a name, between two `to_dict` results or other flat tables of what was trained on.

    Settings that move no weight (where files go, what is watched) may change, and a model file may
    have moved to another folder. A setting that one of them does not know had its default there.
    """
    differences, usual = [], to_dict(TrainConfig())
    for name in dict.fromkeys([*old, *new]):
        before, after = old.get(name, usual.get(name)), new.get(name, usual.get(name))
        if name in _NAMES_A_FILE and before and after:
            before, after = Path(before).name, Path(after).name
        if before != after and name not in _NO_WEIGHT_DEPENDS_ON:
            differences.append(f"{name}: {_shown(before)} before, {_shown(after)} now")
    return differences


def _shown(value: Any) -> str:
    return "nothing" if value is None else str(value)


def config_help() -> str:
    """All settings by group, with type, meaning and default."""
    lines = ["usage: python -m trainer train [--config_file FILE.toml] [--SETTING VALUE ...]"]
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
    return " " + {int: "N", float: "X", int | float: "N_OR_SHARE", Path: "PATH"}.get(kind(name), "TEXT")
