"""Toys: a design determines shapes and colours; building it in a pose gives the parts.

Features are few and bold, because an image of 256 px passes through an 8x autoencoder and 16 px tokens.
"""

import random
from dataclasses import dataclass, replace

from mini.world.parts import Part
from mini.world.scene import COLOURS
from mini.world.shapes import Finish, box, capsule, cone, cylinder, ring, sphere, turn_x, turn_y, turn_z

BODIES = ("egg", "box", "tube")
HEADS = ("round", "box", "merged", "long")  # merged: the face is on the body
EARS = ("none", "round", "long", "antenna", "horns", "point", "spikes")
LIMBS = ("fat", "thin", "flipper")
SNOUTS = ("none", "muzzle", "beak", "teeth", "smile")
BELLIES = ("none", "oval", "panel", "belt")
HATS = ("none", "cone", "top", "cap", "tall")
TAILS = ("none", "thick", "thin")
_FACES = {
    "round": (1.14, 0.33, 1.48), "box": (1.13, 0.29, 1.43), "merged": (1.04, 0.33, 1.42), "long": (1.18, 0.27, 1.47),
}  # fmt: skip
POSES = ("stand", "wave", "hold", "both_up")
FINISHES = {
    "plastic": Finish(gloss=0.45, metal=0.0),
    "matte": Finish(gloss=0.08, metal=0.0),
    "metal": Finish(gloss=0.7, metal=0.35),
}
SIDES = (-1, 1)


@dataclass(frozen=True)
class ToyDesign:
    """A toy without its pose. kind: one of TOYS, or "toy" for a free mixture. Colours are names in TONES."""

    kind: str
    body: str
    head: str
    limbs: str
    ears: str = "none"
    eyes: int = 2
    snout: str = "none"
    belly: str = "none"
    hat: str = "none"
    tail: str = "none"
    collar: bool = False
    body_colour: str = "red"
    head_colour: str = "red"
    limb_colour: str = "red"
    accent_colour: str = "yellow"
    belly_colour: str = "yellow"
    hat_colour: str = "blue"
    material: str = "plastic"


NAMED = {
    design.kind: design
    for design in (
        ToyDesign("bear", "egg", "round", "fat", ears="round", snout="muzzle", belly="oval"),
        ToyDesign("bunny", "egg", "round", "fat", ears="long", snout="teeth", belly="oval"),
        ToyDesign("robot", "box", "box", "thin", ears="antenna", snout="smile", belly="panel", material="metal"),
        ToyDesign("penguin", "egg", "merged", "flipper", snout="beak", belly="oval"),
        ToyDesign("monster", "egg", "merged", "thin", ears="horns", eyes=1, snout="teeth"),
        ToyDesign("cat", "tube", "round", "fat", ears="point", snout="muzzle", tail="thin"),
        ToyDesign("soldier", "tube", "round", "fat", snout="smile", belly="belt", hat="tall"),
        ToyDesign("dinosaur", "egg", "long", "fat", ears="spikes", belly="oval", tail="thick"),
    )
}


def build_toy(design: ToyDesign, pose: str = "stand", reach: float = 0.36) -> list[Part]:
    """The parts of a toy at the origin that faces +z, about 1.6 high.

    pose: one of POSES. reach: half the distance between the hands when holding.
    """
    assert pose in POSES
    return [
        *_body(design), *_head(design), *_eyes(design), *_snout(design),
        *_ears(design), *_hat(design), *_arms(design, pose, reach), *_legs(design), *_tail(design),
    ]  # fmt: skip


def _finish(design: ToyDesign) -> Finish:
    return FINISHES[design.material]


def _face(design: ToyDesign) -> tuple[float, float, float]:
    """Of the head: height of its centre, z of its front at eye level, height of its top."""
    return _FACES[design.head]


def _body(design: ToyDesign) -> list[Part]:
    colour, finish = design.body_colour, _finish(design)
    tall = design.head == "merged"
    if design.body == "egg":
        front = 0.36
        parts = [sphere((0, 0.76 if tall else 0.52, 0), 0.4, colour, (1.06, 1.66 if tall else 1.02, 0.9), **finish)]
    elif design.body == "box":
        front = 0.27
        half = (0.37, 0.62 if tall else 0.36, 0.27)
        parts = [box((0, 0.16 + half[1], 0), half, colour, 0.09, **finish)]
    else:
        front = 0.32
        half_length = 0.64 if tall else 0.38
        parts = [cylinder((0, 0.14 + half_length, 0), 0.37, half_length, colour, rounding=0.1, taper=0.22, **finish)]
    parts += _belly(design, front, finish)
    if design.collar and not tall:
        parts.append(ring((0, 0.81, 0), 0.25, 0.085, 0.07, design.accent_colour, "y", **finish))
    return parts


