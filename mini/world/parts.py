"""The part that everything is built of, and its row in the renderer's table.

A part is a box, cylinder, capsule, ring, ellipsoid or cone. Only its numbers tell which, so that a batch of scenes is
one tensor. A point p has these coordinates in the part's frame:

    q = R^T (p - centre) / stretch,   then x and y are divided by 1 - taper * (z / (half_z + rounding) + 1) / 2

where the divisor is limited to [0.12, 1] and +z is the part's axis. With `around`, x is replaced by the distance to
that axis minus `ring` (its absolute value if ring > 0), and y by 0. The distance is that to a box of half sizes `half`,
minus `rounding`, times the smallest stretch: a lower bound. For a tapered part it is also multiplied by
min(0.55, max(width, 0.2)), where width is the divisor of x and y. This makes it short enough for rays to hit the part,
although near the narrow end it may still exceed the true distance.
"""

from dataclasses import dataclass, replace

import numpy as np

MAX_PARTS = 72  # in one scene; two of the most detailed toys have 58, three concepts up to 66
CENTRE, ROTATION, STRETCH, HALF = slice(0, 3), slice(3, 12), slice(12, 15), slice(15, 18)
ROUNDING, AROUND, RING, TAPER = 18, 19, 20, 21
COLOUR, GLOSS, METAL = slice(22, 25), 25, 26
FIELDS = 28  # the last field is unused: it aligns rows to 16 bytes
FAR_BELOW = -50.0  # the height of unused rows


@dataclass(frozen=True)
class Part:
    """One part, in world units. A toy is about 1.6 high and stands on y = 0; +z points to the viewer.

    rotation: [3, 3], whose columns are the part's axes. colour: linear RGB in [0, 1]. gloss: strength of the highlight,
    0 to 1. metal: how much the surface reflects its surroundings, 0 to 1.
    """

    centre: np.ndarray
    colour: tuple[float, float, float]
    rotation: np.ndarray
    stretch: tuple[float, float, float] = (1.0, 1.0, 1.0)
    half: tuple[float, float, float] = (0.0, 0.0, 0.0)
    rounding: float = 0.01
    around: bool = False
    ring: float = 0.0
    taper: float = 0.0
    gloss: float = 0.3
    metal: float = 0.0

    def moved(self, size: float, rotation: np.ndarray, position: np.ndarray) -> "Part":
        """The part, scaled by `size` and rotated around the origin, then moved."""
        return replace(
            self,
            centre=size * (rotation @ self.centre) + position,
            rotation=rotation @ self.rotation,
            half=tuple(size * side for side in self.half),
            rounding=size * self.rounding,
            ring=size * self.ring,
        )


def part_table(parts: list[Part]) -> np.ndarray:
    """The renderer's table, float32 [MAX_PARTS, FIELDS]; unused rows are far below the floor."""
    assert len(parts) <= MAX_PARTS, f"{len(parts)} parts"
    table = np.zeros((MAX_PARTS, FIELDS), np.float32)
    table[:, 1] = FAR_BELOW
    table[:, ROTATION] = np.eye(3).reshape(-1)
    table[:, STRETCH] = 1
    table[:, ROUNDING] = 0.01
    for row, part in zip(table, parts, strict=False):
        row[CENTRE], row[ROTATION] = part.centre, part.rotation.reshape(-1)
        row[STRETCH], row[HALF] = part.stretch, part.half
        row[ROUNDING], row[AROUND], row[RING], row[TAPER] = part.rounding, part.around, part.ring, part.taper
        row[COLOUR], row[GLOSS], row[METAL] = part.colour, part.gloss, part.metal
    return table
