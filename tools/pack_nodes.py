"""Copy the rooms of trainer/ that the ComfyUI nodes use into the node pack, which works without it (make pack)."""

import shutil
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACK = ROOT / "custom_nodes/flux_dreambooth"
COPIED = ("lora_file", "routing", "exchange")


def all_differences(pack: Path = PACK) -> list[str]:
    """The files of all copied rooms that are missing, left over or different in a pack, like "routing/words.py"."""
    return [f"{room}/{name}" for room in COPIED for name in differences(ROOT / "trainer" / room, pack / room)]


def differences(source: Path, copy: Path) -> list[str]:
    """The names of files that are missing, left over or different in the copy."""
    ours, theirs = ({path.name: path.read_bytes() for path in folder.glob("*.py")} for folder in (source, copy))
    return sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))


def pack(source: Path, copy: Path) -> list[str]:
    """Make the copy byte for byte that of the source; returns the names of the files that changed."""
    changed = differences(source, copy)
    copy.mkdir(exist_ok=True)
    for name in changed:
        if (source / name).exists():
            shutil.copyfile(source / name, copy / name)
        else:
            (copy / name).unlink()
    return changed


if __name__ == "__main__":
    changed = [f"{room}/{name}" for room in COPIED for name in pack(ROOT / "trainer" / room, PACK / room)]
    print(", ".join(changed) or "the copies are up to date")
