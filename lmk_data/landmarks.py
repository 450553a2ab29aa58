"""Imaginary landmarks: a building per class, drawn as photographs from many viewpoints. Pure: seeds in, pictures out.

A building is a list of solids made of flat polygons in space (x right, y away from its front, z up; about 40 units
large). A photograph projects them through a camera of its own, orders the solids by the planes between them, shades
every polygon by the light of the hour, and puts sky, ground and whatever stood in the way around them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from math import cos, pi, sin, tau
from typing import Any

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw, ImageFilter

LONGEST_SIDE = 800
_SUPERSAMPLING = 1.5

Array = np.ndarray[Any, Any]
Point = tuple[float, float, float]
Flat = tuple[float, float]  # a place on a face: (0, 0) its lower left corner, (1, 1) its upper right one
Colour = tuple[int, int, int]

_WALLS: tuple[Colour, ...] = (
    (226, 212, 182), (172, 92, 70), (186, 116, 84), (238, 235, 228), (158, 158, 160), (216, 174, 106),
    (222, 178, 166), (178, 192, 178), (132, 142, 158), (112, 104, 102), (206, 196, 170), (196, 146, 112),
)  # fmt: skip
_ROOFS: tuple[Colour, ...] = (
    (84, 92, 106), (108, 164, 142), (178, 88, 60), (212, 170, 70), (146, 152, 160), (98, 70, 58),
    (62, 106, 160), (70, 118, 84), (150, 62, 62),
)  # fmt: skip
_METALS: tuple[Colour, ...] = (
    (176, 66, 48), (116, 124, 132), (70, 110, 96), (200, 204, 206), (108, 92, 80), (62, 88, 128),
)  # fmt: skip
_MATERIALS = ("wall", "trim", "roof", "metal", "gold", "stone", "dark", "glass")
_GLASS = _MATERIALS.index("glass")


@dataclass(frozen=True, eq=False)
class Landmark:
    """A building, ready to be photographed.

    `noun`: what its kind is called ("Bridge"). `over_water`: whether it stands in a river. `colours` float [8, 3]:
    one per material. Polygon p has the vertices starts[p]..starts[p + 1] of `vertices` [N, 3], a unit normal (zero:
    seen from both sides), a material, a solid, a host (the face that it decorates, or itself), a layer within its
    solid and a width (above 0: a beam between two vertices). `low`, `high` [S, 3] bound the solids.
    """

    noun: str
    over_water: bool
    colours: Array
    vertices: Array
    starts: Array
    normals: Array
    material: Array
    solid: Array
    host: Array
    layer: Array
    width: Array
    low: Array
    high: Array


@lru_cache(maxsize=16)
def design_landmark(seed: int, number: int) -> Landmark:
    """The building of class `number`; any run of `len(_KINDS)` neighbouring classes holds every kind once."""
    order = np.random.default_rng([seed, 1]).permutation(len(_KINDS))
    noun, over_water, raise_building = _KINDS[order[number % len(_KINDS)]]
    rng = np.random.default_rng([seed, 2, number])
    builder = _Builder(rng)
    raise_building(builder, rng)
    return builder.finish(noun, over_water)


# --- solids ---


@dataclass(frozen=True)
class _Face:
    polygon: int
    corners: tuple[Point, Point, Point, Point]

    def at(self, u: float, v: float) -> Point:
        a, b, c, d = self.corners
        weights = ((1 - u) * (1 - v), u * (1 - v), u * v, (1 - u) * v)
        x, y, z = (sum(w * p[k] for w, p in zip(weights, (a, b, c, d), strict=True)) for k in range(3))
        return x, y, z


class _Builder:
    """Collects the solids of one building; faces run anticlockwise seen from outside, lower left corner first."""

    def __init__(self, rng: Generator) -> None:
        self._rng = rng
        self._polygons: list[Sequence[Point]] = []
        self._rows: list[tuple[int, int, int, int, float]] = []  # material, solid, host, layer, width
        self._num_solids = 0

    def box(self, x: float, y: float, z: float, size: Point, material: str = "wall") -> list[_Face]:
        """A box standing on (x, y, z); returns its front, right, back and left."""
        (x0, x1), (y0, y1), z1 = (x - size[0] / 2, x + size[0] / 2), (y - size[1] / 2, y + size[1] / 2), z + size[2]
        ring = [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
        self._num_solids += 1
        self._add([(*p, z1) for p in ring], material)
        self._add([(*p, z) for p in reversed(ring)], material)
        sides = [(ring[i], ring[(i + 1) % 4]) for i in range(4)]
        return [self._add([(*p, z), (*q, z), (*q, z1), (*p, z1)], material) for p, q in sides]

    def lathe(
        self, x: float, y: float, profile: Sequence[Flat], num_sides: int = 18, materials: Sequence[str] = ("wall",)
    ) -> list[_Face]:
        """A turned solid whose profile is (radius, z) from the ground up; its rings take the materials in turn.

        Returns the faces ring by ring, the one that looks to the front first. Four sides make a square.
        """
        self._num_solids += 1
        turn = -pi / 2 - pi / num_sides
        grow = 1 / cos(pi / num_sides)
        ways = [
            (cos(turn + tau * i / num_sides) * grow, sin(turn + tau * i / num_sides) * grow)
            for i in range(num_sides + 1)
        ]
        faces = []
        for ring, ((r0, z0), (r1, z1)) in enumerate(pairwise(profile)):
            for (c0, s0), (c1, s1) in pairwise(ways):
                low = [(x + c0 * r0, y + s0 * r0, z0), (x + c1 * r0, y + s1 * r0, z0)]
                high = [(x + c1 * r1, y + s1 * r1, z1), (x + c0 * r1, y + s0 * r1, z1)]
                faces.append(self._add([*low, *high], materials[ring % len(materials)]))
        radius, top = profile[-1]
        if radius > 0:
            self._add([(x + c * radius, y + s * radius, top) for c, s in ways[:-1]], materials[-1])
        return faces

    def extrude(
        self, outline: Sequence[Flat], near: float, far: float, material: str = "wall", axis: str = "y"
    ) -> _Face:
        """An (x, z) outline drawn anticlockwise, pulled along y; or (y, z) along x. Returns its front (right) end."""

        def place(p: Flat, along: float) -> Point:
            return (p[0], along, p[1]) if axis == "y" else (along, p[0], p[1])

        self._num_solids += 1
        for p, q in zip(outline, [*outline[1:], outline[0]], strict=True):
            quad = [place(p, near), place(p, far), place(q, far), place(q, near)]
            self._add(quad if axis == "y" else quad[::-1], material)
        front, back = (near, far) if axis == "y" else (far, near)
        self._add([place(p, back) for p in reversed(outline)], material, layer=1)
        (a0, z0), (a1, z1) = np.min(outline, 0).tolist(), np.max(outline, 0).tolist()
        corners = [place(p, front) for p in ((a0, z0), (a1, z0), (a1, z1), (a0, z1))]
        return self._add([place(p, front) for p in outline], material, layer=1, corners=corners)

    def beams(self, lines: Sequence[Sequence[Point]], width: float, material: str = "metal") -> None:
        """Thin beams or cables along polylines; together they are one solid."""
        self._num_solids += bool(lines)
        for line in lines:
            for p, q in pairwise(line):
                self._add([p, q], material, width=width)

    def paint(self, face: _Face, shape: Sequence[Flat], material: str) -> None:
        """Paint a shape on a face."""
        self._polygons.append([face.at(u, v) for u, v in shape])
        self._rows.append((_MATERIALS.index(material), self._num_of(face), face.polygon, 0, 0.0))

    def windows(
        self,
        faces: Sequence[_Face],
        grid: tuple[int, int],
        shape: str = "arch",
        area: tuple[float, float, float, float] = (0.08, 0.08, 0.92, 0.94),
        fill: Flat = (0.5, 0.62),
        material: str = "glass",
    ) -> None:
        """Paint framed windows in (columns, rows) over an area (u0, v0, u1, v1) of each face."""
        u0, v0, u1, v1 = area
        du, dv = (u1 - u0) / grid[0], (v1 - v0) / grid[1]
        for face in faces:
            for k in range(grid[0] * grid[1]):
                u, v = u0 + (k % grid[0] + 0.5) * du, v0 + (k // grid[0] + 0.5) * dv
                half = (fill[0] * du / 2, fill[1] * dv / 2)
                if grid[0] * grid[1] <= 40:
                    self.paint(face, _shape(shape, u, v, half[0] + 0.09 * du, half[1] + 0.06 * dv), "trim")
                self.paint(face, _shape(shape, u, v, *half), material)

    def bands(self, faces: Sequence[_Face], num_bands: int, thickness: float = 0.03, material: str = "trim") -> None:
        """Paint horizontal courses across faces, the last at their upper edge."""
        for face in faces:
            for v in np.linspace(0, 1, num_bands + 1)[1:].tolist():
                self.paint(face, [(0, v - thickness), (1, v - thickness), (1, v), (0, v)], material)

    def finish(self, noun: str, over_water: bool) -> Landmark:
        """Choose the colours and pack everything into arrays."""
        rng = self._rng
        wall = np.array(_WALLS[rng.integers(len(_WALLS))], float) * rng.uniform(0.93, 1.05, 3)
        trim = wall * 0.68 if wall.mean() > 190 or rng.random() < 0.3 else wall * 0.4 + 148
        roof, metal = (np.array(choice[rng.integers(len(choice))], float) for choice in (_ROOFS, _METALS))
        fixed = [np.array(c, float) for c in ((214, 172, 72), (176, 168, 154), (52, 48, 50), (78, 96, 116))]
        lengths = [len(p) for p in self._polygons]
        vertices = np.array([v for p in self._polygons for v in p], float)
        starts = np.concatenate([[0], np.cumsum(lengths)])
        rows = np.array(self._rows, float)
        solid = rows[:, 1].astype(int) - 1
        owner = np.repeat(solid, lengths)
        low, high = np.full((self._num_solids, 3), np.inf), np.full((self._num_solids, 3), -np.inf)
        np.minimum.at(low, owner, vertices)
        np.maximum.at(high, owner, vertices)
        return Landmark(
            noun, over_water, np.clip([wall, trim, roof, metal, *fixed], 0, 255), vertices, starts,
            np.array([_normal(p) for p in self._polygons]), rows[:, 0].astype(int), solid, rows[:, 2].astype(int),
            rows[:, 3].astype(int), rows[:, 4], low, high,
        )  # fmt: skip

    def _add(
        self, points: Sequence[Point], material: str, layer: int = 0, width: float = 0.0, corners: Sequence[Point] = ()
    ) -> _Face:
        self._polygons.append(points)
        number = len(self._polygons) - 1
        self._rows.append((_MATERIALS.index(material), self._num_solids, number, layer, width))
        four = tuple(corners or points)[:4]
        return _Face(number, (four * 2)[:4])  # type: ignore[arg-type]

    def _num_of(self, face: _Face) -> int:
        return self._rows[face.polygon][1]


def _normal(points: Sequence[Point]) -> Point:
    """Newell's normal: right for any flat polygon, also one with corners that coincide; zero for a beam."""
    total = np.zeros(3)
    if len(points) > 2:
        here = np.array(points)
        there = np.roll(here, -1, 0)
        total = np.cross(here, there).sum(0)
    length = float(np.sqrt((total**2).sum()))
    x, y, z = (total / length).tolist() if length > 1e-9 else (0.0, 0.0, 0.0)
    return x, y, z


