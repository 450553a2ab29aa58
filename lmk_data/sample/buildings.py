"""Imaginary landmarks, one per class: each kind is a list of parts whose sizes and styles are ranges to draw from.

Pure: a seed and a class number in, a building out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import cos, pi, sin, tau

import numpy as np
from numpy.random import Generator

from lmk_data.sample.solids import Builder, Flat, Landmark, Point, arch, flat_shape

_Range = float | tuple[float, float]  # a number, or the bounds of a uniform draw
_Count = int | tuple[int, ...]  # a number, or the numbers to choose from
_Profile = tuple[tuple[float, ...], ...]  # (radius, height) or (half width, half depth, height)


@lru_cache(maxsize=16)
def design_landmark(seed: int, number: int) -> Landmark:
    """Return the building of class `number`; any `len(_KINDS)` consecutive classes are all of different kinds."""
    order = np.random.default_rng([seed, 1]).permutation(len(_KINDS))
    noun, over_water, parts = _KINDS[order[number % len(_KINDS)]]
    rng = np.random.default_rng([seed, 2, number])
    builder, top = Builder(), 0.0
    for part in parts:
        if rng.random() < part.chance:
            top = part.build(builder, rng, top if part.on else part.base)
    return builder.finish(noun, over_water, rng)


# What ends a storey or a building: solids of (sides, or 0 for those of the body; profile; materials). A profile is in
# units of the body's half width and starts at the body's top.
_DOMES: dict[str, _Profile] = {
    "dome": tuple((max(cos(a), 0.04), 1.1 * sin(a)) for a in np.linspace(0, pi / 2, 8).tolist()),
    "onion": ((0.78, 0), (1.1, 0.4), (1.1, 0.8), (0.78, 1.28), (0.44, 1.58), (0.18, 1.86), (0.05, 2.2)),
}
_CROWNS: dict[str, tuple[tuple[int, _Profile, str], ...]] = {
    "flat": (),
    "cone": ((16, ((1.1, 0), (0, 2.4)), "roof"),),
    "moulding": ((0, ((1.1, 0), (1.1, 0.14)), "trim"),),
    "eaves": ((0, ((0.98, -0.1), (1.42, -0.03), (1.1, 0.12), (0.88, 0.27)), "trim roof roof"),),
    "gable": ((0, ((1.07, 1.1, 0), (1.07, 0, 0.62)), "roof"),),
    "pediment": ((0, ((1.02, 1.02, 0), (1.02, 1.02, 0.12)), "trim"), (0, ((1.06, 1.03, 0.12), (0, 1.03, 0.5)), "wall")),
    "spire": ((0, ((1.12, 0), (0.55, 1.3), (0, 3.3)), "roof"), (6, ((0.07, 3.1), (0.04, 4)), "gold")),
    "mast": ((0, ((0.8, 0), (0.5, 0.5)), "trim"), (8, ((0.5, 0.5), (0.16, 1.2), (0.03, 2.8)), "metal")),
    "pagoda": ((0, ((1.5, -0.03), (0.7, 0.35), (0.06, 0.8)), "roof"), (8, ((0.1, 0.8), (0.02, 2)), "gold")),
    "lantern": (
        (0, ((1.45, 0), (1.45, 0.25)), "trim"), (10, ((0.75, 0.25), (0.75, 1.6)), "glass"),
        (12, ((1, 1.6), (0.7, 2.3), (0.1, 2.7), (0.05, 3.4)), "roof"),
    ),
    "statue": ((14, ((0.8, 0), (1.5, 0.7), (1.5, 1)), "trim"), (8, ((0.6, 1), (0.35, 2), (0.5, 3), (0, 3.7)), "gold")),
    "battlements": ((0, ((1.15, 0), (1.15, 0.3)), "trim"),),  # and merlons, see `_add_crown`
    **{name: ((16, profile, "roof"),) for name, profile in _DOMES.items()},
    **{f"high {name}": (
        (12, ((0.86, 0), (0.86, 0.4)), "trim"),
        (16, tuple((0.9 * radius, 0.4 + 0.9 * height) for radius, height in profile), "roof"),
        (6, tuple((r, 0.35 + 0.9 * profile[-1][1] + h) for r, h in ((0.04, 0), (0.1, 0.2), (0.02, 0.7))), "gold"),
    ) for name, profile in _DOMES.items()},
}  # fmt: skip


def _add_crown(b: Builder, at: Flat, z: float, half: Flat, sides: int, name: str) -> float:
    """Put a crown on a body of the given half width and half depth. Returns the height of its top."""
    top = z
    for own_sides, profile, materials in _CROWNS[name]:
        rings = [(half[0] * ring[0], half[1] * ring[-2], z + half[0] * ring[-1]) for ring in profile]
        b.loft(at, rings, own_sides or sides, materials.split())
        top = rings[-1][2]
    wide = half[0] * 0.16
    for k in range(12 if name == "battlements" else 0):
        x, y = cos(tau * k / 12), sin(tau * k / 12)
        reach = half[0] / (max(abs(x), abs(y)) if sides == 4 else 1)
        b.loft((at[0] + x * reach, at[1] + y * reach), [(wide, wide, top), (wide, wide, top + 2.5 * wide)], 4, ["wall"])
    return top


@dataclass(frozen=True, kw_only=True)
class _Part:
    """Storeys with a crown on a regular polygon or a rectangle. Strings separate their options by "|"."""

    at: Sequence[Flat] = ((0, 0),)  # (x, y) of each copy
    base: float = 0.0  # height of its foot
    on: bool = False  # stands on the part before it instead
    chance: float = 1.0  # that the building has it
    half: _Range  # half width at the foot
    height: _Range
    depth: float = 1.0  # in relation to the width
    taper: _Range = 1.0  # width at the top in relation to the foot
    sloped: bool = False  # narrows along each storey, not from one to the next
    storeys: _Count = 1
    sides: _Count = 4
    material: str = "wall"  # spaces separate those that storeys take in turn
    columns: _Count = 0  # of windows, on every `every`-th side
    rows: _Count = 1
    every: int = 1
    shape: str = "arch|rect|pointed"
    glass: str = "glass"
    disc: float = 0.0  # chance of a clock or a rose window
    spans: _Count = 0  # above 0: a wall with so many arches through it, and no storeys
    between: str = "moulding"
    top: str = "flat"

    def build(self, b: Builder, rng: Generator, foot: float) -> float:
        """Add the part at the height `foot`. Returns the height of its top."""
        half, height, taper = (_drawn(rng, value) for value in (self.half, self.height, self.taper))
        counts = (self.storeys, self.sides, self.columns, self.rows, self.spans)
        storeys, sides, columns, rows, spans = (_counted(rng, count) for count in counts)
        styles = (self.shape, self.material, self.between, self.top)
        shape, material, between, top = (str(rng.choice(style.split("|"))) for style in styles)
        materials, disc, steps = material.split(), rng.random() < self.disc, max(1, storeys - (not self.sloped))
        if spans:
            return _add_arcade(b, foot, (half, half * self.depth, height), spans, shape == "pointed")
        z = foot
        for at in self.at:
            z = foot
            for k in range(storeys):
                low = half * (1 + (taper - 1) * k / steps)
                high = half * (1 + (taper - 1) * (k + 1) / steps) if self.sloped else low
                rings = [(low, low * self.depth, z), (high, high * self.depth, z + height / storeys)]
                faces = b.loft(at, rings, sides, [materials[k % len(materials)]])[:: self.every]
                z, last = z + height / storeys, k == storeys - 1
                for side, face in enumerate(faces):
                    if disc and last:
                        b.disc(face, 2 * half * storeys / height)
                    elif columns:
                        across = max(1, round(columns * self.depth)) if sides == 4 and side % 2 else columns
                        b.windows(face, (across, rows), shape, self.glass)
                z = _add_crown(b, at, z, (high, high * self.depth), sides, top if last else between)
        return z


def _drawn(rng: Generator, value: _Range) -> float:
    return rng.uniform(*value) if isinstance(value, tuple) else value


def _counted(rng: Generator, count: _Count) -> int:
    return int(rng.choice(count)) if isinstance(count, tuple) else count


def _add_arcade(b: Builder, foot: float, size: Point, spans: int, pointed: bool) -> float:
    """Add a wall of (half width, half depth, height) with arches through it. Returns the height of its top."""
    half, deep, height = size
    pitch, outline = 2 * half / spans, [(-half, foot)]
    opening = pitch * (0.28 if spans < 3 else 0.38)
    rise = min(opening, height * 0.6)
    for k in range(spans):
        middle = -half + pitch * (k + 0.5)
        curve = arch(middle, foot + height * 0.84 - rise, opening, rise, pointed)
        outline += [(middle - opening, foot), *curve[::-1], (middle + opening, foot)]
    face = b.wall([*outline, (half, foot), (half, foot + height), (-half, foot + height)], -deep, deep, "wall")
    b.paint(face, flat_shape("rect", 0.5, 0.91, 0.5, 0.02), "trim")
    return foot + height


def _around(num_x: int, num_y: int, half_x: float, half_y: float) -> list[Flat]:
    """Return places along the edge of a rectangle, `num_x` and `num_y` to a side."""
    xs, ys = np.linspace(-half_x, half_x, num_x).tolist(), np.linspace(-half_y, half_y, num_y).tolist()
    return [(x, y) for x in xs for y in ys if abs(x) == half_x or abs(y) == half_y]


_CORNERS = ((-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0))
# fmt: off
_KINDS: tuple[tuple[str, bool, tuple[_Part, ...]], ...] = (
    ("Bell Tower", False, (
        _Part(half=(2.6, 4.4), height=(24, 34), storeys=(3, 4, 5), taper=(0.75, 1), columns=(1, 2, 3), rows=(1, 2),
              disc=0.6, top="spire|high dome|high onion|battlements"),
        _Part(at=[(13, 1)], half=(5, 7), depth=0.7, height=(5, 8), columns=(3, 5), top="gable", chance=0.6),
    )),
    ("Bridge", True, (
        _Part(half=34, depth=0.1, height=(1.2, 2), base=6, material="metal|stone"),
        _Part(at=[(-15, 0), (15, 0)], half=(3, 4), depth=1.3, height=(16, 26), storeys=(2, 3), columns=(1, 2), rows=2,
              top="spire|battlements|mast"),
        _Part(half=12, depth=0.1, height=(1, 2), base=14, material="metal", chance=0.7),
        _Part(at=[(-35, 0), (35, 0)], half=3, depth=1.4, height=(7, 14), material="stone|wall"),
    )),
    ("Capitol", False, (
        _Part(half=20, depth=0.6, height=1, material="stone"),
        _Part(at=[(-13.5, 0), (13.5, 0)], half=5, height=(5, 6.5), base=1, columns=(3, 4), rows=2, top="moulding"),
        _Part(at=_around(5, 1, 5.2, 9), half=0.6, height=6, base=1, sides=10, material="trim"),
        _Part(at=[(0, -8.2)], half=6, depth=0.3, height=0.5, on=True, material="trim", top="pediment"),
        _Part(half=8.4, depth=0.72, height=(7, 9), base=1, columns=5, rows=2, top="moulding"),
        _Part(half=(4, 5), height=(3, 6), on=True, sides=16, columns=1, top="high dome"),
    )),
    ("Arch", False, (
        _Part(half=(10, 13), depth=0.3, height=(14, 18), spans=(1, 3)),
        _Part(half=13, depth=0.33, height=(2.5, 5), on=True, columns=3, shape="rect", glass="trim", top="moulding"),
        _Part(half=2.2, height=0.5, on=True, sides=12, top="dome|statue|flat"),
    )),
    ("Lighthouse", False, (
        _Part(half=(5.5, 8), height=1.5, sides=(8, 20), material="stone"),
        _Part(half=(3.4, 4.6), height=(22, 32), on=True, taper=(0.5, 0.65), sloped=True, storeys=(3, 4, 5, 7), sides=20,
              every=5, material="wall roof|wall metal|wall", columns=1, between="flat", top="lantern"),
        _Part(at=[(13, 1)], half=(4, 5), depth=0.7, height=(3.6, 5.5), columns=(3, 4), top="gable"),
    )),
    ("Old Bridge", True, (
        _Part(half=30, depth=0.09, height=(9, 14), spans=(3, 4, 5, 6), shape="arch|pointed"),
        _Part(half=30, depth=0.07, height=(5, 8), spans=(6, 9, 12), on=True, chance=0.45),
        _Part(at=[(-33, 0), (33, 0)], half=3, height=(17, 24), columns=1, rows=3, top="spire|battlements", chance=0.5),
    )),
    ("Mausoleum", False, (
        _Part(half=15, height=(1, 2.6), material="trim"),
        _Part(half=(7, 9), height=(9, 12), on=True, sides=(4, 8), columns=(1, 3), shape="pointed", glass="dark"),
        _Part(half=(3.6, 5.4), height=2.4, on=True, sides=18, top="high onion|high dome"),
        _Part(at=[(13 * x, 13 * y) for x, y in _CORNERS], half=1, height=(15, 22), taper=0.8, sloped=True,
              storeys=(2, 3, 4), sides=10, top="onion|dome|cone", chance=0.8),
    )),
    ("Castle", False, (
        _Part(half=10, depth=0.15, height=(7, 10), spans=1, shape="arch|pointed"),
        _Part(at=[(-12, 0), (12, 0)], half=3, height=(12, 22), sides=14, columns=1, every=2, top="cone|battlements"),
        _Part(at=[(4, 8)], half=(3.2, 5), height=(14, 22), columns=3, rows=(3, 4), top="gable|spire|battlements"),
    )),
    ("Radio Tower", False, (
        _Part(half=(5, 9), height=(3, 6), sides=(4, 12), columns=(0, 3), material="stone|wall", top="moulding"),
        _Part(half=(2, 3.2), height=(24, 34), on=True, taper=(0.4, 0.6), sloped=True, sides=12, material="wall|trim"),
        _Part(half=(3, 5), height=(2, 4), on=True, storeys=(1, 2), sides=16, columns=1, top="cone|mast|dome"),
        _Part(half=0.7, height=(8, 14), on=True, storeys=4, sides=8, material="metal trim", between="flat"),
    )),
    ("Church", False, (
        _Part(half=7, height=(8, 11), columns=(3, 4, 5), rows=(1, 2), top="moulding"),
        _Part(half=2.4, height=(4, 7), on=True, sides=10, columns=1, top="high onion|high onion|spire"),
        _Part(at=[(4.8 * x, 4.8 * y) for x, y in _CORNERS], half=1.6, height=(12, 15), sides=10, top="high onion|cone"),
        _Part(at=[(11, 2)], half=2.4, height=(12, 20), sides=8, columns=1, rows=3, top="spire", chance=0.6),
    )),
    ("Pagoda", False, (
        _Part(half=11, height=1.6, sides=(4, 8), material="stone"),
        _Part(half=(5.5, 8), height=(12, 20), on=True, storeys=(3, 4, 5, 7), taper=(0.4, 0.65), sides=(4, 8),
              material="metal|wall", columns=3, shape="rect", between="eaves", top="pagoda"),
    )),
    ("Cathedral", False, (
        _Part(half=5, depth=0.3, height=(15, 18), disc=1, top="pediment"),
        _Part(at=[(-8, 0), (8, 0)], half=2.9, height=(20, 29), storeys=(2, 4), columns=(1, 2), top="spire|battlements"),
        _Part(at=[(0, 12)], half=5, depth=2, height=(10, 13), columns=2, top="pediment"),
        _Part(at=[(x, y + 12) for x, y in _around(2, 5, 6, 9)], half=0.6, height=9, material="trim", top="spire"),
    )),
    ("Temple", False, (
        _Part(half=(12, 13), depth=1.2, height=(1.5, 3), storeys=3, taper=0.88, material="stone", between="flat"),
        _Part(at=_around(6, 7, 9, 11.5), half=0.9, height=(8, 11), on=True, taper=0.75, sloped=True, sides=9),
        _Part(half=10.2, depth=1.2, height=1.5, on=True, columns=9, shape="rect", glass="metal", top="pediment|flat"),
        _Part(half=7, depth=1.2, height=9, base=1.5, material="roof|trim"),
    )),
    ("Building", False, (
        _Part(half=(5, 8), height=(30, 44), storeys=(2, 3, 4, 5), taper=(0.3, 0.7), sides=(4, 4, 14), columns=(3, 5, 6),
              rows=(5, 7), shape="rect|arch", top="mast|spire|moulding"),
    )),
    ("Column", False, (
        _Part(half=(7, 10), height=(2, 5), storeys=(2, 3, 5), taper=0.5, material="stone", between="flat"),
        _Part(half=3, height=(3, 6), on=True, columns=1, shape="rect", glass="trim", top="moulding"),
        _Part(half=(1.5, 2.3), height=(20, 32), on=True, taper=0.7, sloped=True, storeys=(1, 3, 5, 8), sides=(4, 14),
              material="wall|wall trim", between="flat", top="statue|statue|cone"),
    )),
)
# fmt: on