def _belly(design: ToyDesign, front: float, finish: Finish) -> list[Part]:
    colour = design.belly_colour
    if design.belly == "oval":
        return [sphere((0, 0.5, front - 0.16), 0.27, colour, (1, 1.12, 0.8), **finish)]
    if design.belly == "panel":
        tones = ((-0.1, "red"), (0.1, "yellow"))
        lights = [sphere((x, 0.56, front + 0.05), 0.06, tone, gloss=0.8) for x, tone in tones]
        return [box((0, 0.54, front), (0.23, 0.18, 0.06), colour, 0.03, **finish), *lights]
    if design.belly == "belt":
        buttons = [sphere((0, y, front - 0.02), 0.065, "gold", gloss=0.8) for y in (0.72, 0.56)]
        buckle = box((0, 0.38, front + 0.05), (0.1, 0.09, 0.05), "gold", 0.02, gloss=0.8)
        return [ring((0, 0.38, 0), 0.33, 0.06, 0.075, "coal", "y"), buckle, *buttons]
    return []


def _head(design: ToyDesign) -> list[Part]:
    colour, finish = design.head_colour, _finish(design)
    y = _face(design)[0]
    if design.head == "round":
        return [sphere((0, y, 0), 0.36, colour, (1.06, 0.95, 0.95), **finish)]
    if design.head == "box":
        return [box((0, y, 0), (0.38, 0.3, 0.29), colour, 0.12, **finish)]
    if design.head == "long":
        skull = sphere((0, y, -0.04), 0.31, colour, (1, 0.95, 1), **finish)
        jaw = sphere((0, y - 0.13, 0.24), 0.27, colour, (1.12, 0.62, 1.25), **finish)
        nostrils = [sphere((x * 0.11, y - 0.04, 0.53), 0.045, "coal") for x in SIDES]
        teeth = [cone((x * 0.16, y - 0.25, 0.44), 0.06, 0.07, "white", turn_x(1.57)) for x in SIDES]
        return [skull, jaw, *nostrils, *teeth]
    return []


def _eyes(design: ToyDesign) -> list[Part]:
    height, front, _ = _face(design)
    y = height + (0.12 if design.head == "long" else 0.06)
    white, pupil = Finish(gloss=0.6), Finish(gloss=0.9)
    if design.eyes == 1:
        y += 0.02
        return [
            sphere((0, y, front - 0.05), 0.2, "white", (1, 1, 0.7), **white),
            sphere((0, y, front + 0.055), 0.1, "black", (1, 1, 0.6), **pupil),
        ]
    parts = []
    for side in SIDES:
        x = side * 0.155
        slit = design.kind == "cat"
        parts.append(sphere((x, y, front - 0.05), 0.125, "green" if slit else "white", (1, 1.1, 0.7), **white))
        shape = (0.5, 1.35, 0.6) if slit else (1, 1.1, 0.6)
        parts.append(sphere((x * 0.92, y - 0.01, front + 0.015), 0.07, "black", shape, **pupil))
    return parts


def _snout(design: ToyDesign) -> list[Part]:
    height, front, _ = _face(design)
    y = height - 0.13
    if design.head == "long":
        return []
    if design.snout == "muzzle":
        tone = "pink" if design.kind == "cat" else "black"
        nose = sphere((0, y + 0.06, front + 0.11), 0.07, tone, (1.25, 0.85, 0.8), gloss=0.8)
        return [sphere((0, y, front - 0.02), 0.17, design.belly_colour, (1.15, 0.8, 0.8), **_finish(design)), nose]
    if design.snout == "beak":
        return [cone((0, y + 0.02, front + 0.08), 0.13, 0.15, "orange", "z", gloss=0.5)]
    if design.snout == "smile":
        mouth = sphere((0, y - 0.07, front - 0.02), 0.11, "coal", (1.3, 0.65, 0.5))
        return [mouth, sphere((0, y - 0.1, front + 0.015), 0.065, "pink", (1.1, 0.5, 0.5))]
    if design.snout == "teeth" and design.eyes == 1:
        mouth = box((0, y - 0.12, front - 0.01), (0.21, 0.075, 0.06), "black", 0.05)
        return [mouth, *(box((x * 0.09, y - 0.1, front + 0.035), (0.055, 0.05, 0.035), "white", 0.02) for x in SIDES)]
    if design.snout == "teeth":
        teeth = [box((x * 0.045, y - 0.07, front - 0.01), (0.043, 0.075, 0.05), "white", 0.02) for x in SIDES]
        return [sphere((0, y + 0.04, front + 0.02), 0.065, "pink", (1.3, 0.9, 1), gloss=0.7), *teeth]
    return []


