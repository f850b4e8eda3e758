"""Draw the example concepts: six pictures of a toy, seven of a graphics card.

    python tools/draw_concepts.py                                  # into flux_data/, as they are checked in
    python tools/draw_concepts.py --out /tmp/look --scale 0.25     # small, for a look
    python tools/draw_concepts.py --only beach                     # those whose name holds the word

The same command draws the same pictures; only torch and Pillow are needed.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from concept_art import designs, props
from concept_art.indoors import city, datacenter, desk, studio
from concept_art.outdoors import beach, forest, snow
from concept_art.paint import turn
from concept_art.places import Place
from concept_art.render import Camera, Scene, draw, finish
from concept_art.shapes import Shape, moved
from PIL import Image


@dataclass(frozen=True)
class Picture:
    """`name` is the path below the output folder; its suffix chooses the format."""

    name: str
    width: int
    height: int
    shapes: Sequence[Shape]
    place: Place
    camera: Camera


def toy(pose: designs.Pose, angle: float, at: tuple[float, float, float] = (0, 0, 0)) -> list[Shape]:
    return moved(designs.tjtoy(pose), at, turn(y=angle))


def card(angle: float, at: tuple[float, float, float] = (0, 0, 0)) -> list[Shape]:
    return moved(designs.sparkgpu(), at, turn(y=angle))


def toy_pictures() -> list[Picture]:
    return [
        Picture(
            "tjtoy/01_studio.png",
            1024,
            1024,
            toy(designs.STAND, -10),
            studio("#ea9672", "#ffd9bd", "#bf5c44"),
            Camera((0, 1.35, 7.6), (0, 1.0, 0), 5.8),
        ),
        Picture(
            "tjtoy/02_desk.jpg",
            1152,
            896,
            [
                *toy(designs.WAVE, 14, (-0.15, 0, 0)),
                *moved(props.mug(), (1.18, 0, -0.25), turn(y=-30)),
                *moved(props.pencil(), (-1.05, 0, 0.62), turn(y=32)),
            ],
            desk(4),
            Camera((0.1, 1.55, 7.2), (0.05, 0.92, 0), 4.2),
        ),
        Picture(
            "tjtoy/03_beach.jpg",
            896,
            1152,
            [
                *toy(designs.CHEER, -8),
                *moved(props.starfish(), (-0.80, 0, 0.75)),
                *moved(props.beach_ball(), (0.95, 0, -0.95)),
            ],
            beach(2),
            Camera((0, 1.0, 7.0), (0, 0.98, 0), 4.5),
        ),
        Picture(
            "tjtoy/04_snow.png",
            1024,
            1024,
            [*toy(designs.HIPS, -34), *moved(props.snowball_pile(), (0.95, 0, -0.1))],
            snow(3),
            Camera((0.1, 1.25, 7.2), (0.1, 0.92, 0), 4.6),
        ),
        Picture(
            "tjtoy/05_forest.jpg",
            832,
            1216,
            [
                *toy(designs.WONDER, 30),
                *moved(props.mushroom(), (0.72, 0, 0.20), scale=0.95),
                *moved(props.mushroom(), (0.50, 0, 0.74), turn(y=50), 0.6),
                *moved(props.pebble(0.16), (-0.72, 0, 0.55)),
            ],
            forest(5),
            Camera((0, 1.5, 7.4), (0, 0.96, 0), 4.8),
        ),
        Picture(
            "tjtoy/06_city.png",
            1216,
            832,
            toy(designs.SIT, 12, (0.1, 0, 0)),
            city(6),
            Camera((0, 1.15, 7.0), (0, 0.88, 0), 4.1),
        ),
    ]


def card_pictures() -> list[Picture]:
    return [
        Picture(
            "sparkgpu/01_studio.png",
            1024,
            1024,
            card(24),
            studio("#e58f98", "#ffe0dc", "#b2536a"),
            Camera((0, 1.35, 7.6), (-0.02, 0.62, 0), 6.0),
        ),
        Picture(
            "sparkgpu/02_desk.jpg",
            1216,
            832,
            [
                *card(-20, (0.1, 0, 0)),
                *moved(props.book_pile(), (-1.55, 0, -0.75)),
                *moved(props.screw(), (-0.95, 0, 0.75), turn(y=60)),
            ],
            desk(9),
            Camera((-0.1, 1.7, 7.2), (-0.05, 0.62, 0), 4.4),
        ),
        Picture(
            "sparkgpu/03_datacenter.png",
            1152,
            896,
            card(14),
            datacenter(3),
            Camera((0, 1.15, 7.0), (0, 0.74, 0), 4.6),
        ),
        Picture(
            "sparkgpu/04_beach.jpg",
            1024,
            1024,
            [*card(-32), *moved(props.starfish(), (0.75, 0, 0.85), scale=0.9)],
            beach(7),
            Camera((0, 1.25, 7.2), (0, 0.74, 0), 5.0),
        ),
        Picture(
            "sparkgpu/05_snow.jpg",
            896,
            1152,
            [*card(-10), *moved(props.snowball_pile(), (0.60, 0, 0.95), scale=0.7)],
            snow(8),
            Camera((0, 1.9, 7.8), (0, 0.78, 0), 4.7),
        ),
        Picture(
            "sparkgpu/06_forest.jpg",
            1152,
            896,
            [
                *card(8),
                *moved(props.mushroom(), (-1.25, 0, 0.05), turn(y=20), 0.9),
                *moved(props.pebble(0.2), (1.2, 0, 0.35)),
            ],
            forest(12),
            Camera((0, 1.45, 7.2), (0, 0.68, 0), 4.5),
        ),
        Picture(
            "sparkgpu/07_plinth.png",
            1344,
            768,
            [*props.plinth(), *card(-14, (0, 0.16, 0))],
            studio("#5d48a8", "#b094f0", "#241a58"),
            Camera((0, 1.9, 7.6), (0, 0.80, 0), 4.3),
        ),
    ]


def save(picture: Picture, out: Path, scale: float) -> None:
    width, height = round(picture.width * scale), round(picture.height * scale)
    values = finish(draw(Scene(picture.shapes, picture.place, picture.camera), width, height))
    pixels = (values * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    path = out / picture.name
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    if path.suffix == ".jpg":
        image.save(path, quality=92, subsampling=0)
    else:
        image.save(path, optimize=True)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("flux_data"), help="folder for tjtoy/ and sparkgpu/")
    parser.add_argument("--scale", type=float, default=1.0, help="of the pictures' sides")
    parser.add_argument("--only", default="", help="draw only pictures whose name holds this")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    for picture in [*toy_pictures(), *card_pictures()]:
        if args.only in picture.name:
            start = time.perf_counter()
            save(picture, args.out, args.scale)
            print(f"{args.out / picture.name}  {time.perf_counter() - start:.1f} s", flush=True)


if __name__ == "__main__":
    main()
