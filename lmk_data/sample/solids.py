"""Solids made of flat polygons, from which imaginary buildings are composed. Pure: no files, no global state.

Space has x to the right, y away from the front and z up; a building is about 40 units large.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import cos, pi, sin, tau

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Point = tuple[float, float, float]
Flat = tuple[float, float]  # on a face: (0, 0) is its lower left corner, (1, 1) its upper right corner
Colour = tuple[int, int, int]

MATERIALS = ("wall", "trim", "roof", "metal", "gold", "stone", "dark", "glass")
GLASS = MATERIALS.index("glass")
_WALLS = ((226, 212, 182), (172, 92, 70), (238, 235, 228), (158, 158, 160), (216, 174, 106), (112, 104, 102))
_ROOFS = ((84, 92, 106), (108, 164, 142), (178, 88, 60), (212, 170, 70), (98, 70, 58), (62, 106, 160), (150, 62, 62))
_METALS = ((176, 66, 48), (116, 124, 132), (70, 110, 96), (200, 204, 206), (108, 92, 80), (62, 88, 128))
_FIXED = ((214, 172, 72), (176, 168, 154), (52, 48, 50), (78, 96, 116))  # gold to glass


@dataclass(frozen=True, eq=False)
class Landmark:
    """A building, ready to be photographed: P polygons of N vertices in total, which form S solids."""

    noun: str  # what its kind is called ("Bridge")
    over_water: bool  # whether it stands in a river
    colours: Floats  # [8, 3], one row per entry of `MATERIALS`, 0 to 255
    vertices: Floats  # [N, 3]
    starts: Ints  # [P + 1]; polygon p has the vertices starts[p] to starts[p + 1]
    normals: Floats  # [P, 3], unit length
    material: Ints  # [P], index into `MATERIALS`
    solid: Ints  # [P]
    host: Ints  # [P], the polygon that this one is painted on, or itself
    layer: Ints  # [P], drawing order within a solid
    low: Floats  # [S, 3], lower bounds of each solid
    high: Floats  # [S, 3], upper bounds


@dataclass(frozen=True)
class Face:
    """A polygon that can be painted on, with the four corners that span its (u, v) coordinates."""

    polygon: int
    corners: Sequence[Point]

    def at(self, u: float, v: float) -> Point:
        weights = ((1 - u) * (1 - v), u * (1 - v), u * v, (1 - u) * v)
        x, y, z = (sum(w * p[k] for w, p in zip(weights, self.corners, strict=True)) for k in range(3))
        return x, y, z


class Builder:
    """Collects the polygons of one building. Faces run anticlockwise seen from outside, lower left corner first."""

    def __init__(self) -> None:
        self._polygons: list[Sequence[Point]] = []
        self._rows: list[tuple[int, int, int, int]] = []  # material, solid, host, layer
        self._num_solids = 0

    def loft(self, at: Flat, rings: Sequence[Point], sides: int, materials: Sequence[str]) -> list[Face]:
        """Add a solid through rings of (half width, half depth, z), from the ground up.

        Each ring is a regular polygon of `sides` corners; the rings take the materials in turn. A last ring without
        depth makes a gable roof, one without width and depth a spire. Returns the faces, ring by ring, front first.
        """
        self._num_solids += 1
        grow, turn = 1 / cos(pi / sides), -pi / 2 - pi / sides
        angles = [turn + tau * k / sides for k in range(sides + 1)]
        loops = [
            [(at[0] + grow * cos(a) * wide, at[1] + grow * sin(a) * deep, z) for a in angles] for wide, deep, z in rings
        ]
        faces = []
        for ring, (below, above) in enumerate(pairwise(loops)):
            material = materials[ring % len(materials)]
            for k in range(sides):
                faces.append(self._add([below[k], below[k + 1], above[k + 1], above[k]], material))
        self._add(loops[-1][:-1], materials[-1])
        self._add(loops[0][-2::-1], materials[0])
        return faces

    def wall(self, outline: Sequence[Flat], near: float, far: float, material: str) -> Face:
        """Add an (x, z) outline, drawn anticlockwise, extruded from y = `near` to y = `far`. Returns its front."""
        self._num_solids += 1
        for (px, pz), (qx, qz) in zip(outline, [*outline[1:], outline[0]], strict=True):
            self._add([(px, near, pz), (px, far, pz), (qx, far, qz), (qx, near, qz)], material)
        self._add([(x, far, z) for x, z in reversed(outline)], material, layer=1)
        (x0, z0), (x1, z1) = np.min(outline, 0).tolist(), np.max(outline, 0).tolist()
        front = self._add([(x, near, z) for x, z in outline], material, layer=1)
        return Face(front.polygon, [(x0, near, z0), (x1, near, z0), (x1, near, z1), (x0, near, z1)])

    def paint(self, face: Face, shape: Sequence[Flat], material: str) -> None:
        """Paint a shape on a face."""
        solid = self._rows[face.polygon][1]
        self._polygons.append([face.at(u, v) for u, v in shape])
        self._rows.append((MATERIALS.index(material), solid, face.polygon, 0))

    def windows(self, face: Face, grid: tuple[int, int], shape: str, material: str = "glass") -> None:
        """Paint (columns, rows) of framed windows on a face."""
        columns, rows = grid
        du, dv = 0.86 / columns, 0.86 / rows
        for k in range(columns * rows):
            u, v = 0.07 + (k % columns + 0.5) * du, 0.07 + (k // columns + 0.5) * dv
            if columns * rows <= 40:
                self.paint(face, flat_shape(shape, u, v, du * 0.36, dv * 0.39), "trim")
            self.paint(face, flat_shape(shape, u, v, du * 0.27, dv * 0.33), material)

    def disc(self, face: Face, ratio: float) -> None:
        """Paint a clock or a rose window on a face; `ratio` is the face's width to its height."""
        for radius, material in ((0.38, "trim"), (0.32, "glass"), (0.17, "trim"), (0.12, "gold")):
            self.paint(face, flat_shape("round", 0.5, 0.6, radius, radius * ratio), material)

    def finish(self, noun: str, over_water: bool, rng: Generator) -> Landmark:
        """Return the building with its colours and its proportions of height to width drawn from `rng`."""
        wall = np.array(_WALLS[rng.integers(len(_WALLS))], float) * rng.uniform(0.84, 1.06, 3)
        trim = wall * 0.68 if wall.mean() > 190 or rng.random() < 0.3 else wall * 0.4 + 148
        roof, metal = (np.array(choice[rng.integers(len(choice))], float) for choice in (_ROOFS, _METALS))
        lengths = [len(polygon) for polygon in self._polygons]
        vertices = np.array([vertex for polygon in self._polygons for vertex in polygon], float)
        vertices[:, 2] *= rng.uniform(0.82, 1.22)
        starts = np.cumsum([0, *lengths])
        material, solid, host, layer = np.array(self._rows).T
        owner = np.repeat(solid, lengths)
        low, high = np.full((self._num_solids, 3), np.inf), np.full((self._num_solids, 3), -np.inf)
        np.minimum.at(low, owner, vertices)
        np.maximum.at(high, owner, vertices)
        colours, normals = np.clip([wall, trim, roof, metal, *_FIXED], 0, 255), _normals(vertices, starts)
        return Landmark(noun, over_water, colours, vertices, starts, normals, material, solid, host, layer, low, high)

    def _add(self, points: Sequence[Point], material: str, layer: int = 0) -> Face:
        number = len(self._polygons)
        self._polygons.append(points)
        self._rows.append((MATERIALS.index(material), self._num_solids - 1, number, layer))
        return Face(number, points)


