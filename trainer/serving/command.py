"""A job as a command line of the trainer, after everything that can be known without reading images or models."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.common.problems import Problem, raise_if_any
from trainer.config.fields import Given, Schema, Spec
from trainer.config.parse import parse_config
from trainer.config.sources import Written, read_config_file
from trainer.exchange.allowed import is_inside, is_output_name, refusal
from trainer.exchange.job_file import CAPTION, CHECK, COMPARE, TRAIN, UNUSABLE_HINT, WORK
from trainer.exchange.job_queue import Job

DATA, RUNS = "flux_data", "runs"
_SPECS = {
    "folder": Spec(),
    "run": Spec(),
    "class_tokens": Spec(may_be_empty=False),
    "class_word": Spec(may_be_empty=False),
    "redo": Spec(type=bool),
}


def arguments_of(job: Job, path: Path) -> list[str]:
    """The verb and flags that do a job. Raises `Problems` with everything that is wrong with its settings.

    path: of the job's file, as the messages shall name it.
    """
    raise_if_any([Problem(str(path), job.problem, UNUSABLE_HINT)] if job.problem else [])
    return _work_arguments(job, path) if job.kind in WORK else _training_arguments(job, path)


def plan_arguments(path: Path, dataset: Path | None) -> list[str]:
    """The flags of a training that is only planned, from the file of its settings. Raises `Problems`.

    dataset: its dataset file, unless the settings name one; the cache is that of a file in flux_data/.
    """
    if dataset is None:
        return _checked_flags(path)
    has_cache = "cache_dir" in read_config_file(str(path)).settings
    cache = [] if has_cache else [f"--cache_dir={DATA}/.cache"]
    return _checked_flags(path, [f"--dataset_config={dataset}", *cache])


def _training_arguments(job: Job, path: Path) -> list[str]:
    assert job.kind in (TRAIN, CHECK)
    return [job.kind, *_checked_flags(path)]


def _checked_flags(path: Path, more: Sequence[str] = ()) -> list[str]:
    """The flags of a training with the settings of a file, and `more`. Raises `Problems` with all that is wrong."""
    written = read_config_file(str(path))
    refused = list(_refused(written))
    names = {problem.where for problem in refused}
    flags = [f"--config_file={path}", *more]
    try:
        parse_config(flags)
    except ValueError as found:
        problems = getattr(found, "problems", ())
        raise_if_any([*refused, *(problem for problem in problems if problem.where not in names)])
        raise
    raise_if_any(refused)
    return flags


def _refused(written: Written) -> Iterator[Problem]:
    for name, given in written.settings.items():
        if found := refusal(name, given.value):
            yield given.problem(*found)


def _work_arguments(job: Job, path: Path) -> list[str]:
    problems = [*_key_problems(job, path)]
    raise_if_any(problems)
    settings = job.settings
    if job.kind == COMPARE:
        return [job.kind, f"{RUNS}/{settings['run']}"]
    redo = ["--redo"] if settings.get("redo") else []
    folder = f"{DATA}/{settings['folder']}"
    words = f"--{'class_tokens' if job.kind == CAPTION else 'class_word'}"
    # the values follow = signs, so that none of them can be taken for a flag
    return [job.kind, folder, f"{words}={settings[words[2:]]}", *redo]


def _key_problems(job: Job, path: Path) -> Iterator[Problem]:
    known = WORK[job.kind]
    schema = Schema(specs={name: _SPECS[name] for name in known}, noun=f"a key of [{job.kind}]")
    yield from schema.read(Given(name, value, str(path), subject=name) for name, value in job.settings.items()).problems
    for name in known:
        if name not in job.settings and name != "redo":
            yield Problem(str(path), f"{name} is missing", f"add it below [{job.kind}]")
    yield from _folder_problems(job.settings, path)
    run = job.settings.get("run")
    if isinstance(run, str) and not (is_output_name(run) and Path(RUNS, run, "config.toml").is_file()):
        what = f"run is {run!r}, but there is no such run in {RUNS}/"
        yield Problem(str(path), what, "name a folder in runs/ that has a config.toml")


def _folder_problems(settings: Mapping[str, Any], path: Path) -> Iterator[Problem]:
    folder, hint = settings.get("folder"), f"name a folder directly in {DATA}/, such as tjtoy"
    if not isinstance(folder, str):
        return
    if "/" in folder or folder.startswith((".", "-")) or not is_inside(f"{DATA}/{folder}", DATA) or not folder.strip():
        yield Problem(str(path), f"folder is {folder!r}, not the name of a folder in {DATA}/", hint)
    elif not Path(DATA, folder).is_dir():
        yield Problem(str(path), f"there is no folder {DATA}/{folder}", hint)