def _ears(design: ToyDesign) -> list[Part]:
    top, finish = _face(design)[2], _finish(design)
    head = design.body_colour if design.head == "merged" else design.head_colour
    inner = design.belly_colour
    if design.ears == "round":
        outer = [sphere((x * 0.29, top - 0.06, -0.02), 0.165, head, (1, 1, 0.65), **finish) for x in SIDES]
        return outer + [sphere((x * 0.29, top - 0.06, 0.06), 0.1, inner, (1, 1, 0.6), **finish) for x in SIDES]
    if design.ears == "long":
        parts = []
        for x in SIDES:
            turn = turn_z(-x * 0.18)
            parts.append(sphere((x * 0.2, top + 0.22, -0.02), 0.14, head, (0.85, 2.5, 0.6), turn, **finish))
            parts.append(sphere((x * 0.2, top + 0.22, 0.05), 0.085, inner, (0.8, 2.8, 0.5), turn, **finish))
        return parts
    if design.ears == "antenna":
        return [
            capsule((0, top - 0.05, 0), (0, top + 0.17, 0), 0.05, "silver", gloss=0.7, metal=0.3),
            sphere((0, top + 0.26, 0), 0.12, design.accent_colour, gloss=0.8),
        ]
    if design.ears == "horns":
        tone = design.accent_colour
        return [cone((x * 0.27, top + 0.06, 0), 0.14, 0.2, tone, turn_z(-x * 0.5) @ _UP, **finish) for x in SIDES]
    if design.ears == "point":
        leans = [(x * 0.23, turn_z(-x * 0.25) @ _UP) for x in SIDES]
        outer = [cone((x, top + 0.04, 0), 0.18, 0.19, head, lean, **finish) for x, lean in leans]
        return outer + [cone((x, top + 0.03, 0.07), 0.12, 0.14, inner, lean, **finish) for x, lean in leans]
    if design.ears == "spikes":
        places = ((top + 0.08, 0.04, 0.25), (top, -0.22, -0.5), (top - 0.34, -0.38, -1.0), (0.66, -0.38, -1.2))
        return [cone((0, y, z), 0.19, 0.2, design.accent_colour, turn_x(tip) @ _UP, **finish) for y, z, tip in places]
    return []


_UP = turn_x(-1.5707963)


def _hat(design: ToyDesign) -> list[Part]:
    top, colour = _face(design)[2], design.hat_colour
    finish = FINISHES["plastic"]
    if design.hat == "cone":
        peak = sphere((0, top + 0.47, 0), 0.11, design.accent_colour, **finish)
        return [cone((0, top + 0.2, 0), 0.29, 0.27, colour, **finish), peak]
    if design.hat == "top":
        brim = cylinder((0, top - 0.02, 0), 0.4, 0.045, colour, **finish)
        band = cylinder((0, top + 0.07, 0), 0.265, 0.06, design.accent_colour, rounding=0.02, **finish)
        return [brim, band, cylinder((0, top + 0.16, 0), 0.25, 0.22, colour, **finish)]
    if design.hat == "cap":
        peak = cylinder((0, top - 0.05, 0.25), 0.26, 0.04, colour, **finish)
        return [sphere((0, top - 0.08, 0), 0.34, colour, (1, 0.72, 1), **finish), peak]
    if design.hat == "tall":
        plume = sphere((0, top + 0.22, 0.27), 0.1, design.accent_colour, (0.9, 1.2, 0.8), **finish)
        return [cylinder((0, top + 0.16, 0), 0.29, 0.3, colour, rounding=0.14, gloss=0.15), plume]
    return []


def _arms(design: ToyDesign, pose: str, reach: float) -> list[Part]:
    radius = {"fat": 0.12, "thin": 0.085, "flipper": 0.115}[design.limbs]
    return [part for side in SIDES for part in _arm(design, pose, reach, side, radius)]


