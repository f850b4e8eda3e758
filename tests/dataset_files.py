"""Small datasets for the tests: folders of distinct pictures and the TOML file that names them."""

from pathlib import Path

from PIL import Image

from trainer.config import TrainConfig

Size = tuple[int, int]


def draw(path: Path, size: Size = (64, 64), shade: int = 0) -> Path:
    """A picture that differs from others by its shade; the ending says the format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ramp = Image.linear_gradient("L").resize(size)
    Image.merge("RGB", (ramp, ramp.rotate(180), Image.new("L", size, shade % 256))).save(path)
    return path


def draw_folder(folder: Path, sizes: list[Size], shade: int = 0) -> Path:
    """Pictures 00.png, 01.png, … of these sizes."""
    for number, size in enumerate(sizes):
        draw(folder / f"{number:02}.png", size, shade + number)
    return folder


def write_toml(folder: Path, text: str) -> TrainConfig:
    """A config of the dataset file with this text, in which {folder} names the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "data.toml"
    path.write_text(text.replace("{folder}", folder.as_posix()), encoding="utf-8")
    return TrainConfig(dataset_config=path)
