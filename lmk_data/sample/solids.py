"""Solids made of flat polygons, from which imaginary landmarks are put together. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import cos, pi, sin, tau
from typing import Any

import numpy as np
from numpy.random import Generator

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


GLASS = _MATERIALS.index("glass")


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


@dataclass(frozen=True)
class _Face:
    polygon: int
    corners: tuple[Point, Point, Point, Point]

    def at(self, u: float, v: float) -> Point:
        a, b, c, d = self.corners
        weights = ((1 - u) * (1 - v), u * (1 - v), u * v, (1 - u) * v)
        x, y, z = (sum(w * p[k] for w, p in zip(weights, (a, b, c, d), strict=True)) for k in range(3))
        return x, y, z


class Builder:
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
                    self.paint(face, flat_shape(shape, u, v, half[0] + 0.09 * du, half[1] + 0.06 * dv), "trim")
                self.paint(face, flat_shape(shape, u, v, *half), material)

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


def flat_shape(kind: str, u: float, v: float, du: float, dv: float) -> list[Flat]:
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


def arched_wall(
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


def dome_profile(radius: float, base: float, kind: str) -> list[Flat]:
    """The profile of a dome of the given radius: round, tall, onion or cone."""
    if kind == "cone":
        return [(radius, base), (0, base + radius * 3)]
    if kind == "onion":
        curve = ((0.78, 0), (1.02, 0.28), (1.14, 0.6), (1.05, 0.95), (0.78, 1.28), (0.44, 1.58), (0.18, 1.86))
        return [(radius * r, base + radius * h) for r, h in (*curve, (0.05, 2.2))]
    stretch = 1.35 if kind == "tall" else 0.95
    return [(radius * max(cos(a), 0.04), base + radius * stretch * sin(a)) for a in np.linspace(0, pi / 2, 8).tolist()]