def _normals(vertices: Floats, starts: Ints) -> Floats:
    """Return unit normals [P, 3] by Newell's method, which allows corners that coincide."""
    following = np.arange(1, len(vertices) + 1)
    following[starts[1:] - 1] = starts[:-1]
    total = np.add.reduceat(np.cross(vertices, vertices[following]), starts[:-1])
    return np.asarray(total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-9))


def flat_shape(kind: str, u: float, v: float, du: float, dv: float) -> list[Flat]:
    """Return an outline around (u, v), `du` and `dv` to each side: "rect", "round", "arch" or "pointed"."""
    if kind == "rect":
        return [(u - du, v - dv), (u + du, v - dv), (u + du, v + dv), (u - du, v + dv)]
    if kind == "round":
        return [(u + du * cos(a), v + dv * sin(a)) for a in np.linspace(0, tau, 17)[:-1].tolist()]
    crown = arch(u, v + dv * 0.3, du, dv * 0.7, kind == "pointed")
    return [(u - du, v - dv), (u + du, v - dv), *crown]


def arch(x: float, spring: float, half: float, rise: float, pointed: bool) -> list[Flat]:
    """Return the curve of an arch from right to left, which starts to bend at the height `spring`."""
    angles = np.linspace(0, pi, 11).tolist()
    return [(x + half * cos(a), spring + rise * (1 - abs(cos(a)) ** 1.5 if pointed else sin(a))) for a in angles]
