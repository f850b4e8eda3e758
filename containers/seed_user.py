"""Put our workflows into a ComfyUI user's folder, each once: what the user changed or deleted stays so.

usage: seed_user.py WORKFLOWS USER_FOLDER
"""

import json
import shutil
import sys
from pathlib import Path

SEEDED = ".flux_dreambooth_seeded"  # the names that were put there once
SETTINGS = {"Comfy.TutorialCompleted": True}  # else the first visit opens ComfyUI's own templates


def seed_workflows(source: Path, user: Path) -> list[str]:
    """Copy what was never copied before and is not there. Returns the names that were new."""
    record = user / SEEDED
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
    """ComfyUI's settings, only where there are none yet."""
    file = user / "comfy.settings.json"
    if not file.exists():
        file.write_text(json.dumps(SETTINGS, indent=4))


def main(arguments: list[str]) -> None:
    if len(arguments) != 2:
        sys.exit(__doc__)
    source, user = map(Path, arguments)
    for name in seed_workflows(source, user):
        print(f"workflow {name}: in the left panel")
    seed_settings(user)


if __name__ == "__main__":
    main(sys.argv[1:])
