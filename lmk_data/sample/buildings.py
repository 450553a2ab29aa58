"""Imaginary landmarks, one per class: each kind is a list of parts whose sizes and styles are ranges to draw from.

Pure: a seed and a class number in, a building out.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import cos, pi, sin, tau
from typing import TypeVar

import numpy as np
from numpy.random import Generator

from lmk_data.sample.solids import Builder, Face, Flat, Landmark, Point, arch, flat_shape

_T = TypeVar("_T")
_Range = float | tuple[float, float]  # a number, or the bounds of a uniform draw
_Profile = tuple[tuple[float, ...], ...]  # (radius, height) or (half width, half depth, height)


@lru_cache(maxsize=16)
def design_landmark(seed: int, number: int) -> Landmark:
    """Return the building of class `number`; any `len(_KINDS)` consecutive classes are all of different kinds."""
    order = np.random.default_rng([seed, 1]).permutation(len(_KINDS))
    noun, over_water, parts = _KINDS[order[number % len(_KINDS)]]
    rng = np.random.default_rng([seed, 2, number])
    builder, top, mirror = Builder(), 0.0, float(rng.choice([-1, 1]))
    for part in parts:
        if callable(part):
            part(builder, rng)
        elif rng.random() < part.chance:
            mirrored = replace(part, at=[(x * mirror, y) for x, y in part.at])
            top = mirrored.build(builder, rng, top if part.on else part.base)
    return builder.finish(noun, over_water, rng)


# What ends a storey or a building: solids of (sides, or 0 for those of the body; profile; materials). A profile is in
# units of the body's half width and starts at the body's top.
_DOMES: dict[str, _Profile] = {
    "dome": tuple((max(cos(a), 0.04), 0.95 * sin(a)) for a in np.linspace(0, pi / 2, 8).tolist()),
    "tall": tuple((max(cos(a), 0.04), 1.35 * sin(a)) for a in np.linspace(0, pi / 2, 8).tolist()),
    "onion": ((0.78, 0), (1.02, 0.28), (1.14, 0.6), (1.05, 0.95), (0.78, 1.28), (0.44, 1.58), (0.18, 1.86), (0.05, 2.2)),
    "cone": ((1.1, 0), (0, 2.4)),
}  # fmt: skip
_CROWNS: dict[str, tuple[tuple[int, _Profile, str], ...]] = {
    "flat": (),
    "moulding": ((0, ((1.1, 0), (1.1, 0.14)), "trim"),),
    "eaves": ((0, ((0.98, -0.1), (1.42, -0.03), (1.1, 0.12), (0.88, 0.27)), "trim roof roof"),),
    "wide eaves": ((0, ((0.98, -0.1), (1.7, -0.03), (1.2, 0.1), (0.88, 0.27)), "trim roof roof"),),
    "gable": ((0, ((1.07, 1.1, 0), (1.07, 0, 0.62)), "roof"),),
    "pediment": (
        (0, ((1.02, 1.02, 0), (1.02, 1.02, 0.12)), "trim"),
        (0, ((1.06, 1.03, 0.12), (0, 1.03, 0.5)), "wall"),
    ),
    "spire": ((0, ((1.12, 0), (0.55, 1.3), (0, 3.3)), "roof"), (6, ((0.07, 3.1), (0.04, 4)), "gold")),
    "mast": ((0, ((0.8, 0), (0.5, 0.5)), "trim"), (8, ((0.5, 0.5), (0.16, 1.2), (0.03, 2.8)), "metal")),
    "pagoda": (
        (0, ((1.5, -0.03), (0.7, 0.35), (0.06, 0.8)), "roof"),
        (8, ((0.05, 0.8), (0.14, 1), (0.05, 1.2), (0.12, 1.4), (0.02, 2)), "gold"),
    ),
    "lantern": (
        (0, ((1.45, 0), (1.45, 0.25)), "trim"),
        (10, ((0.75, 0.25), (0.75, 1.6)), "glass"),
        (12, ((1, 1.6), (0.7, 2.3), (0.1, 2.7), (0.05, 3.4)), "roof"),
    ),
    "statue": (
        (14, ((0.8, 0), (1.5, 0.7), (1.5, 1)), "trim"),
        (8, ((0.6, 1), (0.35, 1.9), (0.5, 2.7), (0.2, 3), (0.3, 3.3), (0, 3.7)), "gold"),
    ),
    "obelisk": ((0, ((1, 0), (0, 1.7)), "gold"),),
    "battlements": ((0, ((1.15, 0), (1.15, 0.3)), "trim"),),  # and merlons, see `_crown`
    **{name: ((16, profile, "roof"),) for name, profile in _DOMES.items()},
    **{
        f"{name} tower": (
            (12, ((0.86, 0), (0.86, 0.4)), "trim"),
            (16, tuple((0.9 * radius, 0.4 + 0.9 * height) for radius, height in profile), "roof"),
            (6, tuple((r, 0.35 + 0.9 * profile[-1][1] + h) for r, h in ((0.04, 0), (0.1, 0.2), (0.02, 0.7))), "gold"),
        )
        for name, profile in _DOMES.items()
    },
}


def _crown(b: Builder, at: Flat, z: float, half: Flat, sides: int, name: str) -> float:
    """Put a crown on a body of the given half width and half depth. Returns the height of its top."""
    top = z
    for own_sides, profile, materials in _CROWNS[name]:
        rings = [(half[0] * ring[0], half[1] * ring[-2], z + half[0] * ring[-1]) for ring in profile]
        b.loft(at, rings, own_sides or sides, materials.split())
        top = rings[-1][2]
    if name == "battlements":
        for k in range(12):
            x, y = cos(tau * k / 12), sin(tau * k / 12)
            reach = half[0] / (max(abs(x), abs(y)) if sides == 4 else 1)
            ring = (half[0] * 0.16, half[0] * 0.16)
            b.loft((at[0] + x * reach, at[1] + y * reach), [(*ring, top), (*ring, top + half[0] * 0.4)], 4, ["wall"])
    return top


@dataclass(frozen=True, kw_only=True)
class _Part:
    """A part of a building: drawn once, put up at every (x, y) of `at`."""

    at: Sequence[Flat] = ((0, 0),)
    base: float = 0.0
    on: bool = False  # stands on the part before it, instead of at the height `base`
    chance: float = 1.0  # that the building has it


@dataclass(frozen=True, kw_only=True)
class _Body(_Part):
    """Storeys on a rectangle or a regular polygon, with a crown. A sequence lists what is chosen from."""

    half: _Range  # half width at the foot
    height: _Range
    depth: _Range = 1.0  # in relation to the width, as `taper`, the width at the top
    taper: _Range = 1.0
    sloped: bool = False
    storeys: Sequence[int] = (1,)
    sides: Sequence[int] = (4,)
    materials: Sequence[str] = ("wall",)  # separated by spaces where storeys take turns
    columns: Sequence[int] = (0,)  # of windows, on every `every`-th side
    rows: Sequence[int] = (1,)
    every: int = 1
    shape: Sequence[str] = ("arch", "rect", "pointed")
    glass: str = "glass"
    disc: float = 0.0  # chance of a clock or a rose window
    between: Sequence[str] = ("moulding",)
    top: Sequence[str] = ("moulding",)

    def build(self, b: Builder, rng: Generator, foot: float) -> float:
        half, height, depth, taper = (_drawn(rng, r) for r in (self.half, self.height, self.depth, self.taper))
        storeys, sides, columns, rows = (_chosen(rng, s) for s in (self.storeys, self.sides, self.columns, self.rows))
        shape, between, top = (_chosen(rng, s) for s in (self.shape, self.between, self.top))
        materials, disc = _chosen(rng, self.materials).split(), rng.random() < self.disc
        z = foot
        for at in self.at:
            z = foot
            for k in range(storeys):
                low = half * (1 + (taper - 1) * k / max(1, storeys - (not self.sloped)))
                high = half * (1 + (taper - 1) * (k + 1) / storeys) if self.sloped else low
                rings = [(low, low * depth, z), (high, high * depth, z + height / storeys)]
                faces = b.loft(at, rings, sides, [materials[k % len(materials)]])[:sides]
                z += height / storeys
                for side, face in enumerate(faces[:: self.every]):
                    if disc and k == storeys - 1:
                        _paint_disc(b, face, 2 * half * storeys / height)
                    elif columns:
                        across = max(1, round(columns * depth)) if sides == 4 and side % 2 else columns
                        b.windows(face, (across, rows), shape, self.glass)
                last = k == storeys - 1
                z = _crown(b, at, z, (high, high * depth), sides, top if last else between)
        return z


@dataclass(frozen=True, kw_only=True)
class _Arcade(_Part):
    """A wall with arches through it; a sequence lists what is chosen from."""

    half: _Range
    height: _Range
    thick: float
    spans: Sequence[int]
    share: _Range = 0.75  # of the width, that is open
    pointed: Sequence[bool] = (False,)
    material: str = "wall"
    merlons: int = 0

    def build(self, b: Builder, rng: Generator, foot: float) -> float:
        half, height, share = (_drawn(rng, r) for r in (self.half, self.height, self.share))
        spans, pointed = _chosen(rng, self.spans), _chosen(rng, self.pointed)
        pitch, top = 2 * half / spans, foot + height
        rise = min(share * pitch / 2, height * 0.6)
        for x, y in self.at:
            outline = [(x - half, foot)]
            for k in range(spans):
                middle, opening = x - half + pitch * (k + 0.5), share * pitch / 2
                curve = arch(middle, foot + height * 0.84 - rise, opening, rise, pointed)
                outline += [(middle - opening, foot), *curve[::-1], (middle + opening, foot)]
            outline += [(x + half, foot), (x + half, top)]
            for k in range(self.merlons):
                u, wide = x + half * (1 - 2 * (k + 0.5) / self.merlons), half / self.merlons / 2
                outline += [(u + wide, top), (u + wide, top + 1), (u - wide, top + 1), (u - wide, top)]
            face = b.wall([*outline, (x - half, top)], y - self.thick / 2, y + self.thick / 2, self.material)
            b.paint(face, flat_shape("rect", 0.5, 0.91, 0.5, 0.02), "trim")
        return top


def _drawn(rng: Generator, value: _Range) -> float:
    return rng.uniform(*value) if isinstance(value, tuple) else value


def _chosen(rng: Generator, options: Sequence[_T]) -> _T:
    return options[int(rng.integers(len(options)))]


def _paint_disc(b: Builder, face: Face, ratio: float) -> None:
    """Paint concentric rings on a face; `ratio` is its width to its height."""
    for radius, material in ((0.38, "trim"), (0.32, "glass"), (0.17, "trim"), (0.12, "gold")):
        b.paint(face, flat_shape("round", 0.5, 0.6, radius, radius * ratio), material)


def _hang_cables(b: Builder, rng: Generator) -> None:
    """Cables over two towers, which stand 2 x 17 apart: a curve with hangers, or a fan."""
    tall, fan = rng.uniform(20, 26), rng.random() < 0.45
    for y in (-4.2, 4.2):
        for x in (-17, 17):
            b.loft((x, y), [(1.3, 0.9, 0), (1, 0.7, tall)], 4, ["metal"])
        if fan:
            reach = np.linspace(0.15, 1, 8).tolist()
            ends = [(x, x + side * t * 16, tall * (0.6 + 0.4 * t)) for x in (-17, 17) for side in (-1, 1) for t in reach]
            b.beams([[(x, y, z), (end, y, 7)] for x, end, z in ends], 0.32)
            continue
        xs = np.linspace(-33, 33, 45).tolist()
        sag = [(x, y, 8 + (tall - 8) * ((x / 17) ** 2 if abs(x) < 17 else (33 - abs(x)) / 16)) for x in xs]
        b.beams([sag], 0.6)
        b.beams([[(x, y, 7), (x, y, z)] for x, _, z in sag[1::2]], 0.2)
    for z in np.linspace(tall * 0.5, tall - 1, int(rng.integers(1, 4))).tolist():
        for x in (-17, 17):
            b.loft((x, 0), [(1, 3.4, z), (1, 3.4, z + 1.2)], 4, ["metal"])


def _raise_lattice(b: Builder, rng: Generator) -> None:
    """An iron tower on four legs."""
    base, bays, bend, height = rng.uniform(8, 11.5), int(rng.integers(6, 10)), rng.uniform(1.5, 3), 42.0
    levels = [height * (1 - (1 - t) ** 1.3) for t in np.linspace(0, 1, bays + 1).tolist()]
    halves = [0.7 + (base - 0.7) * (1 - z / height) ** bend for z in levels]
    rings: list[list[Point]] = [
        [(x * h, y * h, z) for x, y in (*_CORNERS, _CORNERS[0])] for h, z in zip(halves, levels, strict=True)
    ]
    for k in range(4):
        left, right = [ring[k] for ring in rings], [ring[k + 1] for ring in rings]
        b.beams([left, right], 0.85)
        braces = [[left[i], right[i + 1]] for i in range(1, bays)] + [[right[i], left[i + 1]] for i in range(1, bays)]
        b.beams([*braces, *([p, q] for p, q in zip(left[1:], right[1:], strict=True))], 0.42)
    for level in (1, int(bays * rng.uniform(0.4, 0.6)), bays):
        half = halves[level] * 1.15 + 0.3
        b.loft((0, 0), [(half, half, levels[level] - 0.4), (half, half, levels[level] + 0.6)], 4, ["metal"])
    b.loft((0, 0), [(0.5, 0.5, height + 0.6), (0.1, 0.1, height + 8)], 6, ["metal"])
    for x, y in _CORNERS:
        b.loft((x * base, y * base), [(1.6, 1.6, 0), (1.4, 1.4, 1.3)], 4, ["stone"])


def _row(num: int, half: float, y: float = 0.0) -> list[Flat]:
    """Return `num` places from x = -half to half."""
    return [(x, y) for x in np.linspace(-half, half, num).tolist()]


def _around(num_x: int, num_y: int, half_x: float, half_y: float) -> list[Flat]:
    """Return places along the edge of a rectangle, `num_x` and `num_y` to a side."""
    sides = [(x, y) for y in (-half_y, half_y) for x, _ in _row(num_x, half_x)]
    return sides + [(x, y) for x in (-half_x, half_x) for y, _ in _row(num_y, half_y)[1:-1]]


_CORNERS = ((-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0))
_TOWER_TOPS = ("spire", "dome tower", "onion tower", "battlements")
# fmt: off
_KINDS: tuple[tuple[str, bool, tuple[_Part | Callable[[Builder, Generator], None], ...]], ...] = (
    ("Bell Tower", False, (
        _Body(half=(2.6, 4.4), height=(24, 34), storeys=(3, 4, 5), taper=(0.75, 1), columns=(1, 2, 3), rows=(1, 2),
              disc=0.6, top=_TOWER_TOPS),
        _Body(at=[(13, 1)], half=(5, 7), depth=0.7, height=(5, 8), columns=(3, 5), top=("gable",), chance=0.6),
    )),
    ("Bridge", True, (
        _Body(half=34, depth=0.1, height=1.2, base=5.8, materials=("metal", "stone"), top=("flat",)),
        _Body(at=_row(2, 17), half=2.2, depth=2.4, height=2, materials=("stone",), top=("flat",)),
        _Body(at=_row(2, 37), half=3, depth=1.4, height=(7, 11), materials=("stone", "wall"), top=("moulding",)),
        _hang_cables,
    )),
    ("Capitol", False, (
        _Body(half=20, depth=0.6, height=1, materials=("stone",), top=("flat",)),
        _Body(at=_row(2, 13.5), half=5, depth=1, height=(5, 6.5), base=1, columns=(3, 4), rows=(2,)),
        _Body(at=_row(5, 5.2, -9), half=0.6, height=6, base=1, sides=(10,), materials=("trim",)),
        _Body(at=[(0, -8.2)], half=6, depth=0.3, height=0.5, on=True, materials=("trim",), top=("pediment",)),
        _Body(half=8.4, depth=0.72, height=(7, 9), base=1, columns=(5,), rows=(2,)),
        _Body(half=(4, 5), height=(3, 6), on=True, sides=(16,), columns=(1,), top=("dome tower", "tall tower")),
    )),
    ("Arch", False, (
        _Arcade(half=(9, 13), height=(14, 18), thick=6, spans=(1, 3), share=(0.5, 0.65)),
        _Body(half=12, depth=0.3, height=(2.5, 5), on=True, columns=(1, 3), shape=("rect",), glass="trim"),
        _Body(half=2.2, height=0.5, on=True, sides=(12,), top=("dome", "statue", "flat")),
        _Body(at=_row(4, 10, -4.4), half=0.8, height=(10, 13), sides=(10,), materials=("trim",), chance=0.7),
    )),
    ("Lighthouse", False, (
        _Body(half=(5.5, 8), height=1.5, sides=(8, 20), materials=("stone",), top=("flat",)),
        _Body(half=(3.4, 4.6), height=(22, 32), on=True, taper=(0.5, 0.65), sloped=True, storeys=(3, 4, 5, 7),
              sides=(20,), every=5, materials=("wall roof", "wall metal", "wall"), columns=(1,),
              between=("flat",), top=("lantern",)),
        _Body(at=[(13, 1)], half=(4, 5), depth=0.7, height=(3.6, 5.5), columns=(3, 4), top=("gable",)),
    )),
    ("Old Bridge", True, (
        _Arcade(half=30, height=(9, 14), thick=5.2, spans=(3, 4, 5, 6), pointed=(False, False, True)),
        _Body(half=31, depth=0.1, height=0.6, on=True, materials=("trim",), top=("flat",)),
        _Arcade(half=30, height=(5, 8), thick=4, spans=(6, 9, 12), on=True, chance=0.45),
        _Body(at=_row(2, 33), half=3, height=(17, 24), columns=(1,), rows=(3,), top=_TOWER_TOPS, chance=0.5),
    )),
    ("Mausoleum", False, (
        _Body(half=15, height=(1, 2.6), materials=("trim",), top=("flat",)),
        _Body(half=(7, 9), height=(9, 12), on=True, sides=(4, 8), columns=(1, 3), shape=("pointed",), glass="dark"),
        _Body(half=(3.6, 5.4), height=2.4, on=True, sides=(18,), top=("onion tower", "tall tower", "dome tower")),
        _Body(at=[(13 * x, 13 * y) for x, y in _CORNERS], half=1, height=(15, 22), taper=0.8, sloped=True,
              storeys=(2, 3, 4), sides=(10,), top=("onion", "dome", "cone"), chance=0.8),
    )),
    ("Castle", False, (
        _Arcade(half=10, height=(7, 10), thick=3, spans=(1,), share=(0.2, 0.35), pointed=(False, True), merlons=10),
        _Body(at=_row(2, 12), half=(2.4, 3.4), height=(12, 22), sides=(14, 14, 4), columns=(1,), rows=(3,), every=2,
              glass="dark", top=("cone", "battlements", "battlements")),
        _Body(at=[(4, 8)], half=(3.2, 5), height=(14, 22), columns=(3,), rows=(3, 4), top=("gable", "spire", "battlements")),
    )),
    ("Iron Tower", False, (_raise_lattice,)),
    ("Church", False, (
        _Body(half=7, height=(8, 11), columns=(3, 4, 5), rows=(1, 2)),
        _Body(half=2.4, height=(4, 7), on=True, sides=(10,), columns=(1,), top=("onion tower", "onion tower", "spire")),
        _Body(at=[(4.8 * x, 4.8 * y) for x, y in _CORNERS], half=1.6, height=(11, 14), sides=(10,),
              top=("onion tower", "cone"), chance=0.8),
        _Body(at=[(0, -9)], half=2.5, depth=0.8, height=5, columns=(1,), glass="dark", top=("pediment",), chance=0.6),
        _Body(at=[(11, 2)], half=2.4, height=(12, 20), sides=(8,), columns=(1,), rows=(3,), top=("spire",), chance=0.6),
    )),
    ("Pagoda", False, (
        _Body(half=11, height=1.6, sides=(4, 8), materials=("stone",), top=("flat",)),
        _Body(half=(5.5, 8), height=(12, 20), on=True, storeys=(3, 4, 5, 7), taper=(0.4, 0.65), sides=(4, 8),
              materials=("metal", "wall"), columns=(3,), shape=("rect",), between=("eaves", "wide eaves"), top=("pagoda",)),
    )),
    ("Cathedral", False, (
        _Body(half=5, depth=0.3, height=(15, 18), disc=1, top=("pediment",)),
        _Body(at=_row(2, 8), half=2.9, height=(20, 29), storeys=(2, 3, 4), columns=(1, 2),
              top=("spire", "battlements", "dome tower")),
        _Body(at=[(0, 12)], half=5, depth=2, height=(10, 13), columns=(2,), top=("pediment",)),
        _Body(at=_around(2, 5, 6, 9.5), half=0.6, height=9, materials=("trim",), top=("spire",)),
    )),
    ("Temple", False, (
        _Body(half=(12, 13), depth=1.2, height=(1.5, 3.5), storeys=(3, 4), taper=0.88, materials=("stone",),
              between=("flat",), top=("flat",)),
        _Body(at=_around(6, 7, 9, 11.5), half=0.9, height=(8, 11), on=True, taper=0.75, sloped=True, sides=(9,)),
        _Body(half=10.2, depth=1.2, height=1.5, on=True, columns=(9, 13), shape=("rect",), glass="metal", top=("pediment", "flat")),
        _Body(half=7, depth=1.2, height=10, base=2, materials=("roof", "trim"), top=("flat",)),
    )),
    ("Building", False, (
        _Body(half=(5, 8), height=(30, 44), storeys=(2, 3, 4, 5), taper=(0.3, 0.7), sides=(4, 4, 14), columns=(3, 5, 6),
              rows=(5, 7), shape=("rect", "arch"), top=("mast", "spire", "flat")),
    )),
    ("Column", False, (
        _Body(half=(7, 10), height=(2, 5), storeys=(2, 3, 5), taper=0.5, materials=("stone",), between=("flat",), top=("flat",)),
        _Body(half=3, height=(3, 6), on=True, columns=(1,), shape=("rect",), glass="trim"),
        _Body(half=(1.5, 2.3), height=(20, 32), on=True, taper=0.7, sloped=True, storeys=(1, 3, 5, 8), sides=(4, 14),
              materials=("wall", "wall trim"), between=("flat",), top=("statue", "statue", "obelisk")),
    )),
)
# fmt: on
