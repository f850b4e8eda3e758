"""What pip may install where torch is already there: in a base image, or in the project's environment.

usage: dependencies.py constraints FILE…       version pins for pip, first those of the packages to keep
       dependencies.py requirements FILE…      what to install: pyproject.toml or requirements.txt
       dependencies.py unchanged FILE          fails unless the packages that this file lists as kept are unchanged
"""

import importlib
import re
import sys
import tomllib
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

KEPT = "torch torchvision triton pytorch-triton numpy".split()  # numpy: torch is compiled against a version of it
SEPARATE = {"torchaudio"}  # install.sh installs it without its compiled part, which fits only one torch
NOTE = "# kept: "


def name_of(line: str) -> str:
    """The normalized name at the start of a requirement; empty for comments and blank lines."""
    found = re.match(r"[A-Za-z0-9][A-Za-z0-9._-]*", line.strip())
    return re.sub(r"[-_.]+", "-", found.group()).lower() if found else ""


def kept() -> dict[str, Distribution]:
    """The packages of KEPT that are installed."""
    found = {}
    for name in KEPT:
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:
            continue
    return found


def place(installed: Distribution) -> str:
    """The folder that a distribution is installed in."""
    return str(Path(str(installed.locate_file(""))).resolve())


def constraints(files: list[Path]) -> list[str]:
    """Lines for `pip --constraint`. The version of an installed package to keep overrides the files."""
    installed = kept()
    lines = [f"{NOTE}{name}=={found.version} in {place(found)}" for name, found in installed.items()]
    lines += [f"{name}=={found.version}" for name, found in installed.items()]
    for file in files:
        lines += [line for line in file.read_text().splitlines() if name_of(line) and name_of(line) not in installed]
    return lines


def index_of_build(torch: str) -> list[str]:
    """The package index for a torch whose version names its build, such as 2.13.0+cpu."""
    build = re.search(r"\+((?:cpu|cu|rocm)[\d.]*)$", torch)
    return [f"--extra-index-url https://download.pytorch.org/whl/{build.group(1)}"] if build else []


def requirements(files: list[Path]) -> list[str]:
    """Lines for `pip --requirement`, without the packages to keep."""
    installed = kept()
    without = SEPARATE | installed.keys()
    lines = []
    for file in files:
        text = file.read_text()
        listed = tomllib.loads(text)["project"]["dependencies"] if file.suffix == ".toml" else text.splitlines()
        lines += [line for line in listed if name_of(line) and name_of(line) not in without]
    if "torch" in installed and any(name_of(line) == "torchvision" for line in lines):
        lines += index_of_build(installed["torch"].version)
    return lines


def unchanged(file: Path) -> list[str]:
    """The kept packages as they are now. Exits with a message if one was replaced or cannot be imported."""
    promised = [line.removeprefix(NOTE) for line in file.read_text().splitlines() if line.startswith(NOTE)]
    now = [f"{name}=={found.version} in {place(found)}" for name, found in kept().items()]
    if "torch" not in kept() or not set(promised) <= set(now):
        sys.exit(f"torch must stay as it was, but packages were replaced.\nbefore: {promised}\nnow:    {now}")
    for name in ("torch", "torchvision"):
        if name in kept():
            import_or_exit(name)
    return now


def import_or_exit(name: str) -> None:
    """Import a package; exit with a message if its compiled part does not fit this machine or this torch."""
    try:
        importlib.import_module(name)
    except (ImportError, OSError, RuntimeError) as error:
        versions = " and ".join(f"{each} {found.version}" for each, found in kept().items() if "torch" in each)
        hint = "https://pytorch.org/get-started/locally names an index whose builds fit each other"
        sys.exit(f"{name} cannot be imported ({versions}): {error}\n{hint}. Install both from it, then try again.")


def main(arguments: list[str]) -> None:
    verbs = {"constraints": constraints, "requirements": requirements, "unchanged": lambda files: unchanged(files[0])}
    if len(arguments) < 2 or arguments[0] not in verbs:
        sys.exit(__doc__)
    print("\n".join(verbs[arguments[0]]([Path(file) for file in arguments[1:]])))


if __name__ == "__main__":
    main(sys.argv[1:])