def _arm(design: ToyDesign, pose: str, reach: float, side: int, radius: float) -> list[Part]:
    finish, colour = _finish(design), design.limb_colour
    shoulder = (side * 0.33, 0.72, 0.0)
    if pose == "hold":
        shoulder, hand = (side * 0.33, 0.7, 0.06), (side * reach, 0.5, 0.5)
    elif pose == "both_up" or (pose == "wave" and side == 1):
        hand = (side * 0.66, 1.08, 0.1)
    else:
        hand = (side * 0.56, 0.4, 0.12)
    arm = capsule(shoulder, hand, radius, colour, **finish)
    if design.limbs == "flipper" and pose != "hold":
        return [replace(arm, stretch=(1.1, 1.1, 1.1), taper=0.4)]
    return [arm, sphere(hand, 1.25 * radius, colour, **finish)]


def _legs(design: ToyDesign) -> list[Part]:
    finish = _finish(design)
    colour = "orange" if design.limbs == "flipper" else design.limb_colour
    feet = [
        sphere((x * 0.21, 0.09, 0.1), 0.16, colour, (1, 0.62, 1.35), turn_y(x * 0.25), **finish) for x in SIDES
    ]  # toes point out
    radius = {"fat": 0.145, "thin": 0.1, "flipper": 0.08}[design.limbs]
    return feet + [capsule((x * 0.2, 0.12, 0.02), (x * 0.18, 0.34, 0), radius, colour, **finish) for x in SIDES]


def _tail(design: ToyDesign) -> list[Part]:
    finish, colour = _finish(design), design.body_colour
    if design.tail == "thick":
        return [capsule((-0.1, 0.28, -0.2), (-0.85, 0.3, -0.45), 0.22, colour, taper=0.75, **finish)]
    if design.tail == "thin":
        return [
            capsule((-0.15, 0.25, -0.25), (-0.6, 0.34, -0.34), 0.085, colour, **finish),
            capsule((-0.6, 0.34, -0.34), (-0.7, 0.84, -0.34), 0.085, colour, **finish),
        ]
    return []


def random_design(rng: random.Random) -> ToyDesign:
    """A random toy, which may look like a concept; `concepts.random_toy` leaves those out."""
    return _recoloured(_named(rng) if rng.random() < 0.55 else _mixture(rng), rng)


def _named(rng: random.Random) -> ToyDesign:
    design = NAMED[rng.choice(list(NAMED))]
    if design.hat == "none" and rng.random() < 0.12:
        return replace(design, hat=rng.choice(("cone", "top", "cap")), collar=rng.random() < 0.2)
    return replace(design, collar=rng.random() < 0.15)


def _mixture(rng: random.Random) -> ToyDesign:
    """Features chosen independently, but never a combination that makes a named kind."""
    while True:
        hat = rng.choice(("none", "none", "cone", "top", "cap"))
        design = ToyDesign(
            "toy", rng.choice(BODIES), rng.choice(HEADS), rng.choice(LIMBS),
            ears=rng.choice(EARS) if hat == "none" else "none", eyes=rng.choice((1, 2, 2)),
            snout=rng.choice(SNOUTS), belly=rng.choice(("none", "oval", "panel")), hat=hat,
            tail=rng.choice(("none", "none", "thick", "thin")), collar=rng.random() < 0.25,
        )  # fmt: skip
        if not any(_alike(design, named) for named in NAMED.values()):
            return design


def _alike(design: ToyDesign, named: ToyDesign) -> bool:
    """Whether the head would be mistaken for that of a named kind."""
    return (design.head, design.ears, design.snout, design.eyes) == (named.head, named.ears, named.snout, named.eyes)


def _recoloured(design: ToyDesign, rng: random.Random) -> ToyDesign:
    """Random colours; in 40 of 100 designs, head and limbs differ from the body."""
    body, head, limbs, accent, belly, hat = (rng.choice(list(COLOURS)) for _ in range(6))
    if rng.random() >= 0.4:
        head = limbs = body
    elif rng.random() < 0.3:
        limbs = body
    if design.kind == "soldier":
        head, hat = "skin", "coal"
    others = [name for name in COLOURS if name not in (body, head)]
    accent, belly, hat = (
        name if name in others or name == "coal" else rng.choice(others) for name in (accent, belly, hat)
    )
    finish = "metal" if design.kind == "robot" and rng.random() < 0.6 else rng.choice(("plastic",) * 4 + ("matte",))
    return replace(
        design, body_colour=body, head_colour=head, limb_colour=limbs, accent_colour=accent, belly_colour=belly,
        hat_colour=hat, material=finish,
    )  # fmt: skip
