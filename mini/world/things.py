"""Things: seven simple objects in two colours."""

from mini.world.parts import Part
from mini.world.scene import THINGS
from mini.world.shapes import ALONG, Finish, box, capsule, cone, cylinder, ring, sphere, turn_z

GLOSSY = Finish(gloss=0.6)


def build_thing(kind: str, colour: str, second_colour: str) -> list[Part]:
    """The parts of one of THINGS at the origin, about 1 high, facing +z."""
    assert kind in THINGS
    return _BUILDERS[kind](colour, second_colour)


def _ball(colour: str, second: str) -> list[Part]:
    stripe = ring((0, 0.5, 0), 0.47, 0.05, 0.1, second, turn_z(0.35) @ ALONG["y"], gloss=0.8)
    return [sphere((0, 0.5, 0), 0.5, colour, gloss=0.8), stripe]


def _cube(colour: str, second: str) -> list[Part]:
    spot = box((0, 0.45, 0.44), (0.2, 0.2, 0.04), second, 0.03, **GLOSSY)
    return [box((0, 0.45, 0), (0.45, 0.45, 0.45), colour, 0.06, **GLOSSY), spot]


def _mug(colour: str, second: str) -> list[Part]:
    return [
        cylinder((0, 0.46, 0), 0.38, 0.46, colour, rounding=0.06, **GLOSSY),
        cylinder((0, 0.92, 0), 0.29, 0.03, "coal", rounding=0.01),
        ring((0.42, 0.47, 0), 0.23, 0.065, 0.075, colour, **GLOSSY),
        ring((0, 0.47, 0), 0.36, 0.04, 0.11, second, "y", **GLOSSY),
    ]


def _car(colour: str, second: str) -> list[Part]:
    parts = [
        box((0, 0.34, 0), (0.74, 0.2, 0.36), colour, 0.1, **GLOSSY),
        box((-0.06, 0.62, 0), (0.42, 0.2, 0.31), colour, 0.11, **GLOSSY),
        box((-0.06, 0.63, 0.29), (0.32, 0.115, 0.04), second, 0.03, gloss=0.9),
        box((0.34, 0.63, 0), (0.04, 0.11, 0.24), second, 0.03, gloss=0.9),
        sphere((0.72, 0.38, 0.2), 0.09, "yellow", (0.6, 1, 1), **GLOSSY),
    ]
    for x in (-0.44, 0.44):
        parts += [cylinder((x, 0.21, z), 0.21, 0.09, "coal", "z", 0.04) for z in (-0.3, 0.32)]
        parts.append(cylinder((x, 0.21, 0.4), 0.1, 0.03, "silver", "z", 0.02, gloss=0.7))
    return parts


def _mushroom(colour: str, second: str) -> list[Part]:
    spots = ((0.0, 0.74, 0.5), (-0.38, 0.8, 0.28), (0.38, 0.8, 0.28), (0.02, 1.01, 0.18))
    return [
        cylinder((0, 0.32, 0), 0.25, 0.34, "white", rounding=0.1, taper=0.2),
        sphere((0, 0.64, 0), 0.58, colour, (1, 0.72, 1), **GLOSSY),
        *(sphere(spot, 0.125, second, (1, 0.9, 1), **GLOSSY) for spot in spots),
    ]


def _duck(colour: str, second: str) -> list[Part]:
    return [
        sphere((-0.06, 0.36, 0), 0.42, colour, (1.2, 0.86, 0.95), **GLOSSY),
        sphere((0.28, 0.86, 0.04), 0.31, colour, **GLOSSY),
        cone((0.64, 0.82, 0.1), 0.13, 0.14, "orange", "x", **GLOSSY),
        capsule((-0.45, 0.48, 0), (-0.68, 0.68, 0), 0.16, colour, taper=0.5, **GLOSSY),
        sphere((-0.12, 0.42, 0.36), 0.24, second, (1.1, 0.65, 0.5), **GLOSSY),
        sphere((0.4, 0.94, 0.29), 0.075, "white", (1, 1.1, 0.6), gloss=0.9),
        sphere((0.42, 0.94, 0.33), 0.05, "black", gloss=0.9),
        sphere((0.52, 0.94, 0.2), 0.05, "black", gloss=0.9),
    ]


def _house(colour: str, second: str) -> list[Part]:
    return [
        box((0, 0.36, 0), (0.5, 0.36, 0.42), colour, 0.03),
        box((0, 0.93, 0), (0.68, 0.6, 0.27), second, 0.04, ALONG["y"], taper=0.7, **GLOSSY),
        box((-0.16, 0.24, 0.42), (0.13, 0.24, 0.04), "brown", 0.02),
        box((0.22, 0.4, 0.42), (0.12, 0.12, 0.04), "yellow", 0.02, gloss=0.9),
        box((0.3, 1.06, -0.1), (0.1, 0.22, 0.1), "gray", 0.02),
    ]


_BUILDERS = {
    "ball": _ball, "cube": _cube, "mug": _mug, "car": _car, "mushroom": _mushroom, "duck": _duck, "house": _house,
}  # fmt: skip