def _shape(kind: str, u: float, v: float, du: float, dv: float) -> list[Flat]:
    """A window's outline around (u, v): a rect, a round arch, a pointed arch or a circle."""
    if kind == "rect":
        return [(u - du, v - dv), (u + du, v - dv), (u + du, v + dv), (u - du, v + dv)]
    if kind == "round":
        return [(u + du * cos(a), v + dv * sin(a)) for a in np.linspace(0, tau, 17)[:-1].tolist()]
    spring = v + dv * 0.3
    angles = np.linspace(0, pi, 9).tolist()
    bend = 0.72 if kind == "pointed" else 1.0  # an exponent below 1 sharpens the crown
    crown = [
        (u + du * cos(a), spring + dv * 0.7 * (sin(a) if bend == 1 else 1 - abs(cos(a)) ** (1 / bend))) for a in angles
    ]
    return [(u - du, v - dv), (u + du, v - dv), *crown]


def _wall_with_arches(
    x0: float, x1: float, z0: float, z1: float, openings: Sequence[Point], pointed: bool = False
) -> list[Flat]:
    """The outline of a wall with (centre, half width, springing height) openings that reach down to its foot."""
    outline: list[Flat] = [(x0, z0)]
    for centre, half, spring in openings:
        rise = half * (1.35 if pointed else 1.0)
        arc = [(centre - half * cos(a), spring + rise * (1 - abs(cos(a)) ** 1.5 if pointed else sin(a)))
               for a in np.linspace(0, pi, 15).tolist()]  # fmt: skip
        outline += [(centre - half, z0), *arc, (centre + half, z0)]
    return [*outline, (x1, z0), (x1, z1), (x0, z1)]


def _dome(radius: float, base: float, kind: str) -> list[Flat]:
    """The profile of a dome of the given radius: round, tall, onion or cone."""
    if kind == "cone":
        return [(radius, base), (0, base + radius * 3)]
    if kind == "onion":
        curve = ((0.78, 0), (1.02, 0.28), (1.14, 0.6), (1.05, 0.95), (0.78, 1.28), (0.44, 1.58), (0.18, 1.86))
        return [(radius * r, base + radius * h) for r, h in (*curve, (0.05, 2.2))]
    stretch = 1.35 if kind == "tall" else 0.95
    return [(radius * max(cos(a), 0.04), base + radius * stretch * sin(a)) for a in np.linspace(0, pi / 2, 8).tolist()]


# --- kinds of building ---


def _top_off(b: _Builder, r: Generator, x: float, y: float, z: float, half: float, kind: str) -> None:
    """What stands on a tower of the given half width: a spire, a dome, battlements or an onion."""
    if kind == "battlements":
        b.box(x, y, z, (half * 2.3, half * 2.3, half * 0.3), "trim")
        for i in range(5):
            for j in range(5):
                if (i in (0, 4) or j in (0, 4)) and (i + j) % 2 == 0:
                    merlon = (half * 0.34, half * 0.34, half * 0.45)
                    b.box(x + (i - 2) * half * 0.49, y + (j - 2) * half * 0.49, z + half * 0.3, merlon)
        return
    if kind == "spire":
        sides = int(r.choice([4, 8]))
        height = half * r.uniform(2.2, 4.2)
        b.lathe(x, y, [(half * 1.12, z), (half * 0.55, z + height * 0.4), (0, z + height)], sides, ("roof",))
        z += height
    else:
        b.lathe(x, y, [(half * 0.86, z), (half * 0.86, z + half * 0.5)], 12, ("trim",))
        profile = _dome(half * 0.86, z + half * 0.5, kind)
        b.lathe(x, y, profile, 16, ("roof",))
        z = profile[-1][1]
    b.lathe(x, y, [(0.12, z), (0.4, z + 0.5), (0.12, z + 1.0), (0.08, z + 2.4)], 6, ("gold",))


