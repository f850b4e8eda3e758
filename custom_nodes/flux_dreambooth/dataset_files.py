"""Dataset files and presets in flux_data/: listed for the browser, and written under new names only."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .answers import Conflict, Invalid
from .exchange.allowed import refusal
from .exchange.files import create_file, read_file
from .exchange.job_file import MAX_JOB, Unusable, flat, parse_settings, read_settings, settings_text, value_text
from .image_folders import ImageFolders
from .training_log import plain_name

DATA = "flux_data"
PRESETS = "presets"
NAME = re.compile(r"[^\W_][\w -]{0,63}")
GENERAL = {
    "resolution": int,
    "batch_size": int,
    "min_bucket_reso": int,
    "max_bucket_reso": int,
    "keep_tokens": int,
    "enable_bucket": bool,
    "bucket_no_upscale": bool,
    "shuffle_caption": bool,
    "alpha_mask": bool,
}
SUBSET = {
    "class_tokens": str,
    "num_repeats": int,
    "is_reg": bool,
    "flip_aug": bool,
    "masked_loss": bool,
    "mask_background": str,
}
MAX_SUBSETS = 50
MAX_NUMBER = 100_000
MAX_TEXT = 200  # characters of class_tokens
MAX_FILES = 200
SHOWN = ("class_tokens", "num_repeats", "is_reg")
USUAL, USUAL_OF_DEMO = f"{DATA}/train.toml", f"{DATA}/demo.toml"


class DatasetFiles:
    """The TOML files of flux_data/. Answers with plain JSON values."""

    def __init__(self, root: Path, folders: ImageFolders):
        self.root, self.folders = root, folders

    def datasets(self) -> list[dict[str, Any]]:
        """The dataset files, with their folders and resolution; `error` says why one cannot be read."""
        found = []
        for path in _toml_files(self.root):
            values, error = _read(path)
            if error or "datasets" in values:
                subsets = [] if error else _subsets(values)
                side = None if error else _resolution(values)
                found.append({"file": f"{DATA}/{path.name}", "subsets": subsets, "resolution": side, "error": error})
        return found

    def presets(self) -> list[dict[str, Any]]:
        """The files of settings, directly in flux_data/ and in flux_data/presets/."""
        found = []
        for folder, prefix in ((self.root, DATA), (self.root / PRESETS, f"{DATA}/{PRESETS}")):
            for path in _toml_files(folder):
                values, error = _read(path)
                if not error and "datasets" not in values:
                    settings = {name: value for name, value in flat(values).items() if _is_json(value)}
                    found.append({"file": f"{prefix}/{path.name}", "title": _title(path), "settings": settings})
        return found

    def usual_preset(self, is_demo: bool) -> str | None:
        """The preset that a new training begins with, or None. is_demo: whether ComfyUI was started with --demo."""
        files = [each["file"] for each in self.presets()]
        return next((file for file in ([USUAL_OF_DEMO] if is_demo else []) + [USUAL] if file in files), None)

    def preset(self, file: str) -> dict[str, Any]:
        """The settings of a preset. Raises LookupError."""
        for each in self.presets():
            if each["file"] == file:
                return each["settings"]
        raise LookupError(f"There is no preset {file!r}.")

    def preset_content(self, file: str) -> bytes:
        """A preset's file, to be shared. Raises LookupError and OSError."""
        self.preset(file)  # only of a listed one
        return read_file(self.root / file.removeprefix(f"{DATA}/"), MAX_JOB)

    def add_preset(self, file: str, data: bytes) -> dict[str, Any]:
        """Keep a preset that somebody shared, with its comments. Raises ValueError, `Conflict` and OSError."""
        try:
            values = parse_settings(data)
        except Unusable as error:
            raise ValueError(f"{file} {error}.") from None
        if "datasets" in values or not flat(values):
            raise ValueError(f"{file} has no settings: {'it is a dataset file' if values else 'it is empty'}.")
        require_allowed(flat(values))
        settings_text(flat(values))  # raises for a value that no setting has, such as a date or NaN
        return self._write(self.root / PRESETS, f"{DATA}/{PRESETS}", file.removesuffix(".toml"), data)

    def has_dataset(self, file: str) -> bool:
        """Whether this is one of the dataset files."""
        return any(each["file"] == file for each in self.datasets())

    def write_dataset(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Write a dataset file for folders of images. Raises ValueError, LookupError, `Conflict` and OSError."""
        return self._write(self.root, DATA, body.get("name"), self.dataset_text(body).encode())

    def dataset_text(self, body: Mapping[str, Any]) -> str:
        """The content of a dataset file for folders of images. Raises ValueError and LookupError."""
        subsets, general = body.get("subsets"), body.get("general", {})
        if not isinstance(subsets, list) or not 1 <= len(subsets) <= MAX_SUBSETS or not isinstance(general, dict):
            raise ValueError(f"subsets must be a list of 1 to {MAX_SUBSETS} tables, and general a table.")
        parts = ["[general]\n", settings_text(_typed(general, GENERAL)), "\n[[datasets]]\n"]
        for subset in subsets:
            if not isinstance(subset, dict) or not isinstance(subset.get("folder"), str):
                raise ValueError("Each of subsets must be a table with a folder.")
            folder = self.folders.folder(subset["folder"]).name
            keys = _typed({name: value for name, value in subset.items() if name != "folder"}, SUBSET)
            parts += [
                "\n[[datasets.subsets]]\n",
                f"image_dir = {value_text(f'{DATA}/{folder}')}\n",
                settings_text(keys),
            ]
        for table in ("compositions", "preservation"):
            count = _typed({table: body.get(table) or 0}, {table: int})[table]
            parts += [f"\n[[datasets.{table}]]\nnum_images = {count}\n"] if count else []
        return "".join(parts)

    def write_preset(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Write a file of settings that jobs may have. Raises ValueError, `Conflict` and OSError."""
        settings = body.get("settings")
        if not isinstance(settings, dict):
            raise ValueError("settings must be a table.")
        require_allowed(settings)
        return self._write(self.root / PRESETS, f"{DATA}/{PRESETS}", body.get("name"), settings_text(settings).encode())

    def _write(self, folder: Path, prefix: str, name: Any, data: bytes) -> dict[str, Any]:
        if not isinstance(name, str) or not NAME.fullmatch(name) or name != name.strip() or len(name.encode()) > 128:
            raise ValueError(
                "A name has at most 64 letters, digits, spaces, - and _, and begins with a letter or digit."
            )
        if len(data) > MAX_JOB:
            raise ValueError(f"The file would have more than {MAX_JOB:,} bytes.")
        folder.mkdir(exist_ok=True)
        path = folder / f"{name}.toml"
        if not create_file(path, data) and not _holds(path, data):
            raise Conflict(f"{prefix}/{path.name} exists already, with other content.")
        return {"file": f"{prefix}/{path.name}"}


def require_allowed(settings: Mapping[str, Any]) -> None:
    """Raises `Invalid` with every setting that a job may not have."""
    found = [(name, refused) for name, value in settings.items() if (refused := refusal(name, value))]
    if found:
        problems = [{"where": name, "what": what, "hint": hint} for name, (what, hint) in found]
        raise Invalid("; ".join(f"{name}: {what}" for name, (what, _) in found), problems)


def _typed(values: Mapping[str, Any], kinds: Mapping[str, type]) -> dict[str, Any]:
    """The values, each of its kind. Raises ValueError."""
    for name, value in values.items():
        kind = kinds.get(name)
        if kind is None:
            raise ValueError(f"{name} cannot be set here.")
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise ValueError(
                f"{name} must be {'true or false' if kind is bool else 'a text' if kind is str else 'a number'}."
            )
        if kind is int and not 0 <= value <= MAX_NUMBER:
            raise ValueError(f"{name} must be from 0 to {MAX_NUMBER:,}.")
        if kind is str and (len(value) > MAX_TEXT or re.search(r"[\x00-\x1f\x7f]", value)):
            raise ValueError(f"{name} must be one line of at most {MAX_TEXT} characters.")
    return dict(values)


def _toml_files(folder: Path) -> list[Path]:
    try:
        found = sorted(path for path in folder.iterdir() if path.suffix == ".toml" and plain_name(path.name))
    except OSError:
        return []
    return [path for path in found if not path.is_symlink() and path.is_file()][:MAX_FILES]


def _read(path: Path) -> tuple[dict[str, Any], str | None]:
    try:
        return read_settings(path), None
    except Unusable as error:
        return {}, str(error)


def _subsets(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    sections = values["datasets"] if isinstance(values["datasets"], list) else []
    found = []
    for section in sections:
        subsets = section.get("subsets") if isinstance(section, dict) else None
        for subset in subsets if isinstance(subsets, list) else []:
            if isinstance(subset, dict):
                held = {key: subset.get(key) for key in SHOWN if _is_json(subset.get(key))}
                found.append({"folder": _shown_folder(subset.get("image_dir")), **dict.fromkeys(SHOWN), **held})
    return found


def _resolution(values: Mapping[str, Any]) -> int | None:
    """The side of the images in pixels, if a dataset file gives one number for all or in its first section."""
    sections = values["datasets"] if isinstance(values["datasets"], list) else []
    for table in (*sections[:1], values.get("general")):
        side = table.get("resolution") if isinstance(table, dict) else None
        if isinstance(side, int) and not isinstance(side, bool):
            return side
    return None


def _shown_folder(folder: Any) -> str:
    """A concept's name, or the path of a folder elsewhere."""
    text = folder if isinstance(folder, str) else ""
    inside = text.removeprefix(f"{DATA}/").strip("/")
    return inside if "/" not in inside else text


def _is_json(value: Any) -> bool:
    """Whether it is a value of a flat table that JSON can hold: not a date, a table or NaN."""
    if isinstance(value, list):
        return all(_is_json(each) and not isinstance(each, list) for each in value)
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or isinstance(value, str | int)


def _title(path: Path) -> str:
    try:
        text = read_file(path, MAX_JOB).decode("utf-8-sig", "replace")
    except OSError:
        return ""
    first = text.lstrip().split("\n", 1)[0]
    return first.lstrip("# ").strip()[:300] if first.startswith("#") else ""


def _holds(path: Path, data: bytes) -> bool:
    try:
        return read_file(path, len(data) + 1) == data
    except OSError:
        return False
