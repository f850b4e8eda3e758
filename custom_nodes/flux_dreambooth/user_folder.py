"""Copy the project's workflows into a ComfyUI user's folder, each only once: what the user changed or deleted stays.

usage: user_folder.py WORKFLOWS USER_FOLDER

The launcher runs it for ComfyUI's default user; routes.py does the same for users of --multi-user.
"""

import json
import shutil
import sys
from pathlib import Path

RECORD = ".flux_dreambooth_seeded"  # names of the workflows that were copied before
SETTINGS = {"Comfy.TutorialCompleted": True}  # otherwise the first visit opens ComfyUI's own templates


def was_seeded(user: Path) -> bool:
    """Whether workflows were copied into this user's folder before."""
    return (user / RECORD).is_file()


def seed_workflows(source: Path, user: Path) -> list[str]:
    """Copy each workflow that was never copied before, unless a file of its name exists. Returns the new names."""
    record = user / RECORD
    before = record.read_text().split("\n") if record.is_file() else []
    folder = user / "workflows"
    folder.mkdir(parents=True, exist_ok=True)
    new = []
    for workflow in sorted(source.glob("*.json")):
        if workflow.name in before:
            continue
        if not (folder / workflow.name).exists():
            shutil.copyfile(workflow, folder / workflow.name)
        new.append(workflow.name)
    if new:
        record.write_text("\n".join([*filter(None, before), *new]) + "\n")
    return new


def seed_settings(user: Path) -> None:
    """Write ComfyUI's settings if there are none yet."""
    file = user / "comfy.settings.json"
    if not file.exists():
        file.write_text(json.dumps(SETTINGS, indent=4))


def main(arguments: list[str]) -> None:
    if len(arguments) != 2:
        sys.exit(__doc__)
    source, user = map(Path, arguments)
    for name in seed_workflows(source, user):
        print(f"New workflow in the sidebar: {name}")
    seed_settings(user)


if __name__ == "__main__":
    main(sys.argv[1:])
