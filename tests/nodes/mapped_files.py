"""Run by tests/nodes/test_unified_memory.py in ComfyUI's interpreter: what stays mapped of a file that ComfyUI loaded.

    python mapped_files.py COMFYUI_DIR FILE FLAG...

Prints the resident bytes of the file's mapping while its weights are held, and a copy of them for another device is.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from comfyui_apply import prepare_imports


def resident(file: Path) -> int:
    """Bytes of a file that this process has mapped and that are in memory."""
    total, counts = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        key, _, value = line.partition(" ")
        if not key.endswith(":"):
            counts = line.endswith(str(file))
        elif counts and key == "Rss:":
            total += int(value.split()[0]) * 1024
    return total


def main() -> None:
    comfyui, file, *flags = sys.argv[1:]
    prepare_imports(Path(comfyui))
    sys.argv += flags
    import comfy.utils

    weights = comfy.utils.load_torch_file(file, safe_load=True)
    copies = [weight.clone() for weight in weights.values()]
    assert copies
    print(resident(Path(file)))


if __name__ == "__main__":
    main()
