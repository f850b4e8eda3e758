"""Copy trainer/lora_file into the node pack, which works without the trainer (make pack)."""

import shutil
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "trainer/lora_file"
COPY = ROOT / "custom_nodes/flux_dreambooth/lora_file"


def differences(source: Path = SOURCE, copy: Path = COPY) -> list[str]:
    """The names of files that are missing, left over or different in the copy."""
    ours, theirs = ({path.name: path.read_bytes() for path in folder.glob("*.py")} for folder in (source, copy))
    return sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))


def pack(source: Path = SOURCE, copy: Path = COPY) -> list[str]:
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
    print(", ".join(pack()) or "the copy is up to date")