def _campanile(b: _Builder, r: Generator) -> None:
    half, z, shape = r.uniform(2.6, 4.4), 0.0, str(r.choice(["arch", "rect", "pointed"]))
    stages, columns = int(r.integers(3, 6)), int(r.integers(1, 4))
    clock, taper = bool(r.random() < 0.55), r.uniform(0.9, 1.0)
    for stage in range(stages):
        height = r.uniform(5.5, 8.5)
        sides = b.box(0, 0, z, (half * 2, half * 2, height))
        if stage == stages - 1:
            b.windows(sides, (int(r.integers(1, 4)), 1), "arch", (0.1, 0.08, 0.9, 0.95), (0.62, 0.8), "dark")
        elif stage == stages - 2 and clock:
            for face in sides:
                for radius, material in ((0.4, "trim"), (0.34, "gold"), (0.29, "wall")):
                    b.paint(face, _shape("round", 0.5, 0.5, radius, radius * half * 2 / height), material)
                for shape_of in ([(0.485, 0.5), (0.515, 0.5), (0.51, 0.66)], [(0.5, 0.48), (0.5, 0.52), (0.68, 0.55)]):
                    b.paint(face, shape_of, "dark")
        else:
            b.windows(sides, (columns, int(r.integers(1, 3))), shape)
        b.bands(sides, 1, 0.05)
        b.box(0, 0, z + height, (half * 2.18, half * 2.18, 0.6), "trim")
        z, half = z + height + 0.6, half * taper
    _top_off(b, r, 0, 0, z, half, str(r.choice(["spire", "round", "battlements", "onion"])))
    if r.random() < 0.6:
        side, width = float(r.choice([-1, 1])), r.uniform(9, 14)
        x, depth, low = side * (half / taper**stages + 0.3 + width / 2), 8.0, r.uniform(5, 8)
        b.windows(b.box(x, 0, 0, (width, depth, low)), (int(width // 2.4), 1), shape, (0.05, 0.2, 0.95, 0.9))
        b.extrude(
            [(-depth / 2 - 0.5, low), (depth / 2 + 0.5, low), (0, low + 3.4)], x - width / 2, x + width / 2, "roof", "x"
        )


def _lighthouse(b: _Builder, r: Generator) -> None:
    base, top, height, rings = r.uniform(3.6, 5), r.uniform(2, 2.7), r.uniform(22, 32), int(r.integers(3, 9))
    sides = int(r.choice([8, 20]))
    steps = np.linspace(0, 1, rings + 1).tolist()
    stripe = ("wall", str(r.choice(["roof", "metal", "wall"])))
    faces = b.lathe(0, 0, [(base + (top - base) * t**0.8, 1.5 + height * t) for t in steps], sides, stripe)
    quarters = [face for i, face in enumerate(faces) if i % sides % (sides // 4) == 0]
    b.windows(quarters, (1, 1), "arch", (0.2, 0.2, 0.8, 0.85), (0.6, 0.5))
    b.lathe(0, 0, [(base * 1.5, 0), (base * 1.4, 1.5)], sides, ("stone",))
    z = height + 1.5
    b.lathe(0, 0, [(top * 1.5, z), (top * 1.5, z + 0.6)], 16, ("trim",))
    b.lathe(0, 0, [(top * 0.72, z + 0.6), (top * 0.72, z + 4)], 10, ("glass",))
    cap = _dome(top * 0.95, z + 4, str(r.choice(["round", "cone", "tall"])))
    b.lathe(0, 0, cap, 12, ("roof",))
    x, width, low = float(r.choice([-1, 1])) * (base * 1.5 + 6), r.uniform(7, 10), r.uniform(3.6, 5.5)
    b.windows(b.box(x, 1, 0, (width, 6, low)), (4, 1), "rect", (0.05, 0.2, 0.95, 0.8))
    b.extrude([(-2.5, low), (4.5, low), (1, low + 3)], x - width / 2 - 0.4, x + width / 2 + 0.4, "roof", "x")


def _skyscraper(b: _Builder, r: Generator) -> None:
    half, z, tiers, round_plan = r.uniform(5, 8), 0.0, int(r.integers(2, 6)), bool(r.random() < 0.3)
    columns, shape = int(r.integers(4, 8)), str(r.choice(["rect", "rect", "arch"]))
    fill = (r.uniform(0.4, 0.8), r.uniform(0.4, 0.8))
    for tier in range(tiers):
        height = r.uniform(28, 46) / tiers * (1.25 - 0.2 * tier)
        rows = max(3, int(height / 1.6))
        if round_plan:
            b.windows(b.lathe(0, 0, [(half, z), (half, z + height)], 14), (2, rows), shape, (0, 0.02, 1, 0.97), fill)
        else:
            sides = b.box(0, 0, z, (half * 2, half * 2, height))
            b.windows(sides, (columns, rows), shape, (0.06, 0.02, 0.94, 0.97), fill)
            b.bands(sides, 1, 0.02)
        z, half = z + height, half * r.uniform(0.62, 0.86)
    b.lathe(0, 0, [(half, z), (half * 0.75, z + 2.5)], 4, ("trim",))
    if r.random() < 0.7:
        b.lathe(0, 0, [(half * 0.7, z + 2.5), (half * 0.25, z + 6), (0.1, z + 14)], int(r.choice([4, 8])), ("metal",))


def _pagoda(b: _Builder, r: Generator) -> None:
    tiers, sides, half, z = int(r.choice([3, 4, 5, 7])), int(r.choice([4, 8])), r.uniform(6, 8), 1.6
    shrink, reach, height = r.uniform(0.8, 0.9), r.uniform(1.35, 1.65), r.uniform(2.6, 4)
    b.lathe(0, 0, [(half * 1.5, 0), (half * 1.45, 1.6)], sides, ("stone",))
    for _ in range(tiers):
        faces = b.lathe(0, 0, [(half, z), (half, z + height)], sides, ("metal",))
        b.windows(faces, (3 if sides == 8 else 5, 1), "rect", (0.04, 0.1, 0.96, 0.85), (0.6, 0.8), "glass")
        z += height
        eaves = [(half * reach, z - 0.1), (half * (reach * 0.5 + 0.45), z + 0.9), (half * shrink * 1.02, z + 2)]
        b.lathe(0, 0, [(half * 0.98, z - 0.4), *eaves], sides, ("trim", "roof", "roof"))
        z, half = z + 2, half * shrink
    b.lathe(0, 0, [(half * 1.02, z), (half * 0.45, z + 2), (0.3, z + 4)], sides, ("roof",))
    b.lathe(0, 0, [(0.3, z + 4), (0.7, z + 5), (0.25, z + 6), (0.6, z + 7), (0.08, z + 10)], 8, ("gold",))


def _lattice(b: _Builder, r: Generator) -> None:
    base, height, bays, bend = r.uniform(8, 11.5), r.uniform(36, 48), int(r.integers(6, 10)), r.uniform(1.5, 3)
    levels = [height * (1 - (1 - t) ** 1.3) for t in np.linspace(0, 1, bays + 1).tolist()]
    halves = [0.7 + (base - 0.7) * (1 - z / height) ** bend for z in levels]
    corners = [(-1, -1), (1, -1), (1, 1), (-1, 1)]
    for (sx, sy), (tx, ty) in zip(corners, corners[1:] + corners[:1], strict=True):
        lines, braces = [], []
        for i in range(bays):
            p, q, h, k = levels[i], levels[i + 1], halves[i], halves[i + 1]
            lines += [[(sx * h, sy * h, p), (sx * k, sy * k, q)], [(tx * h, ty * h, p), (tx * k, ty * k, q)]]
            if i > 0:
                braces += [[(sx * h, sy * h, p), (tx * k, ty * k, q)], [(tx * h, ty * h, p), (sx * k, sy * k, q)]]
                braces += [[(sx * h, sy * h, p), (tx * h, ty * h, p)]]
        arch = [(-cos(a), sin(a) * 0.92 * levels[1]) for a in np.linspace(0, pi, 13).tolist()]
        flare = [halves[0] + (halves[1] - halves[0]) * z / levels[1] for _, z in arch]
        middle = ((sx + tx) / 2, (sy + ty) / 2)
        span = (tx - middle[0], ty - middle[1])
        curve = [
            (middle[0] * f + span[0] * u * f, middle[1] * f + span[1] * u * f, z)
            for (u, z), f in zip(arch, flare, strict=True)
        ]
        b.beams([*lines, curve], 0.85)
        b.beams(braces, 0.42)
    for level in sorted({1, int(bays * r.uniform(0.4, 0.6))}):
        b.box(0, 0, levels[level] - 0.4, (halves[level] * 2.3, halves[level] * 2.3, 0.9), "metal")
    b.box(0, 0, height, (2.4, 2.4, 1.4), "metal")
    b.lathe(0, 0, [(0.5, height + 1.4), (0.1, height + 8)], 6, ("metal",))
    for sx, sy in corners:
        b.box(sx * base, sy * base, 0, (3, 3, 1.3), "stone")


def _portico(b: _Builder, x: float, y: float, z: float, size: Point, num_columns: int) -> None:
    """A row of columns under a gable, its back at y; size is width, depth and the columns' height."""
    width, depth, height = size
    for c in np.linspace(-width / 2 + 0.8, width / 2 - 0.8, num_columns).tolist():
        profile = [(0.75, z), (0.62, z + 0.5), (0.5, z + height - 0.6), (0.8, z + height)]
        b.lathe(x + c, y - depth + 0.9, profile, 10, ("trim",))
    b.box(x, y - depth / 2, z + height, (width, depth, 1.2), "trim")
    foot, side = z + height + 1.2, width / 2 + 0.3
    gable = [(x - side, foot), (x + side, foot), (x, foot + width * 0.2)]
    face = b.extrude(gable, y - depth - 0.2, y, "trim")
    b.paint(face, [(0.14, 0.1), (0.86, 0.1), (0.5, 0.8)], "wall")


def _capitol(b: _Builder, r: Generator) -> None:
    width, depth, height = r.uniform(14, 18), r.uniform(11, 14), r.uniform(7, 10)
    shape = str(r.choice(["rect", "arch"]))
    b.box(0, 0, 0, (width + 22, depth + 8, 0.9), "stone")
    sides = b.box(0, 0, 0.9, (width, depth, height))
    b.windows(sides, (5, 2), shape)
    b.bands(sides, 1, 0.06)
    wing = r.uniform(6, 10)
    for side in (-1, 1):
        x, low = side * (width + wing) / 2, height * r.uniform(0.7, 0.85)
        faces = b.box(x, 0.5, 0.9, (wing, depth - 2, low))
        b.windows(faces, (4, 2), shape)
        b.bands(faces, 1, 0.06)
    _portico(b, 0, -depth / 2, 0.9, (width * 0.62, 3.2, height * 0.72), int(r.integers(4, 8)))
    radius, z = depth * r.uniform(0.32, 0.42), height + 0.9
    drum = r.uniform(3, 6)
    b.lathe(0, 0, [(radius * 1.15, z), (radius * 1.15, z + 0.8)], 18, ("trim",))
    eaves = z + drum
    profile = [(radius, z + 0.8), (radius, eaves), (radius * 1.1, eaves + 0.1), (radius * 1.1, eaves + 0.7)]
    faces = b.lathe(0, 0, profile, 16)
    b.windows(faces[:16], (1, 1), "arch", (0.1, 0.1, 0.9, 0.95), (0.6, 0.75))
    dome = _dome(radius * 1.02, z + drum + 0.7, str(r.choice(["round", "tall", "tall"])))
    b.lathe(0, 0, dome, 20, ("roof",))
    z = dome[-1][1]
    b.lathe(0, 0, [(0.9, z - 0.3), (0.9, z + 2), (1.1, z + 2.1), (0, z + 4.5)], 10, ("trim", "trim", "gold"))


def _mausoleum(b: _Builder, r: Generator) -> None:
    half, height, plinth = r.uniform(7, 9), r.uniform(9, 12), r.uniform(1, 2.6)
    sides_of_plan = int(r.choice([4, 8]))
    b.box(0, 0, 0, (half * 3.5, half * 3.5, plinth), "trim")
    faces = b.lathe(0, 0, [(half, plinth), (half, plinth + height)], sides_of_plan)
    for face in faces:
        b.paint(face, _shape("rect", 0.5, 0.5, 0.27, 0.48), "trim")
        b.paint(face, _shape("pointed", 0.5, 0.42, 0.2, 0.4), "dark")
    if sides_of_plan == 4:
        b.windows(faces, (1, 2), "pointed", (0.03, 0.05, 0.22, 0.95), (0.7, 0.7), "dark")
        b.windows(faces, (1, 2), "pointed", (0.78, 0.05, 0.97, 0.95), (0.7, 0.7), "dark")
    z, kind, radius = plinth + height, str(r.choice(["onion", "onion", "tall", "round"])), half * r.uniform(0.5, 0.66)
    b.lathe(0, 0, [(radius * 0.9, z), (radius * 0.9, z + 2.2)], 18, ("wall",))
    dome = _dome(radius, z + 2.2, kind)
    b.lathe(0, 0, dome, 20, (str(r.choice(["wall", "roof", "roof"])),))
    b.lathe(0, 0, [(0.15, dome[-1][1] - 0.2), (0.5, dome[-1][1] + 0.8), (0.06, dome[-1][1] + 3)], 8, ("gold",))
    for sx, sy in ((-1, -1), (1, -1), (1, 1), (-1, 1)):
        if sides_of_plan == 4:
            b.lathe(sx * half * 0.76, sy * half * 0.76, [(1.3, z), (1.3, z + 1.8)], 8, ("trim",))
            b.lathe(sx * half * 0.76, sy * half * 0.76, _dome(1.4, z + 1.8, kind), 12, ("roof",))
    tall = r.uniform(13, 21)
    for sx, sy in ((-1, -1), (1, -1), (1, 1), (-1, 1))[: int(r.choice([2, 4, 4]))]:
        x, y, rings = sx * half * 1.58, sy * half * 1.58, int(r.integers(2, 5))
        for k in range(rings):
            low, high = plinth + tall * k / rings, plinth + tall * (k + 1) / rings
            shaft = [(0.85 - 0.08 * k, low), (0.77 - 0.08 * k, high - 0.6), (1.15, high - 0.3), (1.15, high)]
            b.lathe(x, y, shaft, 10, ("wall", "wall", "trim"))
        b.lathe(x, y, _dome(0.75, plinth + tall, kind), 10, ("roof",))


def _onion_church(b: _Builder, r: Generator) -> None:
    half, height, shape = r.uniform(6, 8), r.uniform(8, 11), str(r.choice(["arch", "rect"]))
    sides = b.box(0, 0, 0, (half * 2, half * 2, height))
    b.windows(sides, (int(r.integers(3, 6)), int(r.integers(1, 3))), shape)
    b.bands(sides, 1, 0.07)
    materials = ["roof", "gold", "metal", "roof", "gold"]
    r.shuffle(materials)
    kind, grow = str(r.choice(["onion", "onion", "cone"])), r.uniform(1.5, 2.1)
    places = [(-0.6, -0.6), (0.6, -0.6), (0.6, 0.6), (-0.6, 0.6), (0.0, 0.0)][int(r.choice([0, 0, 4])) :]
    for (sx, sy), material in zip(places, materials, strict=False):
        centre = sx == 0
        radius, z = (half * 0.34, height + half * grow * 0.5) if centre else (half * 0.22, height + half * grow * 0.25)
        x, y = sx * half * 1.05, sy * half * 1.05
        drum = [(radius, height), (radius, z), (radius * 1.2, z + 0.2), (radius * 1.2, z + 0.7)]
        faces = b.lathe(x, y, drum, 10, ("wall", "trim"))
        b.windows(faces[:10], (1, 1), "arch", (0.15, 0.15, 0.85, 0.9), (0.5, 0.7))
        dome = _dome(radius * 1.25, z + 0.7, kind)
        b.lathe(x, y, dome, 14, (material, material, "trim") if r.random() < 0.3 else (material,))
        b.lathe(x, y, [(0.15, dome[-1][1] - 0.2), (0.12, dome[-1][1] + 2.4)], 6, ("gold",))
    if r.random() < 0.6:
        b.box(0, -half - 2, 0, (5, 4, 5))
        b.extrude([(-3, 5), (3, 5), (0, 8)], -half - 4.3, -half, "roof")
    else:
        b.lathe(half + 4, 2, [(2.6, 0), (2.6, height * 1.5)], 8)
        _top_off(b, r, half + 4, 2, height * 1.5, 2.6, "spire")


def _triumphal_arch(b: _Builder, r: Generator) -> None:
    three, width, height, depth = bool(r.random() < 0.5), r.uniform(18, 26), r.uniform(13, 19), r.uniform(5, 8)
    half = width * (0.13 if three else 0.2)
    openings = [(0.0, half, height * 0.58)]
    if three:
        small = (half * 0.62, height * 0.36)
        openings = [(-width * 0.31, *small), openings[0], (width * 0.31, *small)]
    front = b.extrude(_wall_with_arches(-width / 2, width / 2, 0, height, openings), -depth / 2, depth / 2)
    b.bands([front], 1, 0.05)
    b.box(0, 0, height, (width * 1.07, depth * 1.2, 1), "trim")
    attic = r.uniform(3, 5.5)
    panel = b.box(0, 0, height + 1, (width * 0.97, depth * 0.95, attic))
    b.paint(panel[0], _shape("rect", 0.5, 0.5, 0.3, 0.33), "trim")
    for row in range(3):
        b.paint(panel[0], _shape("rect", 0.5, 0.68 - 0.18 * row, 0.25 - 0.03 * row, 0.035), "dark")
    b.box(0, 0, height + 1 + attic, (width, depth, 0.7), "trim")
    for x in ([-0.46, -0.2, 0.2, 0.46] if three else [-0.44, -0.28, 0.28, 0.44]) if r.random() < 0.75 else []:
        b.box(x * width, -depth / 2 - 1, 0, (1.7, 1.7, height * 0.16), "stone")
        b.lathe(x * width, -depth / 2 - 1, [(0.7, height * 0.16), (0.55, height * 0.93), (0.9, height)], 10, ("trim",))
    z = height + 1.7 + attic
    if r.random() < 0.6:
        for x in (-2.2, -0.8, 0.8, 2.2):
            b.lathe(x, 0, [(0.7, z), (0.5, z + 1.4), (0.8, z + 1.9), (0.2, z + 3)], 8, ("gold",))
    else:
        _top_off(b, r, 0, 0, z, 2.4, "round")


def _castle(b: _Builder, r: Generator) -> None:
    half, height, radius = r.uniform(8, 12), r.uniform(7, 10), r.uniform(2.2, 3.4)
    tops, rise, pointed = str(r.choice(["cone", "battlements", "cone"])), r.uniform(4, 10), bool(r.random() < 0.5)
    door = [(0.0, r.uniform(1.6, 2.6), height * 0.3)]
    b.extrude(_wall_with_arches(-half, half, 0, height, door, pointed), -radius * 0.5, radius * 0.5)
    for k in range(11):
        b.box((k - 5) * half * 0.17, 0, height, (half * 0.09, radius, 0.9))
    for x, extra in ((-half - radius, 0.0), (half + radius, r.choice([0.0, 4.0]))):
        tall = height + rise + extra
        faces = b.lathe(x, 0, [(radius * 1.1, 0), (radius, 3), (radius, tall)], 14)
        b.windows(faces[14:], (1, 3), "arch", (0.2, 0.05, 0.8, 0.95), (0.45, 0.4), "dark")
        b.lathe(x, 0, [(radius, tall), (radius * 1.25, tall + 0.8), (radius * 1.25, tall + 1.8)], 14, ("trim",))
        if tops == "cone":
            b.lathe(x, 0, [(radius * 1.4, tall + 1.8), (0, tall + 1.8 + radius * r.uniform(2, 3.4))], 14, ("roof",))
        else:
            for a in range(8):
                b.box(x + radius * cos(a * tau / 8), radius * sin(a * tau / 8), tall + 1.8, (0.9, 0.9, 1.1))
    keep, tall, x, y = r.uniform(3, 5), height + rise * r.uniform(1, 1.8), half * r.uniform(-0.4, 0.4), half * 0.9
    b.windows(b.box(x, y, 0, (keep * 2, keep * 2, tall)), (3, 4), "arch")
    b.extrude([(y - keep - 0.4, tall), (y + keep + 0.4, tall), (y, tall + keep)], x - keep, x + keep, "roof", "x")


def _cathedral(b: _Builder, r: Generator) -> None:
    half, tall, nave, length = r.uniform(2.4, 3.2), r.uniform(19, 27), r.uniform(4, 5.5), r.uniform(16, 22)
    top, shape = str(r.choice(["spire", "spire", "battlements", "round"])), str(r.choice(["pointed", "arch"]))
    front = b.box(0, 0.4, 0, (nave * 2, 3, tall * 0.66))
    b.windows(front[:1], (1, 1), shape, (0.3, 0.0, 0.7, 0.42), (0.9, 0.95), "dark")
    for radius, material in ((0.34, "trim"), (0.29, "glass"), (0.1, "trim")):
        b.paint(front[0], _shape("round", 0.5, 0.66, radius, radius * nave * 2 / (tall * 0.66)), material)
    b.extrude([(-nave, tall * 0.66), (nave, tall * 0.66), (0, tall * 0.66 + nave * 0.9)], -1.1, 1.9)
    for side in (-1, 1) if r.random() < 0.75 else (float(r.choice([-1, 1])),):
        x, stages = side * (nave + half), int(r.integers(2, 5))
        for k in range(stages):
            faces = b.box(x, 0.4, tall * k / stages, (half * 2, half * 2, tall / stages))
            b.windows(faces, (int(1 + (k + stages) % 2), 1), shape, (0.12, 0.1, 0.88, 0.92), (0.55, 0.75))
            b.bands(faces, 1, 0.05)
        _top_off(b, r, x, 0.4, tall, half, top)
    y, wall = 1.9 + length / 2, tall * 0.52
    faces = b.box(0, y, 0, (nave * 2, length, wall))
    b.windows([faces[1], faces[3]], (5, 1), shape, (0.04, 0.15, 0.96, 0.9))
    b.extrude([(-nave - 0.4, wall), (nave + 0.4, wall), (0, wall + nave * 1.1)], 1.9, 1.9 + length, "roof")
    for k in range(5):
        for side in (-1, 1):
            b.box(side * (nave + 0.7), 3 + (length - 2) * k / 4, 0, (1.4, 0.9, wall * 0.8), "trim")
            b.lathe(side * (nave + 0.7), 3 + (length - 2) * k / 4, [(0.6, wall * 0.8), (0, wall * 1.1)], 4, ("trim",))


def _temple(b: _Builder, r: Generator) -> None:
    across, along, height, z = int(r.integers(4, 9)), int(r.integers(5, 9)), r.uniform(7, 11), 0.0
    pitch = r.uniform(2.5, 3.1)
    width, depth = pitch * (across - 1) + 2, pitch * (along - 1) + 2
    for step in range(int(r.integers(2, 6))):
        b.box(0, 0, z, (width + 5 - step * 0.9, depth + 5 - step * 0.9, 0.7), "stone")
        z += 0.7
    cella = b.box(0, 0, z, (width - 5.4, depth - 5.4, height), "roof" if r.random() < 0.4 else "trim")
    b.windows(cella, (3, 1), "rect", (0.05, 0.1, 0.95, 0.8), (0.5, 0.9), "dark")
    column = [(0.8, z), (0.72, z + height * 0.4), (0.58, z + height * 0.93), (0.95, z + height)]
    for i in range(across):
        for j in range(along):
            if i in (0, across - 1) or j in (0, along - 1):
                x, y = (i - (across - 1) / 2) * pitch, (j - (along - 1) / 2) * pitch
                b.lathe(x, y, column, 9)
    z += height
    faces = b.box(0, 0, z, (width, depth, 1.6))
    b.windows(faces[:1] + faces[2:3], (across * 2, 1), "rect", (0, 0.3, 1, 0.8), (0.4, 1), "metal")
    if r.random() < 0.75:
        rise = width * r.uniform(0.13, 0.22)
        outline = [(-width / 2 - 0.6, z + 1.6), (width / 2 + 0.6, z + 1.6), (0, z + 1.6 + rise)]
        b.extrude(outline, -depth / 2 + 0.1, depth / 2, "roof")
        gable = b.extrude(outline, -depth / 2 - 0.6, -depth / 2 + 0.1)
        b.paint(gable, [(0.16, 0.12), (0.84, 0.12), (0.5, 0.78)], "metal")
    else:
        radius = min(width, depth) * 0.36
        b.lathe(0, 0, [(radius, z + 1.6), (radius, z + 3.6)], 16)
        b.lathe(0, 0, _dome(radius, z + 3.6, "round"), 20, ("roof",))


def _column(b: _Builder, r: Generator) -> None:
    z, half, height = 0.0, r.uniform(7, 10), r.uniform(20, 32)
    for _ in range(int(r.integers(2, 6))):
        b.box(0, 0, z, (half * 2, half * 2, 0.9), "stone")
        z, half = z + 0.9, half - r.uniform(0.7, 1.2)
    plinth = r.uniform(3, 6)
    faces = b.box(0, 0, z, (6.4, 6.4, plinth))
    for face in faces:
        b.paint(face, _shape("rect", 0.5, 0.5, 0.33, 0.33), "trim")
    b.box(0, 0, z + plinth, (7.2, 7.2, 0.8), "trim")
    z += plinth + 0.8
    if r.random() < 0.5:
        thick = r.uniform(1.6, 2.3)
        faces = b.lathe(
            0, 0, [(thick, z), (thick * 0.7, z + height), (0, z + height + thick * 1.7)], 4, ("wall", "gold")
        )
        marks, shape = int(r.integers(5, 10)), str(r.choice(["rect", "round"]))
        b.windows(faces[:4], (1, marks), shape, (0.2, 0.03, 0.8, 0.97), (0.6, 0.5), "trim")
    else:
        thick, rings = r.uniform(1.5, 2.1), int(r.integers(1, 7))
        steps = np.linspace(0, 1, rings * 2 + 1).tolist()
        b.lathe(0, 0, [(thick * 1.3, z), (thick * 1.3, z + 0.8)], 14, ("trim",))
        b.lathe(0, 0, [(thick * (1 - 0.2 * t), z + 0.8 + height * t) for t in steps], 14, ("wall", "trim"))
        z += height + 0.8
        b.lathe(0, 0, [(thick * 0.8, z), (thick * 1.6, z + 1.4)], 14, ("trim",))
        b.box(0, 0, z + 1.4, (thick * 3, thick * 3, 0.6), "trim")
        b.lathe(
            0, 0, [(1.1, z + 2), (0.6, z + 3.6), (0.9, z + 5), (0.3, z + 5.6), (0.5, z + 6.2), (0, z + 7)], 8, ("gold",)
        )
    if r.random() < 0.6:
        for sx, sy in ((-1, -1), (1, -1), (1, 1), (-1, 1)):
            b.box(sx * 11, sy * 11, 0, (2.4, 2.4, 2), "stone")
            b.lathe(sx * 11, sy * 11, [(1.1, 2), (0.6, 3.6), (0.9, 4.4), (0, 5.2)], 8, ("metal",))


def _hung_bridge(b: _Builder, r: Generator) -> None:
    half, deck, tall, wide = r.uniform(28, 33), r.uniform(5, 7), r.uniform(19, 28), 3.4
    main, fan = half * r.uniform(0.45, 0.6), bool(r.random() < 0.4)
    stone = "wall" if r.random() < 0.4 else "metal"
    b.box(0, 0, deck, (half * 2, wide * 2, 1.1), "metal" if r.random() < 0.5 else "stone")
    for x in (-main, main):
        b.box(x, 0, 0, (4, wide * 2 + 3, 2), "stone")
        thick = 2.4 if stone == "wall" else 1.5
        for y in (-wide - 0.8, wide + 0.8):
            b.box(x, y, 2, (thick, 1.5, tall - 2), stone)
        for level in np.linspace(deck + (tall - deck) * 0.4, tall - 1, int(r.integers(1, 4))).tolist():
            b.box(x, 0, level, (thick * 0.9, wide * 2 + 0.1, 1.3), stone)
    for y in (-wide - 0.8, wide + 0.8):
        cables: list[list[Point]] = []
        hangers: list[list[Point]] = []
        places = np.linspace(-half, half, 49).tolist()
        if fan:
            for x in (-main, main):
                reach = np.linspace(0.15, 1, 8).tolist()
                for t in reach:
                    top = tall - 1 - (1 - t) * (tall - deck) * 0.35
                    cables += [
                        [(x, y, top), (x + s * t * (main if s * x < 0 else half - main), y, deck + 1)] for s in (-1, 1)
                    ]
        else:
            sag = [deck + 2 + (tall - deck - 2) * (x / main) ** 2 if abs(x) <= main
                   else tall - (tall - deck - 1) * (abs(x) - main) / (half - main) for x in places]  # fmt: skip
            cables = [[(x, y, z) for x, z in zip(places, sag, strict=True)]]
            hangers = [[(x, y, deck + 1), (x, y, z)] for x, z in zip(places[1::2], sag[1::2], strict=True)]
        b.beams(cables, 0.32 if fan else 0.6)
        b.beams(hangers, 0.18)
    for x in (-half - 3, half + 3):
        b.box(x, 0, 0, (6, wide * 2 + 2, deck + 1.1), "stone")


def _arched_bridge(b: _Builder, r: Generator) -> None:
    half, tiers, spans, wide = r.uniform(26, 32), int(r.choice([1, 1, 2, 3])), int(r.integers(3, 7)), 2.6
    pointed, z = bool(r.random() < 0.25), 0.0
    for tier in range(tiers):
        count = spans * (2 if tier == tiers - 1 and tiers > 1 else 1)
        pitch = half * 2 / count
        height = pitch * r.uniform(0.68, 0.95) if tiers == 1 else max(pitch * 0.75, 6.5 if tier < tiers - 1 else 4)
        openings = [
            (-half + pitch * (k + 0.5), pitch * 0.4, max(z + height - pitch * 0.56 - 0.6, z + 0.3))
            for k in range(count)
        ]
        face = b.extrude(_wall_with_arches(-half, half, z, z + height, openings, pointed), -wide, wide)
        b.bands([face], 1, 0.07)
        b.box(0, 0, z + height, (half * 2 + 1, wide * 2 + 0.8, 0.7), "trim")
        if tier == 0:
            for k in range(1, count):
                for y in (-wide - 0.9, wide + 0.9):
                    cutwater = [(pitch * 0.1, z), (pitch * 0.1, z + height * 0.6), (0.1, z + height * 0.75)]
                    b.lathe(-half + pitch * k, y, cutwater, 6, ("stone",))
        z, wide = z + height + 0.7, wide * 0.85
    ends = int(r.integers(0, 3)) if tiers == 1 else 0
    for x in (-half - 2, half + 2)[: ends if ends else 0]:
        gate = b.extrude(_wall_with_arches(x - 2.4, x + 2.4, 0, z + 9, [], False), -3.2, 3.2)
        b.windows([gate], (1, 2), "arch", (0.2, 0.55, 0.8, 0.95), (0.6, 0.6), "dark")
        _top_off(b, r, x, 0, z + 9, 2.4, "spire")
    if ends == 0 and tiers == 1:
        for k in range(1, spans):
            x = -half + half * 2 / spans * k
            b.lathe(x, -wide, [(0.5, z), (0.35, z + 2.6), (0.8, z + 3), (0, z + 4)], 6, ("metal", "metal", "gold"))


def _steel_arch(b: _Builder, r: Generator) -> None:
    half, deck, rise, wide = r.uniform(22, 27), r.uniform(4, 9), r.uniform(13, 19), 3.2
    b.box(0, 0, deck, (half * 2 + 12, wide * 2, 1.2), "stone")
    ts = np.linspace(0, pi, 23).tolist()
    foot, gap = r.choice([0.5, deck * 0.6]), r.uniform(2, 4)
    for y in (-wide - 0.5, wide + 0.5):
        lower = [(-half * cos(t), y, foot + rise * sin(t)) for t in ts]
        upper = [(-half * cos(t), y, foot + gap + (rise + 0.4) * sin(t)) for t in ts]
        b.beams([lower, upper], 0.8)
        web = [[p, q] for p, q in zip(lower, upper, strict=True)]
        web += [[p, q] for p, q in zip(lower, upper[1:], strict=False)]
        b.beams(web, 0.36)
        hangers = [[(x, y, deck + 1), (x, y, z)] for x, _, z in lower if z > deck + 1.5]
        b.beams([*hangers, *([(x, y, z), (x, y, deck)] for x, _, z in lower[1::3] if z < deck - 1)], 0.26)
    braces = [
        [(-half * cos(t), -wide, foot + gap + rise * sin(t)), (-half * cos(t), wide, foot + gap + rise * sin(t))]
        for t in ts
    ]
    b.beams([line for line in braces if line[0][2] > deck + 4], 0.4)
    pylon = r.uniform(deck + 5, deck + 13)
    for x in (-half - 2.6, half + 2.6):
        for y in (-wide - 1, wide + 1):
            faces = b.box(x, y, 0, (3.6, 2, pylon))
            b.windows(faces, (1, 3), "arch", (0.15, 0.3, 0.85, 0.95), (0.5, 0.5), "dark")
            b.box(x, y, pylon, (4.2, 2.6, 0.8), "trim")
        b.box(x, 0, 0, (3.6, wide * 2, deck), "wall")


_Kind = tuple[str, bool, Callable[[_Builder, Generator], None]]
_KINDS: tuple[_Kind, ...] = (
    ("Bell Tower", False, _campanile),
    ("Bridge", True, _hung_bridge),
    ("Capitol", False, _capitol),
    ("Arch", False, _triumphal_arch),
    ("Lighthouse", False, _lighthouse),
    ("Old Bridge", True, _arched_bridge),
    ("Mausoleum", False, _mausoleum),
    ("Castle", False, _castle),
    ("Iron Tower", False, _lattice),
    ("Church", False, _onion_church),
    ("Arch Bridge", True, _steel_arch),
    ("Pagoda", False, _pagoda),
    ("Cathedral", False, _cathedral),
    ("Temple", False, _temple),
    ("Building", False, _skyscraper),
    ("Column", False, _column),
)


# --- the photograph ---


@dataclass(frozen=True)
class _Hour:
    """The light of an hour: colours of the sky (zenith, horizon), of the sun and the shade, and how cloudy it is."""

    zenith: Colour
    horizon: Colour
    sun: tuple[float, float, float]
    shade: tuple[float, float, float]
    cloud: Colour
    cover: float
    night: bool = False


_HOURS = (
    _Hour((58, 122, 196), (178, 212, 236), (0.62, 0.59, 0.50), (0.56, 0.60, 0.67), (250, 250, 250), 0.25),
    _Hour((82, 148, 210), (206, 226, 238), (0.55, 0.53, 0.47), (0.60, 0.63, 0.67), (246, 246, 248), 0.55),
    _Hour((150, 164, 178), (208, 214, 220), (0.20, 0.20, 0.20), (0.78, 0.80, 0.83), (182, 188, 196), 0.85),
    _Hour((74, 96, 158), (250, 190, 124), (0.74, 0.52, 0.30), (0.50, 0.46, 0.52), (250, 176, 140), 0.45),
    _Hour((120, 160, 204), (246, 232, 206), (0.62, 0.54, 0.40), (0.56, 0.57, 0.59), (255, 244, 226), 0.35),
    _Hour((44, 54, 104), (214, 120, 116), (0.50, 0.38, 0.30), (0.46, 0.42, 0.52), (150, 88, 118), 0.5, True),
    _Hour((12, 18, 44), (48, 58, 98), (0.92, 0.74, 0.46), (0.30, 0.30, 0.40), (40, 46, 72), 0.4, True),
)
_HOUR_ODDS = (0.24, 0.2, 0.16, 0.13, 0.13, 0.07, 0.07)
_GREENS: tuple[Colour, ...] = ((116, 160, 78), (98, 146, 70), (146, 164, 88), (104, 150, 92))
_LEAVES: tuple[Colour, ...] = ((74, 110, 56), (92, 120, 52), (56, 92, 58), (150, 112, 50))
_PAVINGS: tuple[Colour, ...] = ((198, 190, 176), (178, 180, 184), (214, 198, 168), (172, 166, 164))


@dataclass(frozen=True)
class _Camera:
    """Stands at `eye` [3] and looks level along `forward` [2]; verticals stay vertical, as with a shift lens."""

    eye: Array
    forward: Array
    focal: float
    centre_x: float
    horizon: float

    def project(self, points: Array) -> Array:
        """Canvas x, y and depth: float [N, 3]."""
        x, y, z = (points - self.eye).T
        depth = np.maximum(x * self.forward[0] + y * self.forward[1], 1.0)
        side = x * self.forward[1] - y * self.forward[0]
        return np.stack([self.centre_x + self.focal * side / depth, self.horizon - self.focal * z / depth, depth], 1)

    def ground(self, x: float, depth: float) -> Flat:
        """Where the ground `depth` units away and `x` units to the right appears."""
        return self.centre_x + self.focal * x / depth, self.horizon + self.focal * float(self.eye[2]) / depth


def photograph(landmark: Landmark, rng: Generator) -> Image.Image:
    """A picture of the landmark: RGB, its longest side `LONGEST_SIDE` pixels; everything else is drawn from `rng`."""
    spread = landmark.high.max(0) - landmark.low.min(0)
    portrait = rng.random() < (0.75 if spread[2] > spread[0] * 1.3 else 0.2 if spread[2] > spread[0] * 0.7 else 0.04)
    short = int(rng.choice([600, 533, 600, 450 if not portrait else 640]))
    width, height = (short, LONGEST_SIDE) if portrait else (LONGEST_SIDE, short)
    canvas = (round(width * _SUPERSAMPLING), round(height * _SUPERSAMPLING))
    hour = _HOURS[int(rng.choice(len(_HOURS), p=_HOUR_ODDS))]
    camera, sun = _place_camera(landmark, rng, canvas)
    image = _sky(rng, hour, canvas)
    _hills(image, rng, hour, camera)
    colours = _light(landmark, rng, hour, sun)
    if landmark.over_water or rng.random() < 0.12:
        _water(image, rng, hour, camera, landmark, colours)
    else:
        _ground(image, rng, hour, camera, landmark, sun)
    _paint(image, landmark, camera, colours)
    _bystanders(image, rng, hour, camera, landmark.over_water)
    return _develop(image, rng, (width, height))


def _place_camera(landmark: Landmark, rng: Generator, canvas: tuple[int, int]) -> tuple[_Camera, Array]:
    """A viewpoint that frames the building, and the direction towards the sun."""
    low, high = landmark.low.min(0), landmark.high.max(0)
    middle, spread = (low + high) / 2, float(np.max(high - low))
    swing = float(np.clip(rng.normal(0, 0.42), -0.85, 0.85))
    distance = spread * rng.uniform(1.15, 2.4)
    raised = rng.uniform(0.12, 0.5) if rng.random() < 0.35 else rng.uniform(0.03, 0.12)
    eye = np.array([middle[0] + distance * sin(swing), middle[1] - distance * cos(swing), spread * raised])
    forward = np.array([-sin(swing), cos(swing)])
    first = _Camera(eye, forward, 1.0, 0.0, 0.0).project(landmark.vertices)
    (x0, y0), (x1, y1) = first[:, :2].min(0), first[:, :2].max(0)
    zoom = rng.uniform(0.58, 0.9) if rng.random() < 0.8 else rng.uniform(0.86, 1.2)
    focal = zoom * min(canvas[0] / (x1 - x0), canvas[1] / (y1 - y0))
    loose = (canvas[0] - focal * (x1 - x0)) / 2
    centre_x = canvas[0] / 2 + rng.uniform(-0.55, 0.55) * abs(loose) - focal * (x0 + x1) / 2
    bottom = canvas[1] * rng.uniform(0.78, 0.93) if zoom < 0.95 else canvas[1] * rng.uniform(0.9, 1.08)
    top = bottom - focal * (y1 - y0)
    if top < canvas[1] * 0.06:
        bottom += min(canvas[1] * 0.06 - top, canvas[1] * 0.1)
    camera = _Camera(eye, forward, focal, centre_x, bottom - focal * y1)
    azimuth, rising = -pi / 2 + swing * 0.6 + rng.choice([-1, 1]) * rng.uniform(0.15, 1.05), rng.uniform(0.4, 0.95)
    return camera, np.array([cos(azimuth) * cos(rising), sin(azimuth) * cos(rising), sin(rising)])


def _light(landmark: Landmark, rng: Generator, hour: _Hour, sun: Array) -> Array:
    """The colour of every polygon in this light: float [P, 3]."""
    facing = np.maximum((landmark.normals * sun).sum(1), 0)
    facing[landmark.width > 0] = 0.45
    strength = rng.uniform(0.85, 1.15)
    light = (
        np.array(hour.shade) * (0.86 + 0.14 * landmark.normals[:, 2:]) + strength * np.array(hour.sun) * facing[:, None]
    )
    colours = landmark.colours[landmark.material] * light * rng.uniform(0.97, 1.03, 3)
    glass = landmark.material == _GLASS
    shine = rng.uniform(0.75, 1.25, (int(glass.sum()), 1))
    colours[glass] = (landmark.colours[_GLASS] * 0.62 + np.array(hour.horizon) * 0.22) * shine
    if hour.night:
        lit = rng.random(len(shine)) < rng.uniform(0.35, 0.8)
        colours[np.flatnonzero(glass)[lit]] = np.array([255, 208, 128]) * shine[lit] * 0.95
    haze = rng.uniform(0, 0.1)
    return np.asarray(np.clip(colours * (1 - haze) + np.array(hour.horizon) * haze, 0, 255))


def _paint(image: Image.Image, landmark: Landmark, camera: _Camera, colours: Array, mirrored: bool = False) -> None:
    """Draw the building, or its mirror image in the water: far solids first, and in each its far faces first."""
    eye = camera.eye * [1, 1, -1] if mirrored else camera.eye
    vertices = landmark.vertices * [1, 1, -1] if mirrored else landmark.vertices
    flat = camera.project(vertices)
    starts = landmark.starts
    first = landmark.vertices[starts[:-1]]
    centres = np.add.reduceat(landmark.vertices, starts[:-1]) / np.diff(starts)[:, None]
    beam = landmark.width > 0
    seen = beam | ((landmark.normals * (eye - first)).sum(1) > 0)
    distance = ((centres - eye) ** 2).sum(1)
    rank = _solid_ranks(landmark, eye)[landmark.solid]
    host = landmark.host
    order = np.lexsort((np.arange(len(host)), -distance[host], landmark.layer[host], rank))
    order = order[seen[order]]
    widths = np.maximum(np.round(camera.focal * landmark.width / flat[starts[:-1], 2]), 1).astype(int).tolist()
    points, ends = flat[:, :2].ravel().tolist(), (starts * 2).tolist()
    fills = [tuple(c) for c in colours.astype(int).tolist()]
    rims = [tuple(c) for c in (colours * 0.88).astype(int).tolist()]
    plain = (beam | (landmark.host != np.arange(len(host)))).tolist()
    draw = ImageDraw.Draw(image)
    for p in order.tolist():
        outline = points[ends[p] : ends[p + 1]]
        if len(outline) == 4:
            draw.line(outline, fills[p], widths[p])
        else:
            draw.polygon(outline, fills[p], None if plain[p] else rims[p])


def _solid_ranks(landmark: Landmark, eye: Array) -> Array:
    """The order to draw solids in: where a plane parts two of them, the one on the eye's side comes later."""
    low, high = landmark.low, landmark.high
    # before[a, b]: a must be drawn before b, as b lies between the eye and some plane that has a behind it.
    before = np.zeros((len(low), len(low)), bool)
    decided = np.zeros_like(before)
    for axis in (1, 0, 2):
        below = high[:, None, axis] <= low[None, :, axis] + 1e-6  # a lies below b along this axis
        plane = low[None, :, axis]
        pair = below & ~decided & ~decided.T & ~below.T
        eye_above = pair & (eye[axis] >= plane)
        before |= eye_above | (pair & ~eye_above).T
        decided |= pair | pair.T
    distance = (((low + high) / 2 - eye) ** 2).sum(1)
    ranks = np.zeros(len(low), int)
    waiting = before.sum(0).astype(float)
    for rank in range(len(low)):
        free = waiting == waiting.min()  # 0, unless solids overlap one another in a circle
        chosen = int(np.argmax(np.where(free, distance, -1)))
        ranks[chosen] = rank
        waiting[before[chosen]] -= 1
        waiting[chosen] = np.inf
    return ranks


def _blotches(rng: Generator, size: tuple[int, int], cells: int, octaves: int = 3) -> Array:
    """Smooth noise about 0 with a deviation near 1, float32 [H, W]; `cells` lumps across."""
    total = np.zeros((size[1], size[0]), np.float32)
    for octave in range(octaves):
        shape = (max(2, cells * 2**octave * size[1] // size[0]) + 1, cells * 2**octave + 1)
        coarse = Image.fromarray(rng.normal(0, 1, shape).astype(np.float32))
        total += np.asarray(coarse.resize(size, Image.Resampling.BICUBIC)) * 0.62**octave
    return total


def _sky(rng: Generator, hour: _Hour, canvas: tuple[int, int]) -> Image.Image:
    """Sky over the whole canvas: a gradient with clouds, stars at night."""
    small = (canvas[0] // 4, canvas[1] // 4)
    down = np.linspace(0, 1, small[1])[:, None, None] ** rng.uniform(0.7, 1.4)
    sky = np.array(hour.zenith) * (1 - down) + np.array(hour.horizon) * down + np.zeros((1, small[0], 1))
    cover = _blotches(rng, (small[0], small[1] * 2), int(rng.integers(2, 6)), 4)[::2] * 0.5
    amount = np.clip((cover + hour.cover + rng.normal(0, 0.25) - 0.45) * 1.4, 0, 0.92)[..., None]
    puff = np.array(hour.cloud) * np.clip(0.94 + 0.1 * (1 - cover), 0.8, 1.02)[..., None]
    image = Image.fromarray(np.clip(sky * (1 - amount) + puff * amount, 0, 255).astype(np.uint8))
    image = image.resize(canvas, Image.Resampling.BICUBIC)
    if hour.night:
        draw = ImageDraw.Draw(image)
        for x, y, glow in rng.random((60, 3)).tolist():
            radius = 0.6 + glow
            draw.ellipse(_disc(x * canvas[0], y * canvas[1] * 0.6, radius), (200, 205, 220))
    return image


def _disc(x: float, y: float, radius: float, squash: float = 1.0) -> tuple[float, float, float, float]:
    return x - radius, y - radius * squash, x + radius, y + radius * squash


def _mixed(a: Sequence[float], b: Sequence[float], share: float) -> Colour:
    """`share` of b in a."""
    red, green, blue = (round(p + (q - p) * share) for p, q in zip(a, b, strict=True))
    return red, green, blue


def _shaded(colour: Sequence[float], hour: _Hour, strength: float = 1.0) -> Colour:
    """A thing's colour in the light of the hour."""
    light = (s * 0.55 + a for s, a in zip(hour.sun, hour.shade, strict=True))
    red, green, blue = (
        min(255, round(c * part * strength * (0.45 if hour.night else 1)))
        for c, part in zip(colour, light, strict=True)
    )
    return red, green, blue


def _hills(image: Image.Image, rng: Generator, hour: _Hour, camera: _Camera) -> None:
    """What closes the horizon: hills, woods or a town, pale with distance."""
    width, height = image.size
    draw = ImageDraw.Draw(image)
    for layer in range(int(rng.integers(1, 4))):
        tall = height * rng.uniform(0.02, 0.1)
        tone = _mixed(
            _shaded((96, 116, 96) if rng.random() < 0.7 else (130, 126, 130), hour), hour.horizon, 0.72 - 0.22 * layer
        )
        if rng.random() < 0.3:
            x = 0.0
            while x < width:
                wide, high = rng.uniform(0.01, 0.05) * width, tall * rng.uniform(0.2, 1)
                draw.rectangle((x, camera.horizon - high, x + wide, camera.horizon + 4), tone)
                x += wide * rng.uniform(0.8, 1.3)
        else:
            xs = np.linspace(0, width, 60)
            ridge = sum(np.sin(xs / width * tau * f + rng.uniform(0, tau)) / f for f in rng.uniform(0.5, 9, 5).tolist())
            ys = camera.horizon - tall * (0.6 + 0.25 * ridge)
            outline = np.stack([xs, np.minimum(ys, camera.horizon + 2)], 1).ravel().tolist()
            draw.polygon([*outline, width, camera.horizon + 4, 0, camera.horizon + 4], tone)


def _ground(image: Image.Image, rng: Generator, hour: _Hour, camera: _Camera, landmark: Landmark, sun: Array) -> None:
    """Lawn or paving from the horizon down, and the building's shadow on it."""
    width, height = image.size
    top = int(np.clip(camera.horizon, 0, height - 2))
    paved = rng.random() < 0.5
    tones = _PAVINGS if paved else _GREENS
    near = np.array(_shaded(tones[int(rng.integers(len(tones)))], hour), float)
    small = (width // 6, max(2, (height - top) // 3))
    down = np.linspace(0, 1, small[1])[:, None, None]
    far = near * 0.75 + np.array(hour.horizon) * (0.25 if not hour.night else 0.1)
    patch = 1 + 0.035 * _blotches(rng, small, 24)[..., None]
    ground = np.clip((far * (1 - down) + near * 0.92 * down) * patch, 0, 255).astype(np.uint8)
    image.paste(Image.fromarray(ground).resize((width, height - top), Image.Resampling.BICUBIC), (0, top))
    draw = ImageDraw.Draw(image)
    reach = float(np.hypot(*camera.eye[:2]))
    if paved:
        tone, pitch = _mixed(near.tolist(), (40, 40, 44), 0.16), rng.uniform(2, 5)
        for k in range(-40, 41):
            draw.line([camera.ground(k * pitch, reach * 0.25), camera.ground(k * pitch, reach * 3)], tone, 1)
        for k in range(1, 40):
            y = camera.ground(0, reach * 0.25 + k * pitch)[1]
            draw.line([(0, y), (width, y)], tone, 1)
    elif rng.random() < 0.6:
        tone, wide, away = _shaded((206, 190, 160), hour), rng.uniform(1.5, 4), rng.uniform(-14, 14)
        path = [camera.ground(away - wide, reach * 0.2), camera.ground(away + wide, reach * 0.2)]
        draw.polygon([*path, camera.ground(wide, reach), camera.ground(-wide, reach)], tone)
    if hour.sun[0] > 0.3 and not hour.night:
        _cast_shadow(image, camera, landmark, sun)


def _cast_shadow(image: Image.Image, camera: _Camera, landmark: Landmark, sun: Array) -> None:
    fallen = landmark.vertices - sun * (landmark.vertices[:, 2:] / sun[2])
    points, ends = (camera.project(fallen)[:, :2] / 3).ravel().tolist(), (landmark.starts * 2).tolist()
    mask = Image.new("L", (image.width // 3, image.height // 3))
    draw = ImageDraw.Draw(mask)
    for p in np.flatnonzero((landmark.host == np.arange(len(landmark.host))) & (landmark.normals @ sun >= 0)).tolist():
        outline = points[ends[p] : ends[p + 1]]
        if len(outline) == 4:
            draw.line(outline, 95, 1)
        else:
            draw.polygon(outline, 95)
    mask = mask.filter(ImageFilter.GaussianBlur(1.2)).resize(image.size, Image.Resampling.BILINEAR)
    image.paste((28, 32, 44), (0, 0), mask)


def _water(
    image: Image.Image, rng: Generator, hour: _Hour, camera: _Camera, landmark: Landmark, colours: Array
) -> None:
    """Water from the horizon down, with sky, hills and building mirrored in it."""
    width, height = image.size
    top = int(np.clip(camera.horizon, 1, height - 2))
    depth = height - top
    mirror = Image.new("RGB", (width, height), hour.zenith)
    above = image.crop((0, max(0, top - depth), width, top)).transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    mirror.paste(above, (0, top))
    _paint(mirror, landmark, camera, colours, mirrored=True)
    seen = np.asarray(mirror)[top:]
    rows = np.arange(depth)
    swell = (0.4 + 7 * rows / depth) * rng.uniform(0.5, 1.6)
    phase = 90 * np.log1p(rows / depth * 12) * rng.uniform(0.5, 0.9)
    shift = (np.sin(phase) * swell + rng.normal(0, 1, depth) * swell * 0.4).astype(int)
    columns = np.clip(np.arange(width)[None] + shift[:, None], 0, width - 1)
    tint = np.array(_shaded(((52, 92, 106), (70, 104, 96), (86, 108, 120))[int(rng.integers(3))], hour), float)
    clear = rng.uniform(0.4, 0.72)
    fade = (clear * (1 - 0.35 * rows / depth) * (1 + 0.1 * np.sin(phase * 1.7)))[:, None, None]
    wet = seen[rows[:, None], columns].astype(np.float32) * fade.astype(np.float32)
    wet += (tint * (1 - fade)).astype(np.float32)
    image.paste(Image.fromarray(np.clip(wet, 0, 255).astype(np.uint8)), (0, top))


def _bystanders(image: Image.Image, rng: Generator, hour: _Hour, camera: _Camera, afloat: bool) -> None:
    """Whatever stands between camera and building: trees, people, lamp-posts; boats on water."""
    draw = ImageDraw.Draw(image)
    reach = float(np.hypot(*camera.eye[:2]))
    span = image.width / camera.focal
    things = [(rng.uniform(0.3, 0.92), rng.uniform(-0.5, 0.5)) for _ in range(int(rng.integers(0, 9)))]
    for share, side in sorted(things, reverse=True):
        depth = reach * share
        x, y = camera.ground(0, depth)
        x = image.width * (0.5 + side)
        unit = camera.focal / depth
        if y > image.height * 1.15 or (afloat and share < 0.55):
            continue
        if afloat:
            _boat(draw, rng, hour, x, y, unit)
        elif rng.random() < 0.42:
            _tree(draw, rng, hour, x, y, unit * rng.uniform(4, 11) * min(1.0, span))
        elif rng.random() < 0.7:
            for _ in range(int(rng.integers(1, 4))):
                _person(draw, rng, hour, x + rng.normal(0, 2.5) * unit, y, unit * rng.uniform(1.5, 2))
        else:
            _lamp(draw, hour, x, y, unit * 5)
    if rng.random() < 0.12:
        edge = image.width * float(rng.choice([0.02, 0.98]))
        _tree(draw, rng, hour, edge, image.height * rng.uniform(1, 1.2), image.height * rng.uniform(0.6, 1))


def _tree(draw: ImageDraw.ImageDraw, rng: Generator, hour: _Hour, x: float, y: float, tall: float) -> None:
    green = np.array(_LEAVES[int(rng.choice(len(_LEAVES), p=(0.35, 0.3, 0.25, 0.1)))], float)
    trunk = [x - tall * 0.035, y, x + tall * 0.035, y, x + tall * 0.02, y - tall * 0.5, x - tall * 0.02, y - tall * 0.5]
    draw.polygon(trunk, _shaded((86, 66, 50), hour))
    if rng.random() < 0.3:
        for k in range(5):
            wide, low = tall * (0.26 - 0.045 * k), y - tall * (0.14 + 0.16 * k)
            draw.polygon(
                [x - wide, low, x + wide, low, x, low - tall * 0.3], _shaded(green.tolist(), hour, 0.7 + 0.07 * k)
            )
        return
    puffs = np.clip(rng.normal(0, 0.9, (30, 2)), -1.5, 1.5) * [0.15, 0.13]
    for k, (dx, dy) in enumerate(sorted(puffs.tolist(), key=lambda p: -p[1])):
        tone = _shaded(green.tolist(), hour, 0.72 + 0.02 * k + rng.uniform(-0.05, 0.05))
        draw.ellipse(_disc(x + dx * tall, y - tall * 0.68 + dy * tall, tall * rng.uniform(0.07, 0.14), 0.85), tone)


def _person(draw: ImageDraw.ImageDraw, rng: Generator, hour: _Hour, x: float, y: float, tall: float) -> None:
    coat, legs = (_shaded(rng.uniform(30, 225, 3).tolist(), hour, 0.9), _shaded(rng.uniform(30, 90, 3).tolist(), hour))
    draw.polygon(
        [x - tall * 0.11, y, x + tall * 0.11, y, x + tall * 0.1, y - tall * 0.5, x - tall * 0.1, y - tall * 0.5], legs
    )
    draw.ellipse((x - tall * 0.15, y - tall * 0.84, x + tall * 0.15, y - tall * 0.38), coat)
    skin = ((236, 196, 166), (186, 136, 102), (120, 82, 60))[int(rng.integers(3))]
    draw.ellipse(_disc(x, y - tall * 0.91, tall * 0.09), _shaded(skin, hour))


def _lamp(draw: ImageDraw.ImageDraw, hour: _Hour, x: float, y: float, tall: float) -> None:
    draw.line([(x, y), (x, y - tall)], _shaded((60, 64, 66), hour), max(1, round(tall * 0.035)))
    glow = (255, 226, 160) if hour.night else _shaded((226, 224, 214), hour)
    draw.ellipse(_disc(x, y - tall, tall * 0.07), glow, _shaded((60, 64, 66), hour))


def _boat(draw: ImageDraw.ImageDraw, rng: Generator, hour: _Hour, x: float, y: float, unit: float) -> None:
    long = unit * rng.uniform(2, 5)
    hull = _shaded(((200, 198, 190), (130, 70, 56), (60, 80, 104))[int(rng.integers(3))], hour)
    draw.polygon([x - long, y - long * 0.25, x + long, y - long * 0.3, x + long * 0.7, y, x - long * 0.75, y], hull)
    if rng.random() < 0.5:
        sail = _shaded((240, 236, 224), hour)
        draw.polygon([x, y - long * 0.32, x + long * 0.75, y - long * 0.38, x, y - long * 2], sail)
    else:
        draw.rectangle(
            (x - long * 0.4, y - long * 0.6, x + long * 0.3, y - long * 0.26), _shaded((222, 222, 218), hour)
        )


def _develop(image: Image.Image, rng: Generator, size: tuple[int, int]) -> Image.Image:
    """Tilt and keystone the canvas while it shrinks to `size`, then focus, exposure and grain."""
    (wide, high), (width, height) = image.size, size
    tilt, lean = rng.normal(0, 0.018), rng.uniform(-0.05, 0.05)
    margin = 1.05 + abs(tilt) * 1.4 + abs(lean) / 2
    scale = wide / width / margin
    a, b = scale * cos(tilt), scale * sin(tilt)
    # Maps output to canvas pixels: a turn about the middle over a denominator that changes from top to bottom.
    g = lean / height
    mx, my = width / 2, height / 2
    norm = 1 - g * my
    rows = [[a, b, -a * mx - b * my], [-b, a, b * mx - a * my], [0, g, norm]]
    move = np.array([[1, 0, wide / 2], [0, 1, high / 2], [0, 0, 1]]) @ np.array(rows)
    coefficients = (move / move[2, 2]).ravel()[:8].tolist()
    picture = image.transform(size, Image.Transform.PERSPECTIVE, coefficients, Image.Resampling.BILINEAR)
    if rng.random() < 0.25:
        picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.4, 1.3)))
    gain, lift = rng.uniform(0.9, 1.1) * rng.uniform(0.97, 1.03, 3), rng.uniform(-8, 8)
    values = np.arange(256)[None] * gain[:, None] + lift
    picture = picture.point(np.clip(values, 0, 255).astype(np.uint8).ravel().tolist())
    strength = int(rng.integers(1, 6))
    grain = rng.integers(-strength, strength + 1, (height, width, 1), dtype=np.int16)
    return Image.fromarray(np.clip(np.asarray(picture, np.int16) + grain, 0, 255).astype(np.uint8))
